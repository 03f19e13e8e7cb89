"""Common parts of the subcommands' parsers. Loads nothing heavy."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser

from botvision.errors import UserError
from botvision.launcher import Launcher
from botvision.settings import setting_error
from botvision.text import printable


class HelpFormatter(argparse.HelpFormatter):
    """Appends the default to the help of an option, and writes flags for names in backticks."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = re.sub(r"`([a-z_]+)`", lambda match: f"--{dashed(match[1])}", action.help or "")
        absent = action.default in (None, False, argparse.SUPPRESS) or action.default == {}
        if absent or "default" in text or not action.option_strings:
            return text
        value = action.default
        if isinstance(value, list | tuple):
            value = " ".join(map(_short, value))
        return f"{text.removesuffix('.')} (default: {_short(value)})."


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Parser(ArgumentParser):
    """Parser with dashed options in titled groups and one-line error messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, formatter_class=HelpFormatter, **kwargs)
        # Returns the options of another task, and the models that they apply to.
        self.other_options: Callable[[], dict[str, str]] = dict

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error in one line and exit with status 2."""
        line = " ".join(str(message).split())
        unknown = line.removeprefix("unrecognized arguments: ")
        if unknown != line:
            line = self._unknown(unknown.split()[0])
        else:
            fault = setting_error(line, self._hint)
            line = fault.message
            if fault.parameter is not None:
                line = f"--{dashed(fault.parameter)} {fault.value}: {line}"
        launcher = Launcher.current()
        if launcher is None or launcher.rank == 0:  # all its processes have the same arguments
            print(f"{self.prog}: error: {printable(line)}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)

    def _hint(self, name: str) -> Any:
        """Return the type of an option."""
        return next((a._typehint for a in self._actions if a.dest == name), str)  # type: ignore[attr-defined]

    def _unknown(self, argument: str) -> str:
        """Describe an argument that the parser does not have."""
        option = argument.partition("=")[0]
        if not option.startswith("-"):
            return f"unexpected argument {option}"
        if (kind := self.other_options().get(option)) is not None:
            return f"{option} applies only to {kind}"
        close = difflib.get_close_matches(option, self.options(), 1)
        hint = f"; did you mean --{dashed(close[0][2:])}?" if close else ""
        return f"no option is named {option}{hint}"

    def add_train_config(self, config: type) -> None:
        """Add every field of a training dataclass as an option, and DATA as a positional."""
        self.add_class_arguments(config, as_group=False, as_positional=True)
        for action in self._actions:
            options = [dashed(option) for option in action.option_strings]
            for option in set(options) - set(action.option_strings):
                self._option_string_actions[option] = action
            action.option_strings = options

    def set_groups(self, groups: Mapping[str, Sequence[str]]) -> None:
        """Group the options under titles in the help, in this order.

        Args:
            groups: field names by title. Names that the parser does not have are skipped. A name
                that ends in a dot stands for all nested fields.
        """
        for title, names in groups.items():
            group = self.add_argument_group(title)
            for action in list(self._actions):
                option = action.option_strings[-1] if action.option_strings else ""
                if not any(_names(option, name) for name in names):
                    continue
                for other in self._action_groups:
                    if action in other._group_actions:
                        other._group_actions.remove(action)
                group._group_actions.append(action)

    def options(self) -> set[str]:
        """Return all options, such as ``--batch-size``, including those of subcommands."""
        parsers = [self]
        if self._subcommands_action is not None:
            parsers += self._subcommands_action.choices.values()
        return {option for parser in parsers for option in parser._option_string_actions}

    def given(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Parse ``arguments`` and return only the options that they contain, without defaults."""
        return dict(self.parse_args(list(arguments), defaults=False).as_dict())


def _names(option: str, name: str) -> bool:
    flag = f"--{dashed(name)}"
    return option == flag or (name.endswith(".") and option.startswith(flag))


def dashed(name: str) -> str:
    """Return the name of a field as in its flag, with dashes."""
    return name.replace("_", "-")


def config_parser(config: type[Any]) -> Parser:
    """Build a parser from the fields of a dataclass. Its docstring provides the help.

    Positional fields become positional arguments and keyword-only fields become options. A list
    accepts several values, and a bool is a switch.

    Args:
        config: a dataclass whose docstring documents every field under ``Args:``.

    Returns:
        The parser. Its options are not in groups.
    """
    documentation = docstring_parser.parse(config.__doc__ or "")
    helps = {parameter.arg_name: parameter.description for parameter in documentation.params}
    types = get_type_hints(config)
    parser = Parser(description=documentation.description)
    for field in fields(config):
        name = f"--{dashed(field.name)}" if field.kw_only else field.name
        settings = _type_settings(field, types[field.name])
        parser.add_argument(name, help=helps[field.name], **settings)
    return parser


def _type_settings(field: Field[Any], hint: Any) -> dict[str, Any]:
    """Return the arguments of ``add_argument`` for a field's type and default."""
    settings: dict[str, Any] = {}
    if field.default_factory is not MISSING:
        settings["default"] = field.default_factory()
    elif field.default is not MISSING:
        settings["default"] = field.default
    if hint is bool:
        return {**settings, "action": "store_true"}
    for option in (hint, *get_args(hint)):  # a list, or a list or None
        if get_origin(option) is tuple and settings.get("default") is None:  # of a fixed length
            count = len(get_args(option))
            return {**settings, "type": get_args(option)[0], "nargs": count}
        if get_origin(option) is list:
            (item,) = get_args(option)
            return {**settings, "type": item, "nargs": "+" if field.kw_only else "*"}
    return {**settings, "type": hint}


def join_numbers(arguments: Sequence[str]) -> list[str]:
    """Write an option followed by several numbers as one argument: ``--jitter=[0.5, 2]``."""
    joined: list[str] = []
    numbers: list[str] = []
    for argument in [*arguments, ""]:
        if joined and joined[-1].startswith("--") and _is_number(argument):
            numbers.append(argument)
            continue
        if len(numbers) > 1:
            joined[-1] += f"=[{', '.join(numbers)}]"
        else:
            joined += numbers
        numbers = []
        joined.append(argument)
    return joined[:-1]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def take(arguments: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """Split arguments into those without ``option``, and the values of ``option``.

    Args:
        arguments: arguments of the command.
        option: the option with its dashes, such as ``--task``.

    Returns:
        Two lists, both in the order of ``arguments``.

    Raises:
        UserError: the option is the last argument and has no value.
    """
    rest, values = [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name != option:
            rest.append(argument)
            continue
        following = value if equals else next(remaining, None)
        if following is None:
            raise UserError(f"{option} needs a value")
        values.append(following)
    return rest, values
