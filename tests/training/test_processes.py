"""A detector on two processes, beside one."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tiny import TINY_SETTINGS

# One thread each: the order of a sum must not differ.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def train(data, out, *more):
    arguments = ["train", data, *TINY_SETTINGS, "--out", out, "--max-steps", "3", *more]
    command = [sys.executable, "-m", "botvision", *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory):
    """A detector's losses are means over what was sampled from the images of a process, so what two
    processes do is what one does with a step in two parts, random samples included."""
    out = tmp_path_factory.mktemp("runs")
    settings = ["--norm", "frozen", "--batch-size", "4"]
    return [
        train(tiny_data, out / name, *settings, f"--{name}", 2)
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
