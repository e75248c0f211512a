"""Tables of modular addition and division as token sequences ``[a, op, b, =]``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from losskernel.errors import ConfigError

ADDITION, DIVISION = 0, 1
TASK_NAMES = ("addition", "division")


@dataclass(frozen=True)
class ArithmeticTable:
    """Rows of the two operation tables; every field has one entry a row.

    Attributes:
        inputs: tokens ``[a, op, b, =]``, shape ``(n, 4)``, int64.
        targets: class of the answer, shape ``(n,)``, int64.
        task: 0 addition, 1 division, shape ``(n,)``, int64.
        a: first operand, shape ``(n,)``, int64.
        b: second operand, shape ``(n,)``, int64; never 0 in a division.
    """

    inputs: Tensor
    targets: Tensor
    task: Tensor
    a: Tensor
    b: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, index: np.ndarray) -> ArithmeticTable:
        """The rows at integer positions ``index``, shape ``(m,)``, in that order."""
        at = torch.as_tensor(index, dtype=torch.long)
        return ArithmeticTable(
            self.inputs[at], self.targets[at], self.task[at], self.a[at], self.b[at]
        )


def modular_table(
    prime: int, shared_operands: bool = True, shared_outputs: bool = True
) -> ArithmeticTable:
    """Every addition ``a + b`` and every division ``a / b`` with ``b != 0`` modulo a prime.

    Addition comes first (p^2 rows), then division (p (p - 1) rows), each in order of (a, b).
    The inverse is ``b^(p-2) mod p`` (Fermat's little theorem).

    Args:
        prime: the modulus p.
        shared_operands: whether both tasks write an operand with the same token. If not,
            division's operands are tokens p to 2p - 1. "+", "/" and "=" take the next three.
        shared_outputs: whether both tasks answer with the same p classes. If not, division's
            answers are classes p to 2p - 1.

    Raises:
        ConfigError: ``prime`` is not a prime number.
    """
    if prime < 2 or any(prime % divisor == 0 for divisor in range(2, int(prime**0.5) + 1)):
        raise ConfigError(f"prime = {prime} is not a prime number: division needs one, such as 31")
    inverse = np.array([pow(b, prime - 2, prime) for b in range(prime)])
    a, b = (grid.ravel() for grid in np.indices((prime, prime)))
    divisible = b != 0
    task = np.repeat([ADDITION, DIVISION], [a.size, divisible.sum()])
    result = np.concatenate([(a + b) % prime, (a * inverse[b] % prime)[divisible]])
    a, b = np.concatenate([a, a[divisible]]), np.concatenate([b, b[divisible]])

    operands = prime if shared_operands else 2 * prime
    first_operand = 0 if shared_operands else prime * task
    equals = np.full_like(a, operands + 2)
    inputs = np.stack([a + first_operand, operands + task, b + first_operand, equals], axis=1)
    targets = result if shared_outputs else result + prime * task
    return ArithmeticTable(*(torch.from_numpy(column) for column in (inputs, targets, task, a, b)))


def train_test_split(
    table: ArithmeticTable, share: float, seed: int
) -> tuple[ArithmeticTable, ArithmeticTable]:
    """Split at random into a training share, in random order, and the rest.

    Args:
        table: ``n`` rows.
        share: training share, in (0, 1]; 1 leaves the test table empty.
        seed: the same seed gives the same split.

    Returns:
        Training table of ``round(share * n)`` rows, test table of the others.

    Raises:
        ConfigError: ``share`` is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share = {share} is outside (0, 1]: 0.8 trains on 80 % of the pairs")
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(len(table))
    size = round(share * len(table))
    return table.rows(order[:size]), table.rows(order[size:])


def probe_subset(table: ArithmeticTable, n: int, seed: int) -> ArithmeticTable:
    """Draw ``n`` rows without replacement, half of each task, ordered by task, a and b.

    An odd ``n`` gives addition the extra row.

    Args:
        table: rows of both tasks.
        n: number of rows to draw.
        seed: the same seed gives the same rows.

    Raises:
        ConfigError: a task has fewer rows than its half.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    chosen = []
    for task, size in ((ADDITION, n - n // 2), (DIVISION, n // 2)):
        rows = np.flatnonzero(table.task.numpy() == task)
        if rows.size < size:
            raise ConfigError(
                f"{n} probe inputs need {size} of {TASK_NAMES[task]}, the table has {rows.size}: "
                "ask for fewer or take a larger prime"
            )
        chosen.append(rng.choice(rows, size, replace=False))
    index = np.concatenate(chosen)
    order = np.lexsort((table.b[index], table.a[index], table.task[index]))
    return table.rows(index[order])
