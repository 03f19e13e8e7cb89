"""Read and check settings from recipes, files and arguments. Imports no heavy libraries."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from math import inf
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from botvision.errors import UserError

ConfigT = TypeVar("ConfigT")
Task = Literal["detection", "classification"]

Rule = tuple[str, Callable[[Any], bool]]

_AT_LEAST_0: Rule = ("must be at least 0", lambda v: 0 <= v < inf)
_AT_LEAST_1: Rule = ("must be at least 1", lambda v: 1 <= v < inf)
_ABOVE_0: Rule = ("must be greater than 0", lambda v: 0 < v < inf)
_UP_TO_1: Rule = ("must be greater than 0 and at most 1", lambda v: 0 < v <= 1)
_FRACTION: Rule = ("must be between 0 and 1", lambda v: 0 <= v <= 1)
_BELOW_1: Rule = ("must be at least 0 and less than 1", lambda v: 0 <= v < 1)
_STAGES: Rule = ("must be between 0 and 5", lambda v: 0 <= v <= 5)
_WORKERS: Rule = ("must be at least 0, or -1 to select it automatically", lambda v: -1 <= v < inf)
# The values that the numeric settings may have. Each number of a list is checked.
_RULES: dict[str, Rule] = {
    name: rule
    for rule, names in {
        _AT_LEAST_0: "epochs max_steps eval_steps patience seed lr weight_decay clip_norm mixup "
        "cutmix warmup_steps max_instances rpn_convs box_convs mask_convs",
        _AT_LEAST_1: "batch_size base_batch_size accumulate devices nodes checkpoint_steps limit "
        "image_size max_detections fpn_channels box_head_dim mask_channels rpn_samples "
        "roi_samples rpn_pre_nms rpn_post_nms",
        _ABOVE_0: "base_lr checkpoint_minutes anchor_sizes anchor_ratios jitter scales",
        _UP_TO_1: "crop_area crop_share",
        _FRACTION: "score_threshold nms_threshold warmup_factor milestones",
        _BELOW_1: "ema_decay momentum smoothing dropout drop_path",
        _STAGES: "freeze_stages",
        _WORKERS: "workers",
    }.items()
    for name in names.split()
}
_INCREASING = ("jitter", "crop_area", "milestones")

RECIPES = Path(__file__).parent / "recipes"
_TASKS: tuple[Task, ...] = ("detection", "classification")


def load_yaml(text: str) -> Any:
    """Read YAML of anybody: plain values only, and no aliases.

    Args:
        text: the YAML.

    Returns:
        The content.

    Raises:
        YAMLError: the text is not YAML, or contains a tag of Python's or an alias.
        ValueError: a value is invalid, such as a date.
        RecursionError: the text is nested too deeply.
    """
    return yaml.load(text, _Loader)  # a subclass of SafeLoader, which runs no code


class _Loader(yaml.SafeLoader):
    """Plain YAML without aliases, which can stand for more content than memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node; raises YAMLError for an alias."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="an alias (*name)", problem_mark=mark)
        return super().compose_node(parent, index)


def recipe_names(task: Task) -> list[str]:
    """Return the names of the recipes for a task, sorted."""
    return sorted(path.stem for path in (RECIPES / task).glob("*.yaml"))


def load_recipe(name: str, task: Task | None = None) -> dict[str, Any]:
    """Return the settings of a recipe, which can be changed and passed to ``botvision.train``.

    Args:
        name: name of the recipe, such as ``"quick"``, see docs/guide.md.
        task: task of the recipe. By default detection, or classification if only classification
            has a recipe of this name.

    Returns:
        The settings by name.

    Raises:
        UserError: there is no such recipe.
    """
    for one in (task,) if task else _TASKS:
        path = RECIPES / one / f"{name}.yaml"
        if name in recipe_names(one):
            return read_settings(path)
    names = recipe_names(task) if task else sorted({n for t in _TASKS for n in recipe_names(t)})
    of = f" for {task}" if task else ""
    raise UserError(
        f"no such recipe{of}; choose one of {', '.join(names)}, or give a file with `config`",
        parameter="recipe",
        value=name,
    )


def read_settings(path: Path | str) -> dict[str, Any]:
    """Read the settings in a YAML file.

    A run's ``config.yaml`` repeats the run in another folder and on the data that is given:
    ``out`` and ``data`` are left out, and so are ``resolved`` and ``versions``.

    Args:
        path: the YAML file.

    Returns:
        The settings by name.

    Raises:
        UserError: the file does not exist or does not contain a YAML mapping.
    """
    try:
        settings = load_yaml(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{reason}", parameter="config", value=path) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}: not valid YAML: {error.problem} in line {line}") from error
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML ({reason}); correct the file") from error
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; correct the file") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: contains no settings; write lines such as 'batch_size: 8'")
    of_a_run = ("data", "out", "resolved", "versions") if "resolved" in settings else ()
    return {name: value for name, value in settings.items() if name not in of_a_run}


def make_config(config: type[ConfigT], *layers: Mapping[str, Any]) -> ConfigT:
    """Build a configuration from layers of settings. Later layers override earlier ones.

    Args:
        config: a dataclass of ``botvision.config``.
        layers: settings by name. The settings of a nested dataclass are a mapping.

    Returns:
        The configuration.

    Raises:
        UserError: a setting does not exist, or its value has the wrong type or is out of range.
    """
    settings: dict[str, Any] = {}
    for layer in layers:
        settings = _merged(settings, layer)
    _check_names(config, settings)
    if isinstance(settings.get("precision"), int):  # as YAML reads 32
        settings["precision"] = str(settings["precision"])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config, as_group=False)
    try:
        parsed = parser.parse_object(settings).as_dict()
    except ArgumentError as error:
        raise setting_error(str(error), lambda name: _hint(config, name)) from error
    for field in fields(config):  # type: ignore[arg-type]
        nested = get_type_hints(config)[field.name]
        if is_dataclass(nested):
            _check_values(parsed[field.name], f"{field.name}.")
            parsed[field.name] = nested(**parsed[field.name])  # type: ignore[operator]
    _check_values(parsed)
    return config(**parsed)


def plain(value: Any) -> Any:
    """Convert a configuration or a part of it to YAML types.

    Args:
        value: a dataclass, or a value of its fields.

    Returns:
        The same content: tuples as lists, paths as strings, and dataclasses as dictionaries.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two layers. Detector settings are merged, model arguments are replaced as a whole."""
    merged = dict(one)
    for name, value in other.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both and name == "detector" else value
    return merged


def _check_names(config: Any, settings: Mapping[str, Any], prefix: str = "") -> None:
    types = get_type_hints(config)
    for name, value in settings.items():
        if name in types and value is None and type(None) not in get_args(types[name]):
            raise UserError(f"expected {_expected(types[name])}", parameter=prefix + name, value="")
        if name not in types:
            close = difflib.get_close_matches(str(name), types, 1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else ""
            raise UserError(f"no setting is named {prefix}{name}{hint}")
        if is_dataclass(types[name]):
            if not isinstance(value, Mapping):
                expected = _expected(types[name])
                raise UserError(f"expected {expected}", parameter=prefix + name, value=value)
            _check_names(types[name], value, f"{name}.")


def _check_values(settings: Mapping[str, Any], prefix: str = "") -> None:
    for name, value in settings.items():
        values = value if isinstance(value, list | tuple) else [value]
        given = " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
        if name in _RULES:
            must, holds = _RULES[name]
            if not all(holds(number) for number in values if number is not None):
                raise UserError(must, parameter=prefix + name, value=given)
        if name in _INCREASING and list(values) != sorted(values):
            raise UserError("must not decrease", parameter=prefix + name, value=given)


def _hint(config: Any, name: str) -> Any:
    """Return the type of a field, or of a field of a nested dataclass."""
    first, _, rest = name.partition(".")
    hint = get_type_hints(config)[first]
    return _hint(hint, rest) if rest else hint


def setting_error(text: str, hint_of: Callable[[str], Any]) -> UserError:
    """Convert a message of jsonargparse about a value to a UserError that names the setting.

    Args:
        text: the message.
        hint_of: returns the type hint of a setting, whose name may contain dots.

    Returns:
        The error, with the setting as its ``parameter`` if the message names one.
    """
    text = " ".join(text.split())
    match = re.fullmatch(
        r'Parser key "([\w.]+)"(?: element \d+)?: .*?(?:(?:Got|Given) value: (.*))?', text
    )
    if match is None:
        return UserError(text)
    name, value = match.groups()
    return UserError(f"expected {_expected(hint_of(name))}", parameter=name, value=value)


def _expected(hint: Any) -> str:
    """Describe the values of a type in words."""
    options = [option for option in get_args(hint) if option is not type(None)]
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_expected, options))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, options))}"
    if get_origin(hint) in (tuple, list):
        return f"{'one or more' if ... in options or hint is list else len(options)} numbers"
    words = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    named = is_dataclass(hint) or get_origin(hint) is dict
    return "names and values, such as {name: value}" if named else words.get(hint, "text")
