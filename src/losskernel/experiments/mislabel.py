"""Experiment 4: does self-covariance find wrong labels?

Appendix D.4 of the paper, and beyond it the case that matters in practice: labels that were wrong
during training, so that the network has memorized them. Each function but :func:`rank` and
:func:`folder`, which are for a user's own data, is one rule of ``workflow/rules/mislabel.smk``.

Draw 0 chooses the probe (:func:`losskernel.pilot.propose_probe`: a given rise of the mean loss
under the given labels, blind to which are wrong) and is used for nothing else. Every further draw
is a network of its own: other training inputs, other wrong labels, another initialization.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from losskernel.errors import ConfigError
from losskernel.files import atomic_path
from losskernel.kernel import nearest_neighbors, self_covariance
from losskernel.mislabel import (
    EveryLabel,
    MarginRecorder,
    detection,
    flip_labels,
    opposed_inputs,
    vote,
)
from losskernel.per_sample_gradients import per_sample_gradients
from losskernel.pilot import propose_probe
from losskernel.probe import Probe
from losskernel.progress import bar
from losskernel.sampling import cross_entropy, sample_losses
from losskernel.seeds import numpy_generator, torch_seed
from losskernel.trace import LossTrace
from losskernel.training import TrainingSettings, evaluate, train

OURS = "self-covariance"
PILOT_DRAW = 0
SCORES = {  # of any trace, high where a label is suspicious
    "self_covariance": lambda trace: self_covariance(trace.losses),
    "mean_loss": lambda trace: trace.losses.mean(axis=(0, 1), dtype=float),
    "initial_loss": lambda trace: trace.initial_loss,
}


@dataclass(frozen=True)
class _Problem:
    """Training and test inputs with their true labels, classes 0 to ``classes - 1``."""

    inputs: Tensor
    labels: np.ndarray
    test_inputs: Tensor
    test_labels: Tensor
    classes: int


def _digits(inputs: int, seed: int) -> _Problem:
    """scikit-learn's 1,797 digits of 8 x 8 pixels in [0, 1]; some to train on, the rest to test."""
    from sklearn.datasets import load_digits  # here, as it is slow to import

    pixels, labels = load_digits(return_X_y=True)
    if not inputs < len(labels):
        raise ConfigError(f"mislabel.inputs = {inputs}: digits has {len(labels)}, test included")
    order = numpy_generator(seed, "order").permutation(len(labels))
    x, y = torch.as_tensor(pixels[order] / 16, dtype=torch.float32), labels[order]
    return _Problem(x[:inputs], y[:inputs], x[inputs:], torch.as_tensor(y[inputs:]), 10)


@dataclass(frozen=True)
class _Fit:
    model: nn.Module
    seconds: float  # of the training, the recording of margins included
    margins: MarginRecorder


def _fit(
    settings: dict, problem: _Problem, inputs: Tensor, labels: Tensor, seed: int, share: float = 1.0
) -> _Fit:
    """A network trained on ``share`` of the training set, for as many epochs as on all of it."""
    training = settings["training"] | {"steps": round(share * settings["training"]["steps"])}
    widths = [problem.inputs[0].numel(), *settings["hidden_widths"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "init"))
        layers: list[nn.Module] = [nn.Flatten()]
        for width, following in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(width, following), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(widths[-1], problem.classes))
    started = time.perf_counter()
    with MarginRecorder(model, labels) as recorder:
        train(model, inputs, labels, TrainingSettings(**training), seed, progress=False)
    return _Fit(model, time.perf_counter() - started, recorder)


def _pilot(settings: dict, problem: _Problem, given: Tensor) -> tuple[Probe, float]:
    """The probe that raises the mean loss of a network of its own as asked for; seconds."""
    data = (problem.inputs, given)
    model = _fit(settings, problem, *data, PILOT_DRAW).model
    _squared_gradients(model, data)  # what is imported at the first use is no cost of a method
    pilot, seconds = _timed(
        propose_probe,
        model,
        data,
        **settings["pilot"],
        batch_size=settings["sampling"]["batch_size"],
        chains=2,
    )
    return pilot.probe, seconds


def _timed(function: Callable, *arguments, **options) -> tuple:
    started = time.perf_counter()
    return function(*arguments, **options), time.perf_counter() - started


@torch.inference_mode()
def _losses(model: nn.Module, inputs: Tensor, labels: Tensor) -> np.ndarray:
    return cross_entropy(model(inputs), labels).numpy()


def _squared_gradients(model: nn.Module, data: tuple[Tensor, Tensor]) -> np.ndarray:
    """Squared norm of each input's loss gradient: gamma times the high-gamma limit of K(z, z)."""
    with tempfile.TemporaryDirectory() as scratch:
        return per_sample_gradients(model, data, scratch, progress=False).norms ** 2


def _drift(losses: np.ndarray) -> float:
    """Change of the mean loss from the first to the second half of the draws."""
    first, second = np.array_split(losses.mean(axis=(0, 2)), 2)
    return float(second.mean() - first.mean())


def _out_of_sample(
    settings: dict, problem: _Problem, given: Tensor, seed: int
) -> tuple[np.ndarray, float]:
    """Class probabilities ``(input, class)`` by networks that did not see the input; seconds."""
    from sklearn.model_selection import StratifiedKFold  # here, as it is slow to import

    folds = settings["folds"]
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(given, given)
    probabilities, seconds = np.empty((len(given), problem.classes)), 0.0
    for kept, held_out in splits:
        fit = _fit(settings, problem, problem.inputs[kept], given[kept], seed, 1 - 1 / folds)
        with torch.inference_mode():
            probabilities[held_out] = fit.model(problem.inputs[held_out]).double().softmax(1)
        seconds += fit.seconds
    return probabilities, seconds


def _scores(
    settings: dict, problem: _Problem, given: Tensor, probe: Probe, pilot_seconds: float, seed: int
) -> tuple[dict[str, tuple[np.ndarray, float]], dict, dict]:
    """Every method's score and seconds beyond the training; facts on the run; suggested labels.

    Nothing here knows which labels are wrong.
    """
    from cleanlab.filter import find_label_issues  # here, as it is slow to import
    from cleanlab.rank import get_label_quality_scores

    data = (problem.inputs, given)
    fit = _fit(settings, problem, *data, seed)
    model = fit.model
    losses, loss_seconds = _timed(_losses, model, *data)
    gradients, gradient_seconds = _timed(_squared_gradients, model, data)
    trace, sample_seconds = _timed(
        sample_losses, model, data, probe, seed=seed, progress=False, **settings["sampling"]
    )
    sample_seconds += pilot_seconds
    probabilities, fold_seconds = _out_of_sample(settings, problem, given, seed)
    labels = given.numpy()
    quality, cleanlab_seconds = _timed(get_label_quality_scores, labels, probabilities)
    scores = {
        OURS: (self_covariance(trace.losses), sample_seconds),
        "mean loss under the probe": (trace.losses.mean(axis=(0, 1)), sample_seconds),
        "gradient norm (exact limit)": (gradients, gradient_seconds),
        "loss": (losses, loss_seconds),
        "area under the margin": (-fit.margins.area, loss_seconds * fit.margins.evaluations),
        "confident learning": (1 - quality, fold_seconds + cleanlab_seconds),
    }
    k = settings["neighbors"]
    near = nearest_neighbors(trace.losses, k)
    opposed, values = opposed_inputs(trace.losses, labels, k)
    suggested = {
        "nearest": vote(*near, labels)[0],
        "opposed": vote(opposed, -values, labels)[0],
        "out of sample": probabilities.argmax(1),
    }
    facts = {
        "train_seconds": fit.seconds,
        "training_loss": losses.mean(),
        "rise": trace.losses.mean() - losses.mean(),
        "drift": _drift(trace.losses),
        "test_accuracy": evaluate(model, problem.test_inputs, problem.test_labels)[1],
        "wrong": (model(problem.inputs).argmax(1) != given).numpy(),
        "flagged": find_label_issues(labels, probabilities, n_jobs=1),
    }
    return scores, facts, suggested


def detect(settings: dict, output: Path, output_summary: Path, output_scores: Path) -> None:
    """Labels flipped before training and memorized: who finds them?

    Writes a row a share, draw and method; the mean and spread over draws, with the paired lead of
    self-covariance; and the self-covariances themselves for the figure (npz).
    """
    rows, kept = [], []
    todo = [(share, draw) for share in settings["shares"] for draw in settings["draws"]]
    probes: dict[float, tuple[Probe, float]] = {}
    for share, draw in bar(todo, "networks", unit="network"):
        if share not in probes:
            problem, given, _ = _corrupted(settings, share, PILOT_DRAW)
            probes[share] = _pilot(settings, problem, given)
        problem, given, flipped = _corrupted(settings, share, draw)
        scores, facts, suggested = _scores(settings, problem, given, *probes[share], draw)
        row = {"share": share, "draw": draw, "flipped": int(flipped.sum())}
        row |= asdict(probes[share][0]) | {"pilot_seconds": probes[share][1]}
        row |= {key: facts[key] for key in ("training_loss", "rise", "drift", "test_accuracy")}
        row["memorized"] = 1 - facts["wrong"][flipped].mean()
        flagged = facts["flagged"]
        row |= {
            "cleanlab_flagged": int(flagged.sum()),
            "cleanlab_precision": flipped[flagged].mean() if flagged.any() else np.nan,
            "cleanlab_recall": flagged[flipped].mean(),
        }
        for name, labels in suggested.items():
            row[f"suggested_right_{name.replace(' ', '_')}"] = (
                labels[flipped] == problem.labels[flipped]
            ).mean()
        for method, (values, seconds) in scores.items():
            cost = {"seconds": seconds, "training_runs": seconds / facts["train_seconds"]}
            rows.append(row | {"method": method} | asdict(detection(values, flipped)) | cost)
        kept.append((share, scores[OURS][0], flipped))
    table = pd.DataFrame(rows)
    ours = table[table["method"] == OURS].set_index(["share", "draw"])["auc"]
    table["lead"] = (
        ours.loc[pd.MultiIndex.from_frame(table[["share", "draw"]])].values - table["auc"]
    )
    values = [name for name in table if name not in ("share", "draw", "method")]
    with atomic_path(output_scores) as temporary:
        np.savez_compressed(temporary, **_stacked(kept, settings))
    _write(table, output)
    _write(_mean_and_spread(table, ["share", "method"], values), output_summary)


def _corrupted(settings: dict, share: float, draw: int) -> tuple[_Problem, Tensor, np.ndarray]:
    problem = _digits(settings["inputs"], draw)
    rng = numpy_generator(draw, "resample")
    given, flipped = flip_labels(problem.labels, share, problem.classes, rng)
    return problem, torch.as_tensor(given), flipped


def _stacked(kept: list[tuple[float, np.ndarray, np.ndarray]], settings: dict) -> dict:
    """Self-covariances and which labels are wrong, ``(share, draw, input)``, for the figure."""
    arrays = {"shares": np.array(settings["shares"])}
    for name, at in (("self_covariance", 1), ("flipped", 2)):
        by_share = [[row[at] for row in kept if row[0] == share] for share in settings["shares"]]
        arrays[name] = np.array(by_share)
    return arrays


def _mean_and_spread(table: pd.DataFrame, keys: list[str], values: list[str]) -> pd.DataFrame:
    """Columns ``<value>`` and ``<value>_sd`` over the draws of each group, and ``draws``."""
    groups = table.groupby(keys, sort=False)
    means, spreads = groups[values].mean(), groups[values].std(ddof=1)
    result = means.join(spreads.add_suffix("_sd"))
    return result.assign(draws=groups["draw"].nunique()).reset_index()


def _write(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def probe_time(settings: dict, output: Path, output_summary: Path, output_scores: Path) -> None:
    """The paper's case: clean training, labels corrupted only where the losses are recorded.

    A network and a trace a draw; the trace holds the loss under every label of every input, so that
    the corruption of each share is a choice among its columns.
    """
    rows, kept = [], []
    clean = _digits(settings["inputs"], PILOT_DRAW)
    probe, _ = _pilot(settings, clean, torch.as_tensor(clean.labels))
    for draw in bar(settings["draws"], "networks", unit="network"):
        problem = _digits(settings["inputs"], draw)
        labels = torch.as_tensor(problem.labels)
        data = (problem.inputs, labels)
        shown = EveryLabel(
            _fit(settings, problem, *data, draw).model, problem.inputs, problem.classes
        )
        every = torch.arange(problem.classes).repeat(len(labels))
        sampling = settings["sampling"] | {"eval_batch_size": len(every)}
        trace = sample_losses(
            shown,
            data,
            probe,
            probe_data=(shown.pairs, every),
            seed=draw,
            progress=False,
            **sampling,
        )
        first = np.arange(len(labels)) * problem.classes
        right = first + problem.labels
        for share in settings["shares"]:
            given, flipped = flip_labels(
                problem.labels, share, problem.classes, numpy_generator(draw, "resample")
            )
            losses = trace.losses[..., first + given]
            k = self_covariance(losses)
            near, _ = nearest_neighbors(losses, settings["neighbors"])
            row = {"share": share, "draw": draw, "flipped": int(flipped.sum())} | asdict(probe)
            row |= {
                "training_loss": trace.initial_loss[right].mean(),
                "rise": (trace.losses - trace.initial_loss)[..., right].mean(),
                "drift": _drift(trace.losses[..., right]),
                **asdict(detection(k, flipped)),
                "auc_loss": detection(trace.initial_loss[first + given], flipped).auc,
                "self_covariance_clean": k[~flipped].mean(),
                "self_covariance_mislabeled": k[flipped].mean(),
                "ratio": k[flipped].mean() / k[~flipped].mean(),
                # Do they form a cluster of their own? Over the share expected by chance.
                "neighbors_mislabeled": flipped[near[flipped]].mean() / flipped.mean(),
            }
            rows.append(row)
            kept.append((share, k, flipped))
    with atomic_path(output_scores) as temporary:
        np.savez_compressed(temporary, **_stacked(kept, settings))
    table = pd.DataFrame(rows)
    _write(table, output)
    values = [name for name in table if name not in ("share", "draw")]
    _write(_mean_and_spread(table, ["share"], values), output_summary)


def copies(settings: dict, output: Path, output_summary: Path) -> None:
    """Controlled memorization: self-covariance against the copies of an input in the training set.

    For each number of copies there are as many inputs with a flipped label as with their true one.
    Writes a row a draw, gamma, kind and number of copies (median over the inputs), with Spearman's
    correlation of self-covariance and copies over the inputs of the kind; then mean and spread. The
    gamma of infinity is the exact limit, in squared norms of the gradient.
    """
    from scipy.stats import spearmanr  # here, as it is slow to import

    chosen, rows = settings["copies"], []
    for draw in bar(settings["draws"], "networks", unit="network"):
        problem, given, number, kind = _duplicated(settings, draw)
        unique = (problem.inputs, given)
        repeated = np.repeat(np.arange(len(number)), number)
        data = (problem.inputs[repeated], given[repeated])
        model = _fit(settings, problem, *data, draw).model
        losses = _losses(model, *unique)
        found = {np.inf: _squared_gradients(model, unique)}
        for values in chosen["probes"]:
            trace = sample_losses(
                model,
                data,
                Probe(**values),
                probe_data=unique,
                seed=draw,
                progress=False,
                **settings["sampling"],
            )
            found[values["gamma"]] = self_covariance(trace.losses)
        for gamma, k in found.items():
            for name in ("flipped", "true label"):
                rank = spearmanr(number[kind == name], k[kind == name]).statistic
                for count in chosen["numbers"]:
                    at = (kind == name) & (number == count)
                    row = {"draw": draw, "gamma": gamma, "kind": name, "copies": count}
                    row |= {"self_covariance": np.median(k[at]), "loss": np.median(losses[at])}
                    rows.append(row | {"spearman": rank, "training_loss": losses.mean()})
    table = pd.DataFrame(rows)
    keys = ["draw", "gamma", "kind"]
    once = table[table["copies"] == chosen["numbers"][0]].set_index(keys)["self_covariance"]
    ratio = table["self_covariance"] / once.loc[pd.MultiIndex.from_frame(table[keys])].values
    table["log10_ratio"] = np.log10(ratio)
    _write(table, output)
    values = ["self_covariance", "log10_ratio", "spearman", "loss", "training_loss"]
    _write(_mean_and_spread(table, ["gamma", "kind", "copies"], values), output_summary)


def _duplicated(settings: dict, draw: int) -> tuple[_Problem, Tensor, np.ndarray, np.ndarray]:
    """Inputs, given labels, copies of each input in the training set, and its kind ("": neither).

    The inputs come in random order, so that the first ones are a random choice.
    """
    numbers, each = settings["copies"]["numbers"], settings["copies"]["inputs_per_number"]
    problem = _digits(settings["inputs"], draw)
    of_kind = len(numbers) * each
    if 2 * of_kind > len(problem.labels):
        raise ConfigError(
            f"mislabel.copies: {2 * of_kind} inputs are more than mislabel.inputs = "
            f"{settings['inputs']}; lower inputs_per_number"
        )
    given, number = problem.labels.copy(), np.ones(len(problem.labels), int)
    rng = numpy_generator(draw, "resample")
    given[:of_kind], _ = flip_labels(given[:of_kind], 1, problem.classes, rng)
    number[: 2 * of_kind] = np.tile(np.repeat(numbers, each), 2)
    kind = np.array(["flipped"] * of_kind + ["true label"] * of_kind)
    kind = np.concatenate([kind, np.full(len(given) - 2 * of_kind, "")])
    return problem, torch.as_tensor(given), number, kind


def rank(
    trace: Path,
    output: Path,
    k: int = 10,
    label: str = "label",
    score: str = "self_covariance",
) -> None:
    """Rank the suspicious labels of any saved trace, as CSV, the most suspicious first.

    A row an input: its score, given label, the suggested label and its share of the votes, the
    nearest inputs (largest R), the opposed ones (most negative R, of another label) and their
    labels, and its losses. The suggestion is the vote of the opposed inputs, weighted by -R: a
    wrong label is memorized against the inputs that look alike.

    ``score`` is self_covariance (the paper's), mean_loss (under the probe) or initial_loss.
    ``label`` is the coordinate with the given labels that the losses were taken under.
    """
    if score not in SCORES:
        raise ConfigError(f"score: '{score}' is not one of {', '.join(SCORES)}")
    loaded = LossTrace.load(trace)
    labels = loaded.coordinate(label)
    names = loaded.dataset["name" if "name" in loaded.dataset.coords else "input"].values
    near, _ = nearest_neighbors(loaded.losses, k)
    opposed, values = opposed_inputs(loaded.losses, labels, k)
    suggested, share = vote(opposed, -values, labels)
    columns = {"name": names, "score": SCORES[score](loaded), "given_label": labels}
    columns |= {"suggested_label": np.where(share > 0, suggested.astype(object), "")}
    columns |= {"share_of_votes": share}
    for kind, indices in (("nearest", near), ("opposed", opposed)):
        columns[kind] = [" | ".join(map(str, names[row])) for row in indices]
        columns[f"{kind}_labels"] = [" | ".join(map(str, labels[row])) for row in indices]
    columns |= {name: SCORES[name](loaded) for name in ("mean_loss", "initial_loss")}
    table = pd.DataFrame(columns).sort_values("score", ascending=False, kind="stable")
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    _write(table, output)


def folder(
    settings: dict,
    output: Path,
    output_trace: Path,
    journal: Path,
    k: int = 10,
    score: str = "self_covariance",
) -> None:
    """Sample a model on a folder of images and rank the labels that the folders give them.

    ``settings`` are those of ``imagenet`` in config/config.yaml with a ``seed``; the names of the
    class folders are the given labels. The trace stays, for other rankings and other tools; called
    again with the same ``journal``, a run that was killed goes on.
    """
    from losskernel.experiments.imagenet import sample  # here: no other command needs images

    sample(settings, 0, journal, output_trace)
    rank(output_trace, output, k, "wnid", score)
