"""The four verdicts, at the edges of the rule."""

import pytest

from losskernel.diagnostics.judge import FAILS, HOLDS, UNRESOLVED, UNTESTED, Number, Range, judge

ABOVE, BELOW, AROUND = Range(low=1), Range(high=1), Range(-0.5, 0.5)


@pytest.mark.parametrize(
    ("estimate", "error", "null", "claim", "verdict"),
    [
        (1.3, 0.1, None, ABOVE, HOLDS),
        (1.3, 0.1, 1.2, ABOVE, HOLDS),
        (1.3, 0.1, 1.35, ABOVE, UNRESOLVED),  # shuffled labels reach it
        (1.3, 0.2, None, ABOVE, UNRESOLVED),
        (0.7, 0.1, None, ABOVE, FAILS),
        (0.7, 0.1, None, BELOW, HOLDS),
        (0.7, 0.1, 0.6, BELOW, UNRESOLVED),
        (1.3, 0.1, None, BELOW, FAILS),
        (0.1, 0.1, None, AROUND, HOLDS),
        (0.1, 0.3, None, AROUND, UNRESOLVED),  # too uncertain to be called narrow
        (0.8, 0.1, None, AROUND, FAILS),
        (0.8, None, None, AROUND, UNRESOLVED),
        (0.949, 0.007, None, Number(0.958), HOLDS),  # within two errors
        (0.930, 0.007, None, Number(0.958), FAILS),
        (0.990, 0.007, None, Number(0.958), FAILS),
        (0.990, 0.007, None, Number(0.958, at_least=True), HOLDS),
        (None, None, None, ABOVE, UNTESTED),
        (float("nan"), 0.1, None, ABOVE, UNTESTED),
    ],
)
def test_verdicts(estimate, error, null, claim, verdict):
    assert judge(estimate, error, null, claim) == verdict


def test_an_error_of_few_parts_reaches_further():
    # The 97.5 % quantile of Student's t with two degrees of freedom is 4.303.
    assert judge(1.42, 0.1, None, ABOVE, count=3) == UNRESOLVED
    assert judge(1.44, 0.1, None, ABOVE, count=3) == HOLDS
    assert judge(1.21, 0.1, None, ABOVE, count=1000) == HOLDS


def test_a_setting_that_was_not_reached_is_not_judged():
    assert judge(2.0, 0.1, None, ABOVE, tested=False) == UNTESTED
