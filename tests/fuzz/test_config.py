"""Config files: any YAML text, and any value of any setting."""

from dataclasses import fields

import yaml
from hypothesis import given
from hypothesis import strategies as st

from botvision.config import ClassificationConfig, DetectionConfig, DetectorConfig
from botvision.errors import UserError
from botvision.settings import load_recipe, read_settings
from botvision.tasks.config import training_config

_NAMES = sorted({f.name for c in (DetectionConfig, ClassificationConfig) for f in fields(c)})
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
_DETECTOR = st.dictionaries(st.sampled_from([f.name for f in fields(DetectorConfig)]), _VALUES)
_SETTINGS = st.dictionaries(
    st.sampled_from(_NAMES) | st.text(max_size=9), _VALUES | _DETECTOR, max_size=4
)
_RECIPE = yaml.safe_dump({**load_recipe("quick"), "resolved": {"steps": 8}})


def settle(layer):
    """Build the settings of a run from a file's content."""
    try:
        config = training_config("shapes", config=layer, settings={})
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert isinstance(config, DetectionConfig | ClassificationConfig)


@given(_SETTINGS, st.sampled_from(["detection", "classification"]))
def test_any_value_of_any_setting(layer, task):
    settle({"task": task, **layer})


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_file(tmp_path, content):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    read_and_settle(file)


@given(st.data())
def test_a_mutated_file(tmp_path, data):
    text = bytearray(_RECIPE.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text) - 1))
        if data.draw(st.booleans()):
            text[place] = data.draw(st.integers(0, 255))
        else:
            del text[place : place + data.draw(st.integers(1, 9))]
    file = tmp_path / "config.yaml"
    file.write_bytes(text)
    read_and_settle(file)


def read_and_settle(file):
    """Read a file, and build settings from it."""
    try:
        layer = read_settings(file)
    except UserError as error:
        assert "\n" not in str(error)
        return
    settle(layer)
