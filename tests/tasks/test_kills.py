"""Twenty SIGKILLs at random moments, on two file systems: the resumed runs equal whole ones."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from botvision.cli.main import main
from botvision.training.run import Run
from killed import THREADS
from tiny import TINY_SETTINGS

KILLS = 20
STEPS = 12
SETTINGS = [
    *TINY_SETTINGS,
    *("--max-steps", str(STEPS), "--eval-steps", "4", "--checkpoint-steps", "3"),
    *("--ema-decay", "0.8", "--accumulate", "3", "--workers", "2"),
]
pytestmark = pytest.mark.slow


def command(data, out, *more):
    return ["train", str(data), *SETTINGS, "--out", str(out), *more]


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "botvision", *arguments],
        env={**os.environ, **THREADS},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_for_the_first_step(process, out):
    """Until the process has logged an event."""
    file = out / "metrics.jsonl"
    before = file.read_bytes() if file.exists() else b""
    while process.poll() is None and (not file.exists() or file.read_bytes() == before):
        time.sleep(0.002)


def run_and_kill(arguments, out, seconds):
    """Kill the command a time after its first step, unless it has ended by then."""
    process = start(arguments)
    wait_for_the_first_step(process, out)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()[-2000:]


def contents(run):
    """What has to be the same bit for bit: states, weights, and all events but their clocks."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    events = [
        {k: v for k, v in event.items() if k not in ("seconds", "data_seconds")}
        for event in Run(run).history
    ]
    files = ("best.safetensors", "metrics.json", "predictions/results.json")
    return state, events, [(run / name).read_bytes() for name in files]


def assert_equal(one, other, where=""):
    """Compare tensors, numbers and containers bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}/{index}")
    else:
        assert one == other, where


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory):
    """An uninterrupted run of the real command, and how long it took from its first step on."""
    out = tmp_path_factory.mktemp("whole") / "run"
    process = start(command(tiny_data, out))
    wait_for_the_first_step(process, out)
    began = time.monotonic()
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]
    return contents(out), time.monotonic() - began


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_equals_a_whole_one(tiny_data, tmp_path, whole, number):
    """Every second one is on another file system; every third one is killed twice."""
    (state, events, files), seconds = whole
    moments = random.Random(number)
    place = "/dev/shm" if number % 2 and Path("/dev/shm").is_dir() else tmp_path
    with tempfile.TemporaryDirectory(dir=place) as folder:
        out = Path(folder) / "run"
        run_and_kill(command(tiny_data, out), out, seconds * moments.random())
        if number % 3 == 0:
            run_and_kill(command(tiny_data, out, "--resume"), out, seconds * moments.random() / 2)
        main(command(tiny_data, out, "--resume"))
        got_state, got_events, got_files = contents(out)
        assert_equal(got_state["state_dict"], state["state_dict"])
        for key in ("current_model_state", "averaging_state", "optimizer_states", "lr_schedulers"):
            assert_equal(got_state[key], state[key], key)
        assert_equal(got_state["callbacks"]["Evaluation"], state["callbacks"]["Evaluation"])
        assert got_events == events
        assert got_files == files
        assert not [path for path in out.rglob("*") if ".tmp" in path.name]
