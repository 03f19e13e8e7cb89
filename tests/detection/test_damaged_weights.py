"""Initial weights from a damaged or hostile file: one line, and the detector is unchanged."""

import json

import pytest
import torch
from safetensors.torch import save_file

from botvision.config import DetectorConfig
from botvision.detection import build_detector
from botvision.detection.weights import load_detector_weights
from botvision.errors import UserError

CLASSES = ("cat", "dog")
CONFIG = DetectorConfig(fpn_channels=16, box_head_dim=16, mask_convs=1, mask_channels=16)
MODEL_ARGS = {"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32]}
SCORES = "roi_heads.box_predictor.cls_score"


@pytest.fixture
def detector():
    return build_detector("botnet50", 2, 64, config=CONFIG, model_args=MODEL_ARGS)


def refused(detector, path):
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_detector_weights(detector, path, CLASSES)
    for name, tensor in detector.state_dict().items():
        assert torch.equal(tensor, before[name])
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and len(line.splitlines()) == 1
    return line


def test_nan_is_named(detector, tmp_path):
    path = tmp_path / "nan.safetensors"
    weights = dict(detector.state_dict())
    weights["backbone.body.conv1.weight"] = weights["backbone.body.conv1.weight"] * torch.nan
    save_file(weights, path)
    assert "backbone.body.conv1.weight contains NaN or infinity" in refused(detector, path)


@pytest.mark.parametrize(
    "odd",
    [
        torch.eye(3).to_sparse(),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        torch.ones(3, dtype=torch.complex64),
        torch.ones(1).expand(10**12),
        torch.empty(3, device="meta"),
    ],
    ids=["sparse", "quantized", "complex", "expanded", "meta"],
)
def test_only_plain_tensors_are_accepted(detector, odd, tmp_path):
    path = tmp_path / "odd.pth"
    torch.save({**detector.state_dict(), f"{SCORES}.bias": odd}, path)
    assert f"{SCORES}.bias is not a plain tensor" in refused(detector, path)


@pytest.mark.parametrize("tensor", [torch.tensor(1.0), torch.zeros(0), torch.zeros(3, 3, 3)])
def test_predictors_of_any_shape_are_one_line(detector, tensor, tmp_path):
    for name in (f"{SCORES}.bias", f"{SCORES}.weight", "backbone.fpn.layer_blocks.0.0.weight"):
        for suffix, save in (("pth", torch.save), ("safetensors", save_file)):
            path = tmp_path / f"file.{suffix}"
            save({**detector.state_dict(), name: tensor}, path)
            assert "not the weights of this architecture" in refused(detector, path)


@pytest.mark.parametrize(
    "card",
    ["[", "[" * 10**5, '{"categories": {"names": ["a", "b", "c", "dog"]}}'],
)
def test_a_damaged_card_is_one_line(detector, card, tmp_path):
    path = tmp_path / "card.safetensors"
    save_file(detector.state_dict(), path, metadata={"botvision": card})
    line = refused(detector, path)
    assert "specification of the model is damaged" in line or "contains 4 class names" in line


@pytest.mark.parametrize(
    "card", [3, [], "text", {"categories": 3}, {"categories": {"names": 5}}, {"categories": [1]}]
)
def test_a_file_without_class_names_has_none(detector, card, tmp_path):
    path = tmp_path / "card.safetensors"
    save_file(detector.state_dict(), path, metadata={"botvision": json.dumps(card)})
    assert load_detector_weights(detector, path, CLASSES).kept == []


def test_damaged_files_are_one_line(detector, tmp_path):
    for suffix, save in (("pth", torch.save), ("safetensors", save_file)):
        path = tmp_path / f"whole.{suffix}"
        save(detector.state_dict(), path)
        whole = path.read_bytes()
        path = tmp_path / f"cut.{suffix}"
        for content in (b"", b"\0" * 1000, whole[: len(whole) // 2], whole[:-1], whole[1:]):
            path.write_bytes(content)
            assert "not a readable safetensors or weights_only PyTorch file" in refused(
                detector, path
            )


def test_keys_that_are_no_names(detector, tmp_path):
    path = tmp_path / "keys.pth"
    torch.save({3: torch.ones(2), ("a",): torch.ones(2)}, path)
    assert "not the weights of this architecture" in refused(detector, path)
