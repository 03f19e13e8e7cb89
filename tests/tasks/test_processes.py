"""A detector on two processes, compared with one process."""

import json
import os
import subprocess
import sys

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import botvision
from botvision.config import ClassificationConfig
from botvision.data.shapes import write_shapes
from botvision.training.fsdp import WholeEvaluation, shard_if_wanted, whole_tensors
from tiny import TINY_SETTINGS

# One thread per process, so that sums have the same order.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# Without milestones, a run of two steps equals the first two steps of three.
SETTINGS = ["--norm", "frozen", "--batch-size", "4", "--milestones", "[1, 1]"]


def train(data, out, *more):
    arguments = ["train", data, *TINY_SETTINGS, "--out", out, "--max-steps", "3", *more]
    command = [sys.executable, "-m", "botvision", *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory):
    """Runs on one process with two micro-batches, and on two processes.

    A detector's losses are means over the samples from the images of a process. Therefore both
    runs are equal, including the random samples.
    """
    out = tmp_path_factory.mktemp("runs")
    return [
        train(tiny_data, out / name, *SETTINGS, f"--{name}", 2)
        for name in ("accumulate", "devices")
    ]


def test_two_processes_train_like_one_in_two_parts(runs):
    one, two = (load_file(run / "best.safetensors") for run in runs)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)


def test_an_evaluation_over_two_processes_is_that_of_one(runs):
    one, two = (json.loads((run / "metrics.json").read_text()) for run in runs)
    assert two["images"] == one["images"] == 4
    for kind in ("bbox", "segm"):
        assert two[kind] == pytest.approx(one[kind], abs=1e-3)
    one, two = (json.loads((run / "predictions" / "results.json").read_text()) for run in runs)
    assert len(two) == len(one) > 0
    assert {r["image_id"] for r in two} == {r["image_id"] for r in one}


def test_sharded_weights_train_like_whole_ones(runs, tmp_path):
    """They are also saved unsharded, resumed, and evaluated on processes with 2 and 1 images."""
    data, run = tmp_path / "data", tmp_path / "fsdp"
    write_shapes(data, train=7, val=3, image_size=64)
    settings = [*SETTINGS, "--devices", 2, "--strategy", "fsdp"]
    train(data, run, *settings, "--max-steps", 2)
    train(data, run, *settings, "--resume")
    whole, sharded = (load_file(r / "best.safetensors") for r in (runs[1], run))
    events = [
        [json.loads(line) for line in (r / "metrics.jsonl").read_text().splitlines()]
        for r in (runs[1], run)
    ]
    assert [e["step"] for e in events[1] if e["event"] == "eval"] == [2, 3]
    losses = [[e["loss"] for e in lines if e["event"] == "train"] for lines in events]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert {name: t.shape for name, t in whole.items()} == {n: t.shape for n, t in sharded.items()}
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in whole.items():
        torch.testing.assert_close(state[f"detector.{name}"], tensor, rtol=1e-4, atol=1e-6)


def test_each_process_holds_a_part_of_every_weight():
    """Runs on a single process, whose shard is the whole weight."""
    torch.manual_seed(0)
    body = botvision.create_model("botnet50", layers=(1, 1, 1, 1), channels=(16, 16, 32, 32))
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    module = L.LightningModule()
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        module._device_mesh = init_device_mesh(
            "cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel")
        )
        config = ClassificationConfig("data", devices=2, strategy="fsdp")
        shard_if_wanted(module, body, config)
        assert all(isinstance(parameter, DTensor) for parameter in body.parameters())
        # One block at a time is gathered. The weights of the others stay sharded.
        assert sum(isinstance(part, FSDPModule) for part in body.modules()) == 1 + 4
        shard_if_wanted(module, body, config)
        after = whole_tensors(body)
        assert all(torch.equal(after[name], before[name]) for name in before)
        module.model = body
        callback = WholeEvaluation()
        callback.on_validation_start(None, module)
        assert not any(isinstance(parameter, DTensor) for parameter in body.parameters())
        callback.on_validation_end(None, module)
        assert all(isinstance(parameter, DTensor) for parameter in body.parameters())
    finally:
        torch.distributed.destroy_process_group()
