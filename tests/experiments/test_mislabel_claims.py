"""What tables of known numbers make of the rows of the comparison."""

import pandas as pd
import pytest

from losskernel.cli import main
from losskernel.experiments.claims import BY_ID, verdict

PROBE = {"n_beta": 50.0, "gamma": 1e4, "step_size": 1e-5}
IDS = {
    "mislabel.auc",
    "mislabel.self_covariance_clean",
    "mislabel.self_covariance_mislabeled",
    "mislabel.memorized_digits",
}


def at_probe_time(**changes):
    values = {"auc": 0.97, "auc_loss": 0.99, "ratio": 4.0, "neighbors_mislabeled": 1.5}
    values |= {"self_covariance_clean": 0.1, "self_covariance_mislabeled": 0.4} | changes
    spread = {f"{name}_sd": 0.01 for name in values}
    rows = [{"share": share, "draws": 10} | values | spread | PROBE for share in (0.05, 0.1)]
    rows[0]["auc"] = 0.1
    return pd.DataFrame(rows)


def memorized(**auc):
    rows = pd.DataFrame({"method": list(auc), "auc": list(auc.values())})
    rows["method"] = rows["method"].str.replace("_", "-")
    facts = {"share": 0.1, "auc_sd": 0.02, "precision": 0.6, "draws": 4, "inputs": 600}
    facts |= {"classes": 10, "memorized": 0.998, "training_loss": 0.014}
    return rows.assign(**facts, **PROBE)


@pytest.fixture
def claims(tmp_path):
    def run(headline=None, **tables) -> pd.DataFrame:
        tables = {
            "probe-time": at_probe_time(),
            "digits": memorized(self_covariance=0.9, loss=0.8, margin=0.95),
        } | tables
        arguments = [] if headline is None else ["--headline", headline]
        for name, table in tables.items():
            table.to_csv(tmp_path / f"{name}.csv", index=False)
            arguments += [f"--{name}", tmp_path / f"{name}.csv"]
        output = tmp_path / "claims.csv"
        command = ["workflow", "mislabel.claims", "claims", *arguments, "--output", output]
        assert main([str(argument) for argument in command]) == 0
        return pd.read_csv(output).set_index("id")

    return run


def test_digits_stand_in_where_there_are_no_photographs(claims):
    found = claims()
    assert set(found.index) == IDS
    auc = found.loc["mislabel.auc"]
    assert (auc["reproduced"], auc["n"]) == (0.97, 10)
    assert auc["spread"] == pytest.approx(0.01 / 10**0.5)  # of a mean of 10
    assert auc["setting"].startswith("digits, not ImageNet; 10% of labels wrong at probe time")
    assert verdict(BY_ID["mislabel.auc"], auc) == "holds"
    assert "plain loss 0.99" in auc["beside"]
    beside = found.loc["mislabel.self_covariance_clean", "beside"]
    assert beside == "ratio wrong to right 4; the paper's ratio 1.92"


def test_photographs_come_first_and_the_words_follow_the_numbers(claims):
    facts = {"model": "m", "image_size": 160, "inputs": 400, "weight_draws": 100, "hard_clean": 80}
    aucs = {f"auc_{name}": 0.8 for name in ("mean_loss", "margin", "gradient_norm")}
    aucs |= {f"matched_{name}": 0.7 for name in ("loss", "mean_loss", "margin", "gradient_norm")}
    tables = []
    for gamma, rise, ratio in ((1e4, 0.35, 6.0), (3e3, 1.6, 4.0), (2e3, 3.0, 2.5)):
        found = {"auc_self_covariance": 0.94, "matched_self_covariance": 0.6} | aucs
        spread = {f"{name}_sd": 0.01 for name in found}
        errors = {f"{name}_error": 0.02 for name in ("matched_self_covariance", "ratio")}
        errors |= {f"self_covariance_{name}_error": 0.1 for name in ("clean", "mislabeled")}
        errors |= {"auc_self_covariance_error": 0.01, "neighbors_null_high": 1.7}
        table = at_probe_time(auc_loss=0.8, ratio=ratio).drop(columns=["auc", "auc_sd"])
        at = {"gamma": gamma, "rise": rise}
        tables.append(table.assign(**found, **spread, **errors, **facts, **at))
    found = claims(headline=3000, imagenet=pd.concat(tables))
    auc = found.loc["mislabel.auc"]
    assert auc["reproduced"] == 0.94 and auc["setting"].startswith(
        "ImageNet; m, 160 px, 400 images"
    )
    assert (
        "100 independent draws at gamma=3000, where the mean loss rises by 1.6 nats" in auc.setting
    )
    assert verdict(BY_ID["mislabel.auc"], auc) == "holds"  # within two errors of 0.958
    assert "97.5 % bound of that for random choices 1.7" in auc["beside"]
    ratio = found.loc["mislabel.ratio"]  # nearest to 1.92 of the three
    assert ratio["reproduced"] == 2.5 and "gamma=2000" in ratio["setting"]
    assert ratio["spread"] == 0.02
    assert "at a rise of 1.6 nats 4" in ratio["beside"]
    matched = found.loc["mislabel.auc_matched_loss"]
    assert matched["reproduced"] == 0.6 and "the 80 right ones" in matched["setting"]
    assert verdict(BY_ID["mislabel.auc_matched_loss"], matched) == "holds"


def test_memorized_labels_say_which_methods_are_better(claims):
    found = claims(**{"tiny-imagenet": memorized(self_covariance=0.51, loss=0.4)})
    digits, tiny = (found.loc[f"mislabel.memorized_{name}"] for name in ("digits", "tiny_imagenet"))
    assert verdict(BY_ID["mislabel.memorized_digits"], digits) == "holds"
    assert digits["beside"] == "precision at the true share 0.6; margin 0.95; loss 0.8"
    assert digits["spread"] == 0.01  # of a mean of 4
    assert "99.8% of these memorized" in digits["setting"]
    # 0.51 less two errors of 0.01 is below 0.5.
    assert verdict(BY_ID["mislabel.memorized_tiny_imagenet"], tiny) == "not resolved"
    assert "easier than" in tiny["setting"]
