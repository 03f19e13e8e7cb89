"""Weights files: any card around small weights, and any bytes."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save

from botvision.detection import build_detector
from botvision.detection.weights import load_detector_weights
from botvision.errors import UserError
from botvision.tasks.checkpoint import load_model
from fuzz.mutations import mutated

_GOLDEN = Path(__file__).parents[1] / "golden"
_FILES = [_GOLDEN / "run" / "best.safetensors", _GOLDEN / "classifier.safetensors"]
_CONTENTS = [path.read_bytes() for path in _FILES]
_TENSORS = [load_file(path) for path in _FILES]


def _card(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["botvision"])


_CARDS = [_card(path) for path in _FILES]
_NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, 7, 64, 10**5, 10**9, 2**63])
_VALUES = st.recursive(
    st.none() | st.booleans() | _NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
_ARGUMENTS = ["layers", "channels", "num_heads", "stride", "position", "depths", "act_layer"]
_MODELS = ["resnet18", "botnet50_s1", "resnet50_nl_c4", "convnext_atto", "vit_tiny_patch16_224"]


@st.composite
def _changed_cards(draw):
    """A card with up to three fields changed, removed or added, and the number of its weights."""
    number = draw(st.integers(0, 1))
    card = json.loads(json.dumps(_CARDS[number]))
    for _ in range(draw(st.integers(1, 3))):
        inner = card
        nested = [name for name, value in card.items() if isinstance(value, dict)]
        if nested and draw(st.booleans()):
            inner = card[draw(st.sampled_from(nested))]
        name = draw(st.sampled_from([*inner, "schema", *_ARGUMENTS]) | st.text(max_size=9))
        if name == "model" and draw(st.booleans()):
            inner[name] = draw(st.sampled_from(_MODELS))
        elif draw(st.integers(0, 4)) == 0:
            inner.pop(name, None)
        else:
            inner[name] = draw(_VALUES)
    return card, number


def read(path):
    """Load a model from a file, and the file as initial weights."""
    try:
        load_model(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    try:
        load_detector_weights(_DETECTOR, path, ("circle", "dog"))
    except UserError as error:
        assert "\n" not in str(error)


_DETECTOR = build_detector("botnet50", 2, 64, model_args={"layers": [1, 1, 1, 1]})


@given(_changed_cards())
def test_any_card(tmp_path, changed):
    card, number = changed
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(_TENSORS[number], metadata={"botvision": json.dumps(card)}))
    read(path)


@given(st.text(max_size=200) | _VALUES.map(json.dumps))
def test_any_text_as_a_card(tmp_path, text):
    path = tmp_path / "model.safetensors"
    path.write_bytes(
        save(_TENSORS[1], metadata={"botvision": text.encode(errors="replace").decode()})
    )
    read(path)


@given(mutated(_CONTENTS) | st.binary(max_size=300))
def test_any_bytes(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    read(path)
