"""A weights file of a stranger: every damage is one line that names the file and the field."""

import json
import math
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from botvision.config import ClassificationConfig, DetectionConfig
from botvision.data.categories import Categories
from botvision.errors import UserError
from botvision.tasks.checkpoint import SCHEMA, ClassifierSpec, DetectorSpec, load_model

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = {
    "detector": GOLDEN / "run" / "best.safetensors",
    "classifier": GOLDEN / "classifier.safetensors",
}
LEFT_OUT = "(left out)"


def card_of(kind):
    with safe_open(FILES[kind], framework="pt") as file:
        return json.loads(file.metadata()["botvision"])


def tensors_of(kind):
    return load_file(FILES[kind])


def refused(path, content):
    """The message of a file with this content, and that it takes no time and one line."""
    path.write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        load_model(path)
    assert time.perf_counter() - start < 10
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and len(line.splitlines()) == 1
    assert len(line) - len(str(path)) < 800
    return line.removeprefix(f"{path}: ")


def file_with(kind, card=None, tensors=None):
    card = card_of(kind) if card is None else card
    tensors = tensors_of(kind) if tensors is None else tensors
    text = card if isinstance(card, str) else json.dumps(card)
    return save(tensors, metadata={"botvision": text})


def changed(kind, field, value):
    card = card_of(kind)
    *path, last = field.split(".")
    inner = card
    for name in path:
        inner = inner[name]
    if value is LEFT_OUT:
        del inner[last]
    else:
        inner[last] = value
    return card


@pytest.mark.parametrize("kind", FILES)
def test_an_unchanged_file_is_loaded(kind, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_with(kind))
    model, _ = load_model(path)
    for name, tensor in load_file(FILES[kind]).items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_half_precision_is_loaded(tmp_path):
    path = tmp_path / "model.safetensors"
    halved = {
        k: v.half() if v.is_floating_point() else v for k, v in tensors_of("detector").items()
    }
    save_file(halved, path, metadata={"botvision": json.dumps(card_of("detector"))})
    model, _ = load_model(path)
    assert model.backbone.body.conv1.weight.dtype == torch.float32


WRONG = [
    *(("detector", name, LEFT_OUT) for name in ("model", "task", "image_size", "norm", "detector")),
    *(("detector", name, LEFT_OUT) for name in ("model_args", "categories", "categories.names")),
    *(("detector", f"detector.{name}", LEFT_OUT) for name in card_of("detector")["detector"]),
    *(("classifier", name, LEFT_OUT) for name in ("model", "image_size", "norm", "model_args")),
    *(("classifier", name, LEFT_OUT) for name in ("classes", "mean", "std", "crop_share")),
    *(("detector", "image_size", v) for v in (0, -64, 10**9, 64.5, "64", None, True, [64], 1e300)),
    *(("detector", "model", v) for v in (None, 3, "a" * 1000, ["botnet50"])),
    *(("detector", "norm", v) for v in ("batch", None, 1, [])),
    *(("detector", "task", v) for v in ("keypoints", None, 5, {})),
    *(("detector", "model_args", v) for v in (None, [], "x", {"layers": [10**6] * 4})),
    *(("detector", "model_args", {"layers": v}) for v in ([125, 125, 125, 126], 10**9, 1e9)),
    *(("detector", "model_args", {"channels": v}) for v in ([10**9] * 4, math.nan, math.inf)),
    *(("detector", "model_args", {"channels": v}) for v in ([1] * 10**5, [[[[[[1]]]]]])),
    *(("detector", "detector", v) for v in (None, [], "/etc/passwd", 4)),
    *(("detector", "detector.fpn_channels", v) for v in (0, 10**9, "16", 16.5)),
    *(("detector", "detector.anchor_sizes", v) for v in ([], [8] * 4, [8] * 6, "8", [0] * 5)),
    *(("detector", "detector.anchor_ratios", v) for v in ([], [0.0], [math.nan], [1] * 10**6)),
    *(("detector", "detector.rpn_convs", v) for v in (-1, 10**9)),
    *(("detector", "detector.score_threshold", v) for v in (2, -1, math.nan, "0.5", None)),
    *(("detector", "detector.max_detections", v) for v in (0, -1, 10**12)),
    *(("detector", "detector.head_norm", v) for v in (0, "false", None)),
    *(("detector", "categories", v) for v in (None, [], {"ids": [1], "names": []})),
    *(("detector", "categories.ids", v) for v in ([1, 1, 2, 3], ["1", 2, 3, 4], None)),
    *(("detector", "categories.ids", v) for v in ([1.5, 2, 3, 4], [2**64, 1, 2, 3])),
    *(("detector", "categories.names", v) for v in ([1, 2, 3, 4], ["a"] * 4, ["a" * 10**5] * 4)),
    *(("detector", "objects", v) for v in (["os"], "impl", None, ["impl"] * 1000)),
    *(("classifier", "classes", v) for v in ([], None, "abc", [1, 2, 3], ["a"] * 100_001)),
    *(("classifier", "mean", v) for v in ([0.5], ["0"] * 3, [math.nan] * 3, 0.5)),
    *(("classifier", "std", v) for v in ([0.0] * 3, [-1.0] * 3, [math.inf] * 3)),
    *(("classifier", "crop_share", v) for v in (0, 2, math.nan, None, "1")),
    *(("detector", field, 1) for field in ("extra", "detector.extra", "categories.extra")),
]


@pytest.mark.parametrize(
    ("kind", "field", "value"), WRONG, ids=lambda value: str(value)[:30].replace(" ", "")
)
def test_a_wrong_field_is_named(kind, field, value, tmp_path):
    line = refused(tmp_path / "model.safetensors", file_with(kind, changed(kind, field, value)))
    assert line.startswith("the specification of the model is damaged: ")
    assert field in line


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "3", '"text"', "[" * 100_000, "9" * 5000, "{}", '{"task": {}}', "NaN"],
    ids=lambda text: text[:10],
)
def test_what_is_no_card(text, tmp_path):
    line = refused(tmp_path / "model.safetensors", file_with("classifier", text))
    expected = "not a botvision model" if text == "null" else "the specification of the model is"
    assert line.startswith(expected)


def test_a_card_of_a_later_version(tmp_path):
    card = {**card_of("detector"), "schema": 99, "version": "9.0"}
    line = refused(tmp_path / "a.safetensors", file_with("detector", card))
    assert line == "written by a later version of botvision (9.0); upgrade botvision"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("model", value) for value in ("resnet51", "hf-hub:a/b", "../x", "botnet50.x", "\n")),
        ("model_args", {"depth": 3}),
        ("model_args", {"layers": "text"}),
        ("model_args", {"layers": [1, 1, 1, 1], "act_layer": "no_such"}),
        ("model_args", {"block": "Bottleneck"}),
        ("model_args", {"num_heads": 7}),
    ],
)
def test_what_cannot_be_built(field, value, tmp_path):
    card = changed("detector", field, value)
    line = refused(tmp_path / "model.safetensors", file_with("detector", card))
    assert line.startswith("the specification of the model describes no ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 65),
        ("detector.fpn_channels", 4096),
        ("detector.box_head_dim", 65536),
        ("model_args", {"layers": [125, 125, 125, 125], "channels": [4096] * 4}),
        ("model_args", {}),
        ("model", "resnet152"),
        ("task", "detection"),
        ("categories", {"ids": list(range(100_000)), "names": list(map(str, range(100_000)))}),
    ],
)
def test_another_model_than_the_weights_is_not_built(field, value, tmp_path):
    """The largest that a card may describe takes no memory."""
    card = changed("detector", field, value)
    line = refused(tmp_path / "model.safetensors", file_with("detector", card))
    assert line.startswith("the weights do not match the specification: ")


def test_weights_that_are_not_numbers(tmp_path):
    for value in (math.nan, math.inf):
        tensors = tensors_of("classifier")
        tensors["fc.bias"][1] = value
        line = refused(tmp_path / "a.safetensors", file_with("classifier", tensors=tensors))
        assert line.startswith("fc.bias contains NaN or infinity")


@pytest.mark.parametrize("kind", FILES)
def test_tensors_of_another_model(kind, tmp_path):
    whole = tensors_of(kind)
    name = next(n for n in whole if n.endswith("conv1.weight"))
    for tensors, problem in [
        ({k: v for k, v in whole.items() if k != name}, f"{name} is missing"),
        ({**whole, "a\nb": torch.zeros(1)}, r"a\nb is not a part of the model"),
        ({**whole, name: whole[name][:1]}, f"{name} has the shape (1, 3, 7, 7) instead of"),
        ({**whole, name: whole[name].long()}, f"{name} has the type I64"),
        ({}, "is missing"),
    ]:
        line = refused(tmp_path / "a.safetensors", file_with(kind, tensors=tensors))
        assert line.startswith("the weights do not match the specification: ")
        assert problem in line


@pytest.mark.parametrize("kind", FILES)
def test_damaged_bytes(kind, tmp_path):
    whole = FILES[kind].read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    huge = (2**62).to_bytes(8, "little") + whole[8:]
    cuts = [whole[:n] for n in (0, 1, 8, 100, start - 1, start, start + 5, len(whole) - 1)]
    for content in [*cuts, whole + b"\0", huge, b"\0" * len(whole), whole[:start] + b"\0"]:
        line = refused(tmp_path / "model.safetensors", content)
        assert line.startswith("not a readable safetensors file")


def test_settings_that_could_not_be_loaded_are_refused_before_training():
    categories = Categories((1,), ("cat",))
    for settings, parameter in [
        ({"image_size": 10**9}, "image_size"),
        ({"model_args": {"act_layer": torch.nn.SiLU}}, "model_args"),
        ({"model_args": {"layers": [1000] * 4}}, "model_args"),
    ]:
        with pytest.raises(UserError, match=f"^{parameter} .*: must be "):
            DetectorSpec.of(DetectionConfig("data", **settings), "detection", categories)
        with pytest.raises(UserError, match=f"^{parameter} .*: must be "):
            ClassifierSpec.of(ClassificationConfig("data", **settings), ("cat",))


def test_a_saved_card_is_checked_whole(tiny_run):
    """Every field that is saved has a rule, and is required."""
    with safe_open(tiny_run / "best.safetensors", framework="pt") as file:
        card = json.loads(file.metadata()["botvision"])
    assert set(card) == {*card_of("detector"), "schema", "objects", "pixel_range", "page"}
    assert set(card["detector"]) == set(card_of("detector")["detector"])
    assert card["schema"] == SCHEMA
