"""Trainings that torchrun or the command itself starts on several processes, and their end."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import yaml

from launched import (
    ENVIRONMENT,
    TORCHRUN,
    command,
    errors,
    events,
    launch,
    process_of,
    steps,
    train,
    wait_for_steps,
)

LAUNCHERS = {"torchrun": (TORCHRUN, []), "command": ([sys.executable], ["--devices", "2"])}
BY_LAUNCHER = pytest.mark.parametrize(("launcher", "devices"), LAUNCHERS.values(), ids=LAUNCHERS)
LOST = "; resume the run from its last checkpoint"


def test_torchrun_needs_no_devices(tiny_data, tmp_path):
    done = train(tiny_data, tmp_path / "run", "--max-steps", "2", launcher=TORCHRUN)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["devices"], config["nodes"]) == (2, 1)
    assert steps(tmp_path / "run") == [1, 2]
    assert " cpu x 2, " in done.stdout
    assert done.stdout.count("run written to") == 1


@pytest.mark.parametrize(
    ("launcher", "devices", "rank"),
    [
        pytest.param(*LAUNCHERS["command"], 1, id="command-1"),
        *(
            pytest.param(*LAUNCHERS[name], rank, id=f"{name}-{rank}", marks=pytest.mark.slow)
            for name, rank in (("command", 0), ("torchrun", 0), ("torchrun", 1))
        ),
    ],
)
def test_a_lost_process_ends_the_others(tiny_data, tmp_path, launcher, devices, rank):
    out = tmp_path / "run"
    # In a file, because the other process may outlive the one that is waited for.
    with (tmp_path / "errors.txt").open("w") as file:
        process = subprocess.Popen(
            command(tiny_data, out, "--max-steps", "5000", *devices, launcher=launcher),
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    wait_for_steps(out, 2)
    first = process.pid if devices else process_of(0, out)
    ranks = [first, process_of(1, out)]
    os.kill(ranks[rank], signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    other = ranks[1 - rank]
    end = time.monotonic() + 30
    while pathlib.Path(f"/proc/{other}").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    (line,) = errors((tmp_path / "errors.txt").read_text())
    assert line.endswith(LOST)
    if devices and rank == 1:
        assert "process 1 of 2 was killed by SIGKILL" in line


@pytest.mark.slow
@BY_LAUNCHER
def test_a_bad_image_of_one_process(tiny_data, tmp_path, launcher, devices):
    """The other process ends without a message of its own."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    image = next((data / "train").glob("*"))
    image.write_bytes(b"no image")
    done = launch(data, tmp_path / "run", "--max-steps", "20", *devices, launcher=launcher)
    assert done.returncode != 0
    (line,) = errors(done.stderr)
    assert image.name in line
    if devices:
        assert done.returncode == 2
        assert done.stderr.strip() == line


@pytest.mark.parametrize(
    "wrong",
    [
        ["--norm", "nothing"],
        pytest.param(["--batch-size", "3"], marks=pytest.mark.slow),
        pytest.param(["--weights", "missing.safetensors"], marks=pytest.mark.slow),
        pytest.param(["--nothing", "3"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_an_error_before_the_training_is_printed_once(tiny_data, tmp_path, wrong):
    """All processes end with status 2, which torchrun reports."""
    done = launch(tiny_data, tmp_path / "run", *wrong, launcher=TORCHRUN)
    assert done.returncode != 0
    assert len(errors(done.stderr)) == 1, done.stderr
    assert "exitcode  : 2" in done.stderr


@pytest.mark.slow
def test_missing_data_is_reported_once(tmp_path):
    done = launch(tmp_path / "nothing", tmp_path / "run", launcher=TORCHRUN)
    assert done.returncode != 0
    assert len(errors(done.stderr)) == 1, done.stderr
    assert "exitcode  : 2" in done.stderr


def start_nodes(data, out, *more):
    """Start two machines of torchrun on this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    nodes = [*TORCHRUN[:-1], "1", "--nnodes", "2", "--rdzv-backend", "c10d"]
    line = command(data, out, *more, launcher=[*nodes, "--rdzv-endpoint", endpoint])
    return [
        subprocess.Popen(
            line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]


@pytest.mark.slow
def test_torchrun_on_two_nodes(tiny_data, tmp_path):
    """The losses are those of two processes on one machine, bit-for-bit."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    for limit, more in ((2, []), (4, ["--resume"])):
        nodes = start_nodes(tiny_data, out, "--max-steps", limit, *more)
        printed = [node.communicate(timeout=120) for node in nodes]
        assert [node.returncode for node in nodes] == [0, 0], printed
        assert sum(out.count("run written to") for out, _ in printed) == 1
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["devices"], config["nodes"]) == (1, 2)
    train(tiny_data, whole, "--max-steps", 4, "--devices", 2)
    losses = [
        [event["loss"] for event in events(folder) if event["event"] == "train"]
        for folder in (out, whole)
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0])
def test_a_process_of_another_node_is_lost(tiny_data, tmp_path, rank):
    nodes = start_nodes(tiny_data, tmp_path / "run", "--max-steps", 5000)
    wait_for_steps(tmp_path / "run", 2)
    os.kill(process_of(rank, tmp_path / "run"), signal.SIGKILL)
    printed = [node.communicate(timeout=60)[1] for node in nodes]
    assert all(node.returncode for node in nodes)
    (line,) = errors("".join(printed))
    assert line.endswith(LOST)


def settings_of(strategy, processes):
    """Settings with which a step is split into the same two parts."""
    parts = ["--accumulate", 2 // processes, "--devices", processes, "--strategy", strategy]
    return ["--norm", "frozen", *parts]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        *((("ddp", 1), ("ddp", 2)), (("ddp", 2), ("ddp", 1))),
        *((("fsdp", 2), ("fsdp", 1)), (("fsdp", 2), ("ddp", 2))),
    ],
)
def test_resume_with_another_number_of_processes(tiny_data, tmp_path, before, after):
    train(tiny_data, tmp_path / "whole", *settings_of(*before), "--max-steps", 4)
    out = tmp_path / "resumed"
    train(tiny_data, out, *settings_of(*before), "--max-steps", 2)
    train(tiny_data, out, *settings_of(*after), "--max-steps", 4, "--resume")
    assert steps(out) == [1, 2, 3, 4]
    whole, resumed = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "resumed")
    )
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("before", [("ddp", 2), ("fsdp", 1)])
def test_sharded_training_resumes_from_sharded_training_only(tiny_data, tmp_path, before):
    train(tiny_data, tmp_path / "run", *settings_of(*before), "--max-steps", 2)
    again = [*settings_of("fsdp", 2), "--max-steps", 4, "--resume"]
    done = launch(tiny_data, tmp_path / "run", *again)
    assert done.returncode == 2
    (line,) = errors(done.stderr)
    assert line == (
        "botvision train: error: --strategy fsdp: cannot resume a checkpoint that one process or "
        "ddp has saved; resume with ddp"
    )
    train(tiny_data, tmp_path / "run", *again, "--strategy", "ddp")
    assert steps(tmp_path / "run") == [1, 2, 3, 4]
