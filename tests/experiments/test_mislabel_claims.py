"""What tables of known numbers make of the rows of the comparison."""

import pandas as pd
import pytest

from losskernel.cli import main

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
    reported = {"auc": 0.958, "self_covariance_clean": 1.112, "self_covariance_mislabeled": 2.138}
    paper = [{"id": f"mislabel.{name}", "reported": value} for name, value in reported.items()]

    def run(**tables) -> pd.DataFrame:
        tables = {
            "reported": pd.DataFrame(paper),
            "probe-time": at_probe_time(),
            "digits": memorized(self_covariance=0.9, loss=0.8, margin=0.95),
        } | tables
        arguments = []
        for name, table in tables.items():
            table.to_csv(tmp_path / f"{name}.csv", index=False)
            arguments += [f"--{name}", tmp_path / f"{name}.csv"]
        output = tmp_path / "claims.csv"
        command = ["mislabel-claims", "claims", *arguments, "--output", output]
        assert main([str(argument) for argument in command]) == 0
        return pd.read_csv(output).set_index("id")

    return run


def test_digits_stand_in_where_there_are_no_photographs(claims):
    found = claims()
    assert set(found.index) == IDS
    auc = found.loc["mislabel.auc"]
    assert (auc["reproduced"], auc["spread"], auc["n"]) == (0.97, 0.01, 10)
    assert auc["setting"].startswith("digits, not ImageNet; 10% of labels wrong at probe time")
    assert auc["verdict"].startswith("reached at this scale; no more than without the kernel")
    assert "ratio 4 against 1.92" in found.loc["mislabel.self_covariance_clean", "verdict"]


def test_photographs_come_first_and_the_words_follow_the_numbers(claims):
    run = {"sgld_draws": 30, "chains": 2, "inputs": 1000, "image_size": 160, "model": "m"}
    errors = {f"{name}_error": 0.005 for name in ("auc", "ratio", *[k[9:] for k in IDS])}
    errors |= {"neighbors_null_high": 1.7, "auc_mean_loss": 0.7}
    table = at_probe_time(auc=0.94, auc_loss=0.8, ratio=0.5).assign(**run, **errors)
    found = claims(imagenet=table)
    auc = found.loc["mislabel.auc"]
    assert auc["reproduced"] == 0.94 and auc["setting"].startswith("ImageNet; 10%")
    assert "m, 160 px, 1000 images, 2 x 30 draws" in auc["setting"]
    assert "jackknife over SGLD draws 0.005" in auc["setting"]
    assert auc["verdict"].startswith("not reached at this scale; more than without the kernel")
    assert "97.5 % of random choices below 1.70" in auc["verdict"]
    assert found.loc["mislabel.self_covariance_clean", "verdict"].startswith("not higher")


def test_memorized_labels_say_which_methods_are_better(claims):
    found = claims(**{"tiny-imagenet": memorized(self_covariance=0.51, loss=0.4)})
    digits, tiny = (found.loc[f"mislabel.memorized_{name}"] for name in ("digits", "tiny_imagenet"))
    assert digits["verdict"].startswith("holds at this scale, precision at the true share 0.60")
    assert digits["verdict"].endswith("better: margin 0.950; not better: loss 0.800")
    assert "99.8% of these memorized" in digits["setting"]
    assert tiny["verdict"].startswith("not resolved")  # 0.51 less two errors of 0.01 is below 0.5
    assert "better: none" in tiny["verdict"] and "easier than" in tiny["setting"]
