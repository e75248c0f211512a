"""The whole chain on tiny sizes: training, sampling, analysis, figures, table."""

import csv
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from repository import SMOKE

from losskernel.experiments.comparison import COLUMNS
from losskernel.kernel.stored import StoredKernel

pytestmark = pytest.mark.slow

FIGURES = (
    "arithmetic_separation",
    "arithmetic_search",
    "arithmetic_questions",
    "imagenet_map",
    "imagenet_kernels",
    "imagenet_semantics",
    "imagenet_controls",
    "estimators",
    "architecture",
    "gamma_sweep",
    "gamma_sweep_small",
    "imagenet_matrix",
    "imagenet_lift",
    "mislabel_detection",
    "mislabel_imagenet",
    "mislabel_tiny_imagenet",
    "development_arithmetic",
    "development",
    "scale",
)
FIGURE_RULES = {f"figure_{name}" for name in FIGURES}
FIGURE_RULES |= {"figure_development_animation"}
IMAGENET_FIGURE_RULES = {name for name in FIGURE_RULES if name.startswith("figure_imagenet")}
IDS = {
    "arithmetic.auc",
    "arithmetic.within_task",
    "arithmetic.cross_task",
    "arithmetic.rise",
    "arithmetic.auc_gradients_qkv",
    "triples.within_task",
    "activations.cka",
    "localization.cross_task",
    "reparametrization.isotropic",
    "reparametrization.fisher",
    "imagenet.inputs",
    "imagenet.lift",
    "imagenet.spearman",
    "imagenet.reliability",
    "imagenet.signed_excess",
    "imagenet.cost_gpu_hours",
    "architecture.efficientnet_lite0",
    "architecture.resnet",
    "architecture.vit",
    "gamma.effective_minimum",
    "gamma.effective_maximum",
    "gamma.hierarchy_lift",
    "gamma.colour_lift",
    "gamma.texture_lift",
    "gamma.convergence",
    "gamma.small_hierarchy",
    "gamma.small_colour",
    "mislabel.auc",
    "mislabel.self_covariance_clean",
    "mislabel.self_covariance_mislabeled",
    "mislabel.ratio",
    "mislabel.auc_matched_loss",
    "mislabel.memorized_digits",
    "mislabel.memorized_tiny_imagenet",
    "development.coarse_to_fine",
    "scale.inputs",
    "scale.lift",
    "scale.within_class",
}


@pytest.fixture(scope="module")
def table(finished):
    with open(finished.folder / "results/smoke/compare.csv", newline="") as file:
        reader = csv.DictReader(file)
        return reader.fieldnames, {row["id"]: row for row in reader}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_as_pdf_and_as_png(finished, name):
    folder = finished.folder / "results/smoke/figures"
    assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(folder / f"{name}.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 250 and pixels.std() > 10


def test_columns_and_ids_of_the_table(table):
    columns, rows = table
    assert columns == [*COLUMNS]
    assert set(rows) >= IDS


def test_number_columns_hold_plain_numbers_or_nothing(table):
    for row in table[1].values():
        for column in ("reported", "reproduced", "spread", "n"):
            assert row[column] == "" or np.isfinite(float(row[column])), row


def test_measured_rows_tell_value_setting_and_verdict(table):
    rows = table[1]
    for name in ("arithmetic.auc", "arithmetic.within_task", "imagenet.spearman"):
        row = rows[name]
        assert row["reproduced"] and row["spread"] and row["setting"], row
        assert row["verdict"] not in ("", "not tested"), row
    assert float(rows["imagenet.inputs"]["reproduced"]) == 24
    assert rows["arithmetic.auc"]["reported"] == "0.931"


def test_each_job_logs_what_it_read_and_wrote_and_its_time(finished):
    logs = list((finished.folder / "results/smoke/logs").rglob("*.log"))
    assert len(logs) > 15
    for log in logs:
        last = log.read_text().strip().splitlines()[-1]
        assert "read " in last and "; wrote results/smoke/" in last and last.endswith(" s"), log


def test_the_kernel_names_its_settings_weights_and_inputs(finished):
    kernel = StoredKernel.load(finished.folder / "results/smoke/imagenet/kernels/10000.npz")
    for name in ("weights_sha256", "inputs_sha256", "version_torch", "seed", "pairs", "model"):
        assert kernel.attributes[name] not in (None, ""), name
    assert kernel.gamma == 10000


def test_the_report_is_one_page_that_holds_figures_table_and_map(finished, browser):
    status, said = finished.snakemake("all", *SMOKE, "--report", "report.html")
    assert status == 0, said
    browser.open(finished.folder / "report.html")
    browser.wait("document.body.innerText.includes('Reported against reproduced')")
    for category in ("1 Modular arithmetic", "2 ImageNet", "4 Wrong labels", "5 Development"):
        assert category in browser.text("body")
    assert browser.requests() == [] and browser.errors() == []
    held = browser.run("return JSON.stringify(results)")
    for name in ("arithmetic_separation.png", "compare.csv", "imagenet/map.html"):
        assert name in held
    assert "imagenet_map.png" in held


def test_a_finished_tree_has_nothing_to_do(finished):
    assert finished.planned(*SMOKE) == set()


@pytest.mark.parametrize(
    ("module", "rules"),
    [
        ("experiments/style.py", FIGURE_RULES),
        (
            "semantics/lift.py",
            {
                "imagenet_analyze",
                "imagenet_embed",
                "imagenet_neighbors",
                "gamma_sweep_analyze",
                "gamma_sweep_claims",
                "gamma_sweep_small_limit",  # its looks are those of gamma_sweep.analyze
                "gamma_sweep_small_analyze",
                "gamma_sweep_small_mean",
                "gamma_sweep_small_claims",
                "figure_gamma_sweep",
                "figure_gamma_sweep_small",
                "imagenet_controls",
                "imagenet_claims",
                "imagenet_tempered_measure",
                "architecture_agreement",
                "architecture_analyze",
                "architecture_claims",
                "figure_architecture",
                "development_measure",
                "development_analyze",
                "development_claims",
                "figure_development",
                "scale_measure",
                "scale_claims",
                "figure_scale",
                "compare",
            }
            | IMAGENET_FIGURE_RULES,
        ),
        (
            "semantics/separation.py",
            {
                "arithmetic_measure",
                "arithmetic_curve",
                "arithmetic_reparametrize",
                "arithmetic_localize",
                "arithmetic_question_claims",
                "figure_arithmetic_questions",
                "arithmetic_claims",
                "arithmetic_search",
                "arithmetic_search_setup",
                "figure_arithmetic_separation",
                "figure_arithmetic_search",
                "development_arithmetic_measure",
                "figure_development_arithmetic",
                "compare",
            },
        ),
    ],
)
def test_a_changed_module_runs_just_the_rules_behind_it_again(finished, module, rules):
    source = finished.folder / "src/losskernel" / module
    before = source.read_text(), source.stat()
    source.write_text(before[0] + "# changed\n")
    try:
        assert finished.planned(*SMOKE) == rules
    finally:
        source.write_text(before[0])
        os.utime(source, ns=(before[1].st_atime_ns, before[1].st_mtime_ns))


def _job_process(command: str, parent: int) -> int | None:
    """The process below ``parent`` that runs ``losskernel`` with ``command``."""
    parents, matching = {}, []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid = int(status.parent.name)
            parents[pid] = int(status.read_text().rpartition(")")[2].split()[1])
            words = (status.parent / "cmdline").read_text().split("\0")
        except (OSError, ValueError):  # it ended meanwhile
            continue
        if any(Path(word).name == "losskernel" for word in words[:2]) and command in words:
            matching.append(pid)
    for pid in matching:
        above = pid
        while above in parents and above != parent:
            above = parents[above]
        if above == parent:
            return pid
    return None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the job through /proc")
def test_a_killed_kernel_goes_on_from_its_journal_to_the_same_bits(finished):
    results = finished.folder / "results/killed"
    arguments = (*SMOKE, "--config", "results=results/killed")
    target = "results/killed/imagenet/kernels/10000.npz"
    pair = results / "imagenet/journals/10000/pair-00000.npz"
    process = finished.popen(target, *arguments, forked=False)
    while process.poll() is None and not pair.exists():
        time.sleep(0.005)
    pid = _job_process("kernel", process.pid)
    assert pid is not None, process.communicate()[0]
    os.kill(pid, signal.SIGKILL)
    said, _ = process.communicate()
    assert process.returncode != 0, said
    assert not (finished.folder / target).exists()

    written = pair.stat().st_mtime_ns
    status, said = finished.snakemake(target, *arguments)
    assert status == 0, said
    assert pair.stat().st_mtime_ns == written  # the complete pair was not made again
    resumed = StoredKernel.load(finished.folder / target)
    whole = StoredKernel.load(finished.folder / "results/smoke/imagenet/kernels/10000.npz")
    np.testing.assert_array_equal(resumed.r, whole.r)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
