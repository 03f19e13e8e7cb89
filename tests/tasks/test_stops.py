"""SIGINT, SIGTERM and SIGUSR1: the step is finished and saved, and the run continues from there."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from botvision.cli.main import main
from killed import THREADS
from tiny import TINY_SETTINGS, python_train

MORE = [
    *("--max-steps", "8", "--eval-steps", "3", "--accumulate", "3", "--ema-decay", "0.9"),
    *("--checkpoint-steps", "100", "--milestones", "[1, 1]"),
]


def start(*arguments):
    """The real command in a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "botvision", *map(str, arguments)],
        env={**os.environ, **THREADS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs this in the background ignores the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.fixture(autouse=True)
def interruptible():
    """The handler that Python installs, unless a shell runs the tests in the background."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


def wait_for_lines(process, run, lines):
    file = run / "metrics.jsonl"
    while not file.exists() or file.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def events(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "data_seconds")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def contents(run):
    """Everything of a run that has to be the same bit for bit."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    tensors = {**state["state_dict"], **state["current_model_state"]}
    momentum = state["optimizer_states"][0]["state"]
    tensors |= {f"momentum {k}": v["momentum_buffer"] for k, v in momentum.items()}
    best = (run / "best.safetensors").read_bytes()
    return {k: v.tolist() for k, v in tensors.items()}, best, events(run)


@pytest.fixture(scope="module")
def uninterrupted(tiny_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    main(["train", str(tiny_data), *TINY_SETTINGS, *MORE, "--out", str(out)])
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "lines", "workers"),
    [(signal.SIGTERM, 1, 0), (signal.SIGINT, 2, 2), (signal.SIGUSR1, 5, 0)],
)
def test_the_command_stops_after_its_step_and_continues_from_there(
    tiny_data, tmp_path, uninterrupted, number, lines, workers
):
    """The signal reaches all processes of the group, those that load data too."""
    out = tmp_path / "a run"
    settings = [*TINY_SETTINGS, *MORE, "--workers", workers]
    process = start("train", tiny_data, *settings, "--out", out)
    wait_for_lines(process, out, lines)
    os.killpg(process.pid, number)
    text, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors == ""
    step = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert step == max(event["step"] for event in events(out)) < 8
    assert (out / "best.safetensors").exists()
    command = shlex.join(["botvision", "train", str(tiny_data), "--out", str(out), "--resume"])
    assert text.splitlines()[-1] == f"stopped at step {step} of 8; resume with: {command}"
    assert [line for line in text.splitlines() if "stopped" in line] == text.splitlines()[-1:]
    main(shlex.split(command)[1:])
    assert contents(out) == contents(uninterrupted)


def test_a_signal_before_the_first_step(tiny_data, tmp_path):
    process = start("train", tiny_data, *TINY_SETTINGS, "--out", tmp_path / "run")
    maps = f"/proc/{process.pid}/maps"
    while "libtorch" not in open(maps).read():  # noqa: PTH123, SIM115
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == ("stopped before the first step\n", "")
    assert process.returncode == 143
    assert not (tmp_path / "run").exists()


SCRIPT = """
import time
from botvision.training.signals import StopSignals
with StopSignals() as signals:
    signals.deferred = True
    print("ready", flush=True)
    while not signals.received:
        time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_second_signal_ends_the_process_at_once(number):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "noted\n"
    process.send_signal(number)  # as a launcher repeats it
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=10) == 128 + number


class Signal:
    """An evaluator that sends a signal to its own process, in the first evaluation of a step."""

    def __init__(self, number, images):
        self.number, self.left, self.seen = number, images, 0

    def reset(self):
        self.seen = 0

    def update(self, predictions, batch):
        self.seen += 1
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)

    def compute(self):
        return {"images": self.seen}

    def report(self, folder, console):
        pass


@pytest.fixture(scope="module")
def uninterrupted_from_python(tiny_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    python_train(tiny_data, out, evaluators=[Signal(signal.SIGINT, 0)])
    return out


@pytest.mark.parametrize(
    ("number", "error", "status"),
    [
        (signal.SIGINT, KeyboardInterrupt, None),
        (signal.SIGTERM, SystemExit, 143),
        (signal.SIGUSR1, SystemExit, 138),
    ],
)
def test_a_signal_in_an_evaluation_breaks_it_off(
    tiny_data, tmp_path, capsys, uninterrupted_from_python, number, error, status
):
    """From Python. It is repeated by the resumed run, and counts once."""
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(error) as stopped:
        # The second image of the first evaluation, or of the last one.
        images = 6 if number == signal.SIGTERM else 2
        python_train(tiny_data, tmp_path / "run", evaluators=[Signal(number, images)])
    step = 4 if number == signal.SIGTERM else 2
    out = str(tmp_path / "run")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        f"stopped at step {step} of 4; resume with: botvision.train(data, out={out!r}, resume=True)"
    )
    if status is not None:
        assert stopped.value.code == status
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
    assert (tmp_path / "run" / "best.safetensors").exists()
    assert [e["step"] for e in events(tmp_path / "run") if e["event"] == "eval"] == [2][: step - 2]
    python_train(tiny_data, tmp_path / "run", evaluators=[Signal(number, 0)], resume=True)
    found = [e for e in events(tmp_path / "run") if e["event"] == "eval"]
    assert [event["step"] for event in found] == [2, 4]
    assert [event["images"] for event in found] == [4, 4]
    whole = uninterrupted_from_python
    assert found == [e for e in events(whole) if e["event"] == "eval"]
    best = [run / "best.safetensors" for run in (tmp_path / "run", whole)]
    assert best[0].read_bytes() == best[1].read_bytes()


def test_in_another_thread_the_handlers_are_left_alone(tiny_data, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    found = []

    class Handler(Signal):
        def compute(self):
            found.append(signal.getsignal(signal.SIGTERM))
            return {}

    settings = {"evaluators": [Handler(0, 0)], "epochs": 1}
    thread = threading.Thread(
        target=python_train, args=(tiny_data, tmp_path / "run"), kwargs=settings
    )
    thread.start()
    thread.join()
    assert found == [before] * 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("to", ["the group", "one process"])
def test_all_processes_stop_at_the_same_step(tiny_data, tmp_path, strategy, to):
    settings = [*TINY_SETTINGS, "--batch-size", 4, "--norm", "frozen", "--devices", 2]
    settings += ["--strategy", strategy, "--max-steps", 40, "--eval-steps", 3]
    process = start("train", tiny_data, *settings, "--out", tmp_path / "run")
    wait_for_lines(process, tmp_path / "run", 5)
    if to == "the group":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    text, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    lines = text.splitlines()
    assert lines[-1].startswith("stopped at step ") and " of 40; resume with: " in lines[-1]
    step = int(lines[-1].split()[3])
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == step
    resumed = start(
        *("train", tiny_data, "--out", tmp_path / "run", "--resume", "--max-steps", step + 1)
    )
    text, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors
    assert f"resuming from step {step}" in text
