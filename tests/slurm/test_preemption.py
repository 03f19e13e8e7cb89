"""A job of examples/train.sbatch on a real cluster of one node, which cluster.sh starts.

``tests/slurm/cluster.sh test`` installs Slurm and runs this file.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from launched import ENVIRONMENT, command, errors, events, process_of, steps, train, wait_for_steps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.name != "posix" or os.geteuid() != 0 or shutil.which("slurmctld") is None,
        reason="requires root and Debian's slurm-wlm and munge: see tests/slurm/cluster.sh",
    ),
]
CLUSTER = Path(__file__).parent / "cluster.sh"
EXAMPLE = Path(__file__).parents[2] / "examples" / "train.sbatch"
STEPS = 300


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Run a command of Slurm on a new cluster."""
    folder = tmp_path_factory.mktemp("slurm")
    environment = {**ENVIRONMENT, "SLURM_CONF": str(folder / "slurm.conf")}

    def run(*arguments):
        done = subprocess.run(
            [*map(str, arguments)], env=environment, capture_output=True, text=True, check=False
        )
        run.status, run.errors = done.returncode, done.stderr
        return done.stdout

    run.environment = environment
    subprocess.run([CLUSTER, "start", folder], check=True)
    try:
        yield run
    finally:
        subprocess.run([CLUSTER, "stop", folder], check=True)


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def write_job(path, arguments):
    """The example with other resources and another training."""
    text = EXAMPLE.read_text()
    changes = {
        r"(#SBATCH --nodes).*": r"\1=1 --ntasks-per-node=2",
        r"(#SBATCH --cpus-per-task).*": r"\1=1 --time=00:20:00",
        r"train=\(.*\)": f"train=({shlex.join(map(str, arguments))} --resume)",
        r"(#SBATCH --output)=\S+": rf"\1={path.with_suffix('.log')}",
    }
    for pattern, replacement in changes.items():
        text, count = re.subn(
            rf"^{pattern}$" if "output" not in pattern else pattern,
            replacement,
            text,
            flags=re.MULTILINE,
        )
        assert count == 1, pattern
    path.write_text(text)


def test_a_job_survives_its_time_limit_and_a_preemption(slurm, tiny_data, tmp_path):
    out, job_file = tmp_path / "run", tmp_path / "train.sbatch"
    log = tmp_path / "train.log"
    settings = ["--max-steps", STEPS, "--eval-steps", 100, "--checkpoint-steps", 100000]
    write_job(job_file, command(tiny_data, out, *settings))
    job = slurm("sbatch", "--parsable", job_file).strip()

    def printed(pattern):
        return log.exists() and re.findall(pattern, log.read_text(), re.MULTILINE)

    def requeued(times):
        return f"Restarts={times} " in slurm("scontrol", "show", "job", job)

    # The signal that Slurm sends before the time limit: the script requeues the job.
    wait_for_steps(out, 30)
    slurm("scancel", "--signal=USR1", job)
    wait_for(lambda: requeued(1), 60)
    # Slurm waits for two minutes before it starts a job again.
    wait_for(lambda: printed(r"^resuming from step \d+"), 240)
    # A preemption: Slurm requeues the job.
    wait_for_steps(out, len(steps(out)) + 30)
    slurm(
        "sbatch",
        "--partition=urgent",
        "--ntasks=2",
        f"--output={tmp_path}/urgent.log",
        "--wrap=sleep 3",
    )
    wait_for(lambda: requeued(2), 120)
    wait_for(lambda: printed("^run written to"), 400)

    print(log.read_text())
    stops, resumes = (
        [int(step) for step in printed(rf"^{words} (\d+)")]
        for words in ("stopped at step", "resuming from step")
    )
    assert len(stops) == 2
    assert resumes == stops
    assert steps(out) == [*range(1, STEPS + 1)]
    assert [e["step"] for e in events(out) if e["event"] == "eval"] == [100, 200, 300]
    assert yaml.safe_load((out / "config.yaml").read_text())["devices"] == 2

    train(tiny_data, tmp_path / "whole", *settings, "--devices", 2)
    losses = [
        [event["loss"] for event in events(folder) if event["event"] == "train"]
        for folder in (out, tmp_path / "whole")
    ]
    assert losses[0] == losses[1]


def test_a_cancelled_job_is_saved_and_stays_cancelled(slurm, tiny_data, tmp_path):
    out = tmp_path / "run"
    write_job(tmp_path / "train.sbatch", command(tiny_data, out, "--max-steps", 100000))
    job = slurm("sbatch", "--parsable", tmp_path / "train.sbatch").strip()
    wait_for_steps(out, 2)
    slurm("scancel", job)
    wait_for(lambda: not slurm("squeue", "--noheader"), 60)
    assert "JobState=CANCELLED" in slurm("scontrol", "show", "job", job)
    saved = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == steps(out)[-1]


@pytest.mark.parametrize("rank", [1, 0])
def test_a_lost_task_ends_the_others(slurm, tiny_data, tmp_path, rank):
    out = tmp_path / "run"
    arguments = command(tiny_data, out, "--max-steps", 100000)
    log = (tmp_path / "errors.txt").open("w")
    process = subprocess.Popen(
        ["srun", "--ntasks=2", *arguments], env=slurm.environment, stderr=log
    )
    wait_for_steps(out, 2)
    os.kill(process_of(rank, out, "SLURM_PROCID"), 9)
    assert process.wait(timeout=60) == 137
    (line,) = errors((tmp_path / "errors.txt").read_text())
    assert line.endswith("resume the run from its last checkpoint")


def test_an_error_is_printed_once(slurm, tiny_data, tmp_path):
    slurm("srun", "--ntasks=2", *command(tiny_data, tmp_path / "run", "--devices", 3))
    assert slurm.status == 2
    (line,) = errors(slurm.errors)
    assert line == (
        "botvision train: error: --devices 3: srun has started 2 processes per machine on 1 "
        "machines, so the number is 2; leave it out"
    )


def test_a_script_without_srun_is_one_process(slurm, tiny_data, tmp_path):
    out = tmp_path / "run"
    arguments = command(tiny_data, out, "--max-steps", 1, launcher=(sys.executable,))
    slurm(
        "sbatch",
        "--wait",
        "--ntasks=2",
        f"--output={tmp_path}/log",
        f"--wrap={shlex.join(arguments)}",
    )
    assert slurm.status == 0, (tmp_path / "log").read_text()
    assert yaml.safe_load((out / "config.yaml").read_text())["devices"] == 1
    assert "`srun`" not in (tmp_path / "log").read_text()
