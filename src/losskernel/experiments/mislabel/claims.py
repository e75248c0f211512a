"""What the experiments on wrong labels say of the paper's numbers in Appendix D.4, and beyond."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from losskernel.experiments.claims import measured, reported, write_claims

OURS = "self-covariance"
SHARE = 0.1  # of labels wrong, behind the numbers; the paper does not say which it took


def claims(
    probe_time: Path,
    digits: Path,
    output: Path,
    imagenet: Path | None = None,
    tiny_imagenet: Path | None = None,
) -> None:
    """Rows of the comparison, of the tables that the experiments on wrong labels wrote.

    Labels wrong at probe time are reported of ``imagenet``, or of digits (``probe_time``) where it
    is not given; memorized ones of ``digits`` and of ``tiny_imagenet``.
    """
    if imagenet is None:
        found = _probe_time(_at(pd.read_csv(probe_time)), "digits, not ImageNet")
    else:
        found = _probe_time(_at(pd.read_csv(imagenet)), "ImageNet")
    found["mislabel.memorized_digits"] = _memorized(
        pd.read_csv(digits), "digits, a network on raw pixels"
    )
    if tiny_imagenet is not None:
        found["mislabel.memorized_tiny_imagenet"] = _memorized(
            pd.read_csv(tiny_imagenet),
            "Tiny ImageNet, a head on penultimate features of an ImageNet classifier, which knows "
            "the true classes of these images: easier than for a network trained from scratch, for "
            "out-of-sample predictions above all",
        )
    write_claims(found, output)


def _at(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the share that is reported: :data:`SHARE`, or the largest there is."""
    share = SHARE if SHARE in set(table["share"]) else table["share"].max()
    return table[table["share"] == share]


def _probe(row: pd.Series) -> str:
    return f"n_beta={row['n_beta']:g}, gamma={row['gamma']:.3g}, eps={row['step_size']:.3g}"


def _probe_time(rows: pd.DataFrame, data: str) -> dict[str, dict]:
    row = rows.iloc[0]
    draws = int(row["draws"])
    setting = f"{data}; {row['share']:.0%} of labels wrong at probe time; {_probe(row)}"
    if "sgld_draws" in row:
        setting += (
            f"; {row['model']}, {row['image_size']:.0f} px, {row['inputs']:.0f} images, "
            f"{row['chains']:.0f} x {row['sgld_draws']:.0f} draws"
        )
    setting += f"; spread: sd over {draws} corruption draws"
    clean, wrong = "self_covariance_clean", "self_covariance_mislabeled"
    beside = {"plain loss": row["auc_loss"]}
    if "auc_mean_loss" in row:
        beside["mean loss under the probe"] = row["auc_mean_loss"]
    if "auc_error" in row:
        beside["jackknife error over draws"] = row["auc_error"]
    beside["share of wrong neighbors of wrong labels over base rate"] = row["neighbors_mislabeled"]
    if "neighbors_null_high" in row:
        beside["97.5 % bound of that for random choices"] = row["neighbors_null_high"]
    paper = reported(f"mislabel.{wrong}") / reported(f"mislabel.{clean}")
    ratios = {"ratio wrong to right": row["ratio"], "the paper's ratio": paper}
    found = {"mislabel.auc": measured(row["auc"], row["auc_sd"], draws, setting, beside=beside)}
    for name in ("mislabel.self_covariance_clean", "mislabel.self_covariance_mislabeled"):
        column = name.partition(".")[2]
        found[name] = measured(
            row[column], row[f"{column}_sd"], draws, f"nats squared; {setting}", beside=ratios
        )
    return found


def _memorized(table: pd.DataFrame, data: str) -> dict:
    rows = _at(table).set_index("method")
    row = rows.loc[OURS]
    draws = int(row["draws"])
    setting = (
        f"{data}; {row['inputs']:.0f} inputs of {row['classes']:.0f} classes, {row['share']:.0%} "
        f"of labels wrong in training, {row['memorized']:.1%} of these memorized, training loss "
        f"{row['training_loss']:.2g}; {_probe(row)}; spread: standard error over {draws} draws of "
        "the flips, one network each"
    )
    others = rows["auc"].drop(OURS).sort_values(ascending=False)
    beside = {"precision at the true share": row["precision"], **others}
    return measured(row["auc"], row["auc_sd"] / draws**0.5, draws, setting, beside=beside)
