"""Files of strangers run no code, open no other file and no connection.

The payload creates a file: if it is there afterwards, code has run.
"""

import json
import pickle
import shutil
import socket

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from botvision.errors import UserError
from botvision.models import check_model_args
from commandline import fail
from tiny import TINY_SETTINGS


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def plant(checkpoint, path):
    """A checkpoint that the command could resume, and the payload in it."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"global_step": 1, "payload": Payload(path)}, checkpoint)
    return path


def test_the_payload_works(tmp_path):
    trace = plant(tmp_path / "last.ckpt", tmp_path / "trace")
    torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_checkpoint_runs_no_code(capsys, tiny_data, tmp_path, resume):
    out = tmp_path / "run"
    trace = plant(out / "checkpoints" / "last.ckpt", tmp_path / "trace")
    line = fail(
        capsys, "train", tiny_data, *TINY_SETTINGS, "--max-steps", "2", "--out", out, *resume
    )
    wanted = "last.ckpt: not a readable checkpoint" if resume else "holds a run already"
    assert wanted in line
    assert not trace.exists()


def test_a_resumed_checkpoint_runs_no_code(capsys, tiny_run, tiny_data, tmp_path):
    """Where the run's own first look at the file would find nothing wrong."""
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    checkpoint = out / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["callbacks"]["payload"] = Payload(tmp_path / "trace")
    torch.save(content, checkpoint)
    fail(capsys, "train", tiny_data, "--out", out, "--resume", "--max-steps", "9")
    assert not (tmp_path / "trace").exists()


def with_model_args(run, path, **model_args):
    """The weights of a run, whose description has further arguments of the model."""
    weights = run / "best.safetensors"
    with safe_open(weights, framework="pt") as file:
        described = json.loads(file.metadata()["botvision"])
    described["model_args"] |= model_args
    save_file(load_file(weights), path, metadata={"botvision": json.dumps(described)})
    return path


@pytest.mark.parametrize(
    "argument",
    ["checkpoint_path", "pretrained_cfg_overlay", "pretrained_cfg", "pretrained", "cache_dir"],
)
def test_a_weights_file_does_not_steer_timm(
    capsys, monkeypatch, tiny_run, tiny_data, tmp_path, argument
):
    def no_network(*arguments):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    trace = tmp_path / "trace"
    pickled = tmp_path / "weights.pth"
    pickled.write_bytes(pickle.dumps(Payload(trace)))
    value = {
        "checkpoint_path": str(pickled),
        "pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/x.pth", "file": str(pickled)},
        "pretrained_cfg": {"url": "http://127.0.0.1:9/x.pth", "file": str(pickled)},
        "pretrained": True,
        "cache_dir": str(tmp_path / "cache"),
    }[argument]
    weights = with_model_args(tiny_run, tmp_path / "other.safetensors", **{argument: value})
    image = tiny_data / "val" / "000000.jpg"
    line = fail(capsys, "predict", weights, image, "--out", tmp_path / "out")
    assert f"botnet50 does not accept '{argument}'" in line
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"model_args": {argument: value}}))
    arguments = ["train", tiny_data, "--config", config, "--out", tmp_path / "run"]
    assert f"does not accept '{argument}'" in fail(capsys, *arguments, "--max-steps", "1")
    assert not trace.exists()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:/tmp", "resnet50.hf-hub:x"])
def test_a_model_name_is_no_address(monkeypatch, name):
    def no_network(*arguments):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    with pytest.raises(UserError):
        check_model_args(name, {"layers": [1, 1, 1, 1]})


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("botnet50", ["layers", "channels", "position", "num_heads", "blocks", "drop_path_rate"]),
        ("botnet_t3", ["se_in_bot", "stride", "act_layer"]),
        ("resnet50_bot_c4", ["stages", "content"]),
        ("resnet50_nl_c4", ["value", "layers"]),
        ("resnet50", ["layers", "aa_layer", "output_stride"]),
        ("convnext_atto", ["dims", "drop_path_rate"]),
        ("efficientnet_b0", ["drop_path_rate", "act_layer"]),
    ],
)
def test_what_an_architecture_takes_is_taken(name, arguments):
    check_model_args(name, dict.fromkeys(arguments))
    with pytest.raises(UserError, match=f"^model_args: {name} does not accept 'no_such'"):
        check_model_args(name, {**dict.fromkeys(arguments), "no_such": 1})
