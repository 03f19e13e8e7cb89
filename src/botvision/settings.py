"""Read and check settings from recipes, files and arguments. Imports no heavy libraries."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from botvision.errors import UserError

ConfigT = TypeVar("ConfigT")
Task = Literal["detection", "classification"]

RECIPES = Path(__file__).parent / "recipes"
_TASKS: tuple[Task, ...] = ("detection", "classification")


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
    """Read the settings in a YAML file, such as a run's ``config.yaml``.

    Args:
        path: the YAML file.

    Returns:
        The settings by name, without the ``resolved`` values and ``versions`` of a run.

    Raises:
        UserError: the file does not exist or does not contain a YAML mapping.
    """
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{reason}", parameter="config", value=path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML ({reason}); correct the file") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: contains no settings; write lines such as 'batch_size: 8'")
    return {k: v for k, v in settings.items() if k not in ("resolved", "versions")}


def make_config(config: type[ConfigT], *layers: Mapping[str, Any]) -> ConfigT:
    """Build a configuration from layers of settings. Later layers override earlier ones.

    Args:
        config: a dataclass of ``botvision.config``.
        layers: settings by name. The settings of a nested dataclass are a mapping.

    Returns:
        The configuration.

    Raises:
        UserError: a setting does not exist or its value has the wrong type.
    """
    settings: dict[str, Any] = {}
    for layer in layers:
        settings = _merged(settings, layer)
    _check_names(config, settings)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config, as_group=False)
    try:
        parsed = parser.parse_object(settings).as_dict()
    except ArgumentError as error:
        raise _fault(error) from error
    for field in fields(config):  # type: ignore[arg-type]
        nested = get_type_hints(config)[field.name]
        if is_dataclass(nested):
            parsed[field.name] = nested(**parsed[field.name])  # type: ignore[operator]
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
        if name not in types:
            close = difflib.get_close_matches(str(name), types, 1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else ""
            raise UserError(f"no setting is named {prefix}{name}{hint}")
        if is_dataclass(types[name]) and isinstance(value, Mapping):
            _check_names(types[name], value, f"{name}.")


def _fault(error: ArgumentError) -> UserError:
    """Convert an error of jsonargparse to a UserError that names the setting."""
    text = " ".join(str(error).split())
    match = re.fullmatch(r'Parser key "([\w.]+)": Expected an? (.+)\. Got value: (.*)', text)
    if match is None:
        return UserError(text)
    name, wanted, value = match.groups()
    wanted = re.sub(r"<class '(\w+)'>", r"\1", wanted.replace("typing.Literal", "one of "))
    return UserError(f"expected {wanted}", parameter=name, value=value)
