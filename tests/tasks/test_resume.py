"""A run that is killed at any point and resumed equals an uninterrupted run."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from botvision.cli.main import main
from botvision.data.samplers import StepBatches
from killed import run_and_kill
from tiny import TINY_SETTINGS

STEPS = 10
SETTINGS = [
    *TINY_SETTINGS,
    *("--max-steps", str(STEPS), "--checkpoint-steps", "3", "--eval-steps", "4"),
]


def command(data, out, *more):
    return ["train", str(data), *SETTINGS, "--out", str(out), *more]


def train(data, out, *more):
    main(command(data, out, *more))


def train_and_kill(lines, data, out, *more):
    run_and_kill(lines, *command(data, out, *more))
    assert len(events(out)) == lines


def state(out):
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same(one, other):
    """Check that tensors, numbers and containers are equal bit-for-bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def events(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "data_seconds")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tiny_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    train(tiny_data, out)
    return out


def assert_same_run(out, uninterrupted):
    got, want = state(out), state(uninterrupted)
    assert got["global_step"] == want["global_step"] == STEPS
    assert_same(got["state_dict"], want["state_dict"])
    assert_same(got["optimizer_states"], want["optimizer_states"])
    assert [e for e in events(out) if e["event"] != "end"] == [
        e for e in events(uninterrupted) if e["event"] != "end"
    ]
    for name in ("best.safetensors", "metrics.json"):
        assert (out / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_killed_twice_and_resumed(tiny_data, tmp_path, uninterrupted):
    """First after the evaluation of step 4 was logged and before its weights were saved."""
    out = tmp_path / "run"
    train_and_kill(5, tiny_data, out)
    assert state(out)["callbacks"]["Evaluation"]["best"] == -math.inf
    train_and_kill(9, tiny_data, out, "--resume")
    train(tiny_data, out, "--resume")
    assert_same_run(out, uninterrupted)


def test_resumes_alike_in_bf16(tiny_data, tmp_path):
    precision = ["--precision", "bf16", "--checkpoint-steps", "4"]
    train(tiny_data, tmp_path / "whole", *precision)
    train_and_kill(6, tiny_data, tmp_path / "killed", *precision)
    train(tiny_data, tmp_path / "killed", "--resume", *precision)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3.0, 6.0, 7.0, 7.5, 8.0, 8.5, 9.0, 10.0])
def test_killed_at_any_moment(tiny_data, tmp_path, uninterrupted, seconds):
    out = tmp_path / "run"
    run = [sys.executable, "-m", "botvision", *command(tiny_data, out)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(run, env={**os.environ, **threads}, stdout=subprocess.DEVNULL)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    train(tiny_data, out, "--resume")
    assert_same_run(out, uninterrupted)


def test_processes_that_load_data_change_nothing(tiny_data, tmp_path, uninterrupted):
    out = tmp_path / "run"
    train(tiny_data, out, "--workers", "2")
    assert_same(state(out)["state_dict"], state(uninterrupted)["state_dict"])


def test_resume_takes_the_runs_own_settings(tiny_data, tmp_path, uninterrupted):
    out = tmp_path / "run"
    train(tiny_data, out, "--max-steps", "6")
    main(["train", str(tiny_data), "--out", str(out), "--resume", "--max-steps", str(STEPS)])
    # Warm-up and schedule follow the ten steps only from the sixth step on.
    assert state(out)["global_step"] == STEPS
    assert [e["step"] for e in events(out) if e["event"] == "train"] == [*range(1, STEPS + 1)]


def test_killed_in_the_last_evaluation(tiny_data, tmp_path, uninterrupted):
    """The checkpoint has all steps, and not the evaluation that was logged."""
    out = tmp_path / "run"
    train_and_kill(13, tiny_data, out)
    assert state(out)["global_step"] == STEPS
    train(tiny_data, out, "--resume")
    assert_same_run(out, uninterrupted)
    results = [run / "predictions" / "results.json" for run in (out, uninterrupted)]
    assert results[0].read_bytes() == results[1].read_bytes()


@pytest.mark.slow
def test_killed_in_the_last_evaluation_and_resumed_with_more_steps(tiny_data, tmp_path):
    """The checkpoint is of the last batch of the shorter run."""
    constant = ["--milestones", "[1, 1]"]
    train(tiny_data, tmp_path / "whole", "--max-steps", "12", *constant)
    train_and_kill(13, tiny_data, tmp_path / "killed", *constant)
    shutil.copytree(tmp_path / "killed", tmp_path / "completed")
    train(tiny_data, tmp_path / "completed", "--resume")
    train(tiny_data, tmp_path / "completed", "--max-steps", "12", "--resume")
    train(tiny_data, tmp_path / "killed", "--max-steps", "12", "--resume")
    assert_same(
        state(tmp_path / "completed")["state_dict"], state(tmp_path / "killed")["state_dict"]
    )
    got, want = state(tmp_path / "killed"), state(tmp_path / "whole")
    assert_same(got["state_dict"], want["state_dict"])
    assert_same(got["optimizer_states"], want["optimizer_states"])
    evaluated = [e["step"] for e in events(tmp_path / "killed") if e["event"] == "eval"]
    assert evaluated == [4, 8, 10, 12]


def test_a_complete_run_is_left_as_it_is(tiny_data, uninterrupted, capsys):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    train(tiny_data, uninterrupted, "--resume")
    assert "complete" in capsys.readouterr().out
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_a_second_run_never_overwrites(tiny_data, uninterrupted, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(tiny_data, uninterrupted)
    assert stopped.value.code == 2
    assert "holds a run already; add --resume" in capsys.readouterr().err


def test_a_broken_checkpoint_is_named(tiny_data, tmp_path, capsys):
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "last.ckpt").write_bytes(b"half a file")
    with pytest.raises(SystemExit):
        train(tiny_data, out, "--resume")
    assert "last.ckpt: not a readable checkpoint" in capsys.readouterr().err


def test_a_smaller_accumulate_trains_on_the_next_images(tiny_data, tmp_path, monkeypatch):
    keys = []
    iterate = StepBatches.__iter__

    def batches(self):
        for batch in iterate(self):
            keys.extend(batch)
            yield batch

    monkeypatch.setattr(StepBatches, "__iter__", batches)
    train(tiny_data, tmp_path / "run", "--max-steps", "2", "--accumulate", "3")
    train(tiny_data, tmp_path / "run", "--max-steps", "4", "--accumulate", "1", "--resume")
    steps = iterate(StepBatches(7, 3, 4, seed=0, start=0))
    assert keys == [key for batch in steps for key in batch]
