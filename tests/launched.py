"""Small trainings on several processes, started as a user starts them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tiny import TINY_SETTINGS

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
# One thread per process, so that sums have the same order.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(data, out, *more, launcher=(sys.executable,)):
    settings = [
        *TINY_SETTINGS,
        "--batch-size",
        "4",
        "--milestones",
        "[1, 1]",
        "--warmup-steps",
        "0",
    ]
    arguments = [data, *settings, "--out", out, *more]
    return [*launcher, "-m", "botvision", "train", *map(str, arguments)]


def launch(data, out, *more, launcher=(sys.executable,)):
    """Run a command to its end, within two minutes."""
    return subprocess.run(
        command(data, out, *more, launcher=launcher),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def train(data, out, *more, launcher=(sys.executable,)):
    done = launch(data, out, *more, launcher=launcher)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def errors(text):
    """The lines of the command on standard error, without those of a launcher."""
    return [line for line in text.splitlines() if line.startswith("botvision train: error: ")]


def events(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def steps(out):
    return [event["step"] for event in events(out) if event["event"] == "train"]


def wait_for_steps(out, count, seconds=60.0):
    """Wait until a run has logged that number of lines."""
    end = time.monotonic() + seconds
    while not (out / "metrics.jsonl").exists() or len(steps(out)) < count:
        assert time.monotonic() < end
        time.sleep(0.1)


def process_of(rank, out, variable="RANK"):
    """The process id of a rank of the run in ``out``, by a variable in its environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # ended in the meantime
        if str(out).encode() in arguments and f"{variable}={rank}".encode() in variables:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")
