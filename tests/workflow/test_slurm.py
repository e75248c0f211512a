"""The workflow through SLURM: what jobs ask for, and a whole run in which one is cancelled."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from repository import ROOT, SMOKE, Copy

from losskernel.kernel.stored import StoredKernel

SCRIPT = ROOT / "workflow/cluster/slurm.sh"
SAMPLING = {"imagenet_kernel", "imagenet_tempered", "architecture_kernel"}
SAMPLING |= {"architecture_sample", "gamma_sweep_small_sample", "scale_kernel"}
ON_GPU = SAMPLING | {"imagenet_gradients", "mislabel_imagenet_sample"}
ON_GPU |= {"development_train", "development_sample", "architecture_train"}
DAEMONS = ("munged", "slurmctld", "slurmd")

SYSTEM_PATH = f"{os.environ['PATH']}:/usr/sbin"
LACKING = [name for name in DAEMONS if shutil.which(name, path=SYSTEM_PATH) is None]
LACKING += [] if os.geteuid() == 0 else ["root"]


def script(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([SCRIPT, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def cluster(monkeypatch):
    """The folder of a running SLURM that commands of this process and its children use."""
    # Not tmp_path: the path of a socket has room for 107 characters.
    folder = Path(tempfile.mkdtemp()) / "slurm"
    started = script("start", folder)
    assert started.returncode == 0, started.stderr
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    yield folder
    if folder.exists():
        stopped = script("stop", folder)
        assert stopped.returncode == 0, stopped.stderr
    folder.parent.rmdir()


def queue(*states: str) -> list[tuple[str, str, str]]:
    """Id, state and comment, which names rule and wildcards, of all jobs in these states."""
    command = ["squeue", "--noheader", f"--states={','.join(states)}", "--format=%i %T %k"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [tuple(line.split(maxsplit=2)) for line in said.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stop", "/nowhere"), "Error: /nowhere: no SLURM was started there\n"),
        (("env", "/nowhere"), "Error: /nowhere: no SLURM was started there\n"),
        (("restart", "/nowhere"), f"Error: usage: {SCRIPT} start|env|stop FOLDER\n"),
    ],
)
def test_the_script_says_in_one_line_what_is_wrong(arguments, message):
    done = script(*arguments)
    assert done.returncode == 1 and done.stderr == message


@pytest.mark.slow
def test_every_job_asks_for_memory_and_time_and_a_sampling_job_on_cuda_for_a_gpu(copy):
    devices = ("--config", "imagenet={kernel: {device: cuda}}")
    devices += ("development={tiny_imagenet: {device: cuda}}", "scale={device: cuda}")
    status, said = copy.snakemake("all", "--dry-run", *SMOKE, *devices)
    assert status == 0, said
    jobs = re.findall(r"^rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", said, re.MULTILINE)
    assert {rule for rule, _ in jobs} >= SAMPLING | {"all"}
    for rule, resources in jobs:
        if rule == "all":  # has no command
            continue
        asked = dict(part.split("=") for part in resources.split(", "))
        assert int(asked["mem_mb"]) >= 1000 and int(asked["runtime"]) >= 5, (rule, resources)
        assert asked.get("gpu", "0") == ("1" if rule in ON_GPU else "0"), (rule, resources)


@pytest.mark.slurm
@pytest.mark.skipif(
    bool(LACKING),
    reason=f"starts a SLURM of its own (Debian: slurm-wlm, munge); lacks: {', '.join(LACKING)}",
)
class TestOnSlurm:
    def test_a_second_start_in_the_same_folder_is_refused(self, cluster):
        again = script("start", cluster)
        assert again.returncode == 1
        assert again.stderr.startswith(f"Error: {cluster} exists; name a folder that does not")

    def test_stopping_leaves_no_process_and_no_file(self, cluster):
        daemons = [int((cluster / f"{name}.pid").read_text()) for name in DAEMONS]
        pid = cluster.parent / "job"
        command = f"--wrap=echo $$ > {pid}; exec sleep 600"
        subprocess.run(["sbatch", "--output=/dev/null", command], check=True)
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.05)
        job = int(pid.read_text())
        pid.unlink()
        assert script("stop", cluster).returncode == 0
        assert not cluster.exists()
        for process in (*daemons, job):
            status = Path(f"/proc/{process}/status")
            # A daemon in a container without an init process may stay behind as a zombie.
            assert not status.exists() or "\nState:\tZ" in status.read_text()

    @pytest.mark.slow
    def test_a_cancelled_kernel_is_submitted_again_and_the_workflow_finishes(
        self, cluster, tmp_path
    ):
        repository = Copy(tmp_path)
        # A kernel long enough to be cancelled in its middle.
        (tmp_path / "config/one.yaml").write_text(
            "imagenet: {kernel: {probes: [{gamma: 1.0e+5, pairs: 4, groups: 4}, "
            "{gamma: 1.0e+4, pairs: 24, groups: 4}]}}"
        )
        configs = ("--configfile", "config/smoke.yaml", "config/one.yaml")
        profile = ("--workflow-profile", "workflow/profiles/slurm")
        # Without an accounting database it is squeue that knows the state of a job; ask it often.
        # Images of 64 px need little memory.
        here = ("--slurm-status-command", "squeue", "--seconds-between-status-checks", "1")
        here += ("--slurm-init-seconds-before-status-checks", "2", "--set-resources")
        here += ("imagenet_kernel:mem_mb=3000", "imagenet_features:mem_mb=3000")
        chain = "rule_imagenet_kernel_wildcards_10000"
        pair = tmp_path / "results/smoke/imagenet/journals/10000/pair-00001.npz"
        # What is computed from all kernels: nine jobs that wait for one another.
        statistics = "results/smoke/imagenet/statistics.csv"

        with ThreadPoolExecutor() as pool:
            run = pool.submit(
                repository.snakemake, statistics, *profile, *configs, *here, forked=False
            )
            while not run.done() and not pair.exists():
                time.sleep(0.05)
            running = [job for job, _, comment in queue("RUNNING") if comment == chain]
            for job in running:
                subprocess.run(["scancel", job], check=True)
            status, said = run.result()
        assert status == 0, said
        assert len(running) == 1
        ended = Counter((comment, state) for _, state, comment in queue("all"))
        assert ended.pop((chain, "CANCELLED")) == 1
        assert ended.pop((chain, "COMPLETED")) == 1
        assert set(ended.values()) == {1} and {state for _, state in ended} == {"COMPLETED"}
        assert (tmp_path / statistics).exists()

        # The same kernel without SLURM and without an interruption.
        name = "imagenet/kernels/10000.npz"
        local = ("--cores", "1", *configs, "--config", "results=results/local")
        status, said = repository.snakemake(f"results/local/{name}", *local)
        assert status == 0, said
        through_slurm, whole = (
            StoredKernel.load(tmp_path / "results" / where / name) for where in ("smoke", "local")
        )
        np.testing.assert_array_equal(through_slurm.r, whole.r)
