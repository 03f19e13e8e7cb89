"""What the subcommands' parsers have in common; nothing heavy loads here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser

from botvision.errors import UserError


class Parser(ArgumentParser):
    """Options with dashes, and errors of one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and exit with status 2."""
        line = " ".join(str(message).split())
        print(f"{self.prog}: error: {line}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)

    def add_train_config(self, config: type) -> None:
        """Every field of a training's dataclass as an option, DATA as the positional."""
        self.add_class_arguments(config, as_group=False, as_positional=True)
        for action in self._actions:
            dashed = [option.replace("_", "-") for option in action.option_strings]
            for option in set(dashed) - set(action.option_strings):
                self._option_string_actions[option] = action
            action.option_strings = dashed

    def options(self) -> set[str]:
        """All options, such as ``--batch-size``, those of subcommands included."""
        parsers = [self]
        if self._subcommands_action is not None:
            parsers += self._subcommands_action.choices.values()
        return {option for parser in parsers for option in parser._option_string_actions}

    def given(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The options that ``arguments`` give, without defaults."""
        return dict(self.parse_args(list(arguments), defaults=False).as_dict())


def config_parser(config: type[Any]) -> Parser:
    """A parser of the fields of a dataclass, whose docstring is the help.

    Positional fields become positional arguments and keyword-only fields become options. A list
    accepts several values, and a bool is a switch.
    """
    documentation = docstring_parser.parse(config.__doc__ or "")
    helps = {parameter.arg_name: parameter.description for parameter in documentation.params}
    types = get_type_hints(config)
    parser = Parser(description=documentation.description)
    for field in fields(config):
        name = f"--{field.name.replace('_', '-')}" if field.kw_only else field.name
        settings = _type_settings(field, types[field.name])
        parser.add_argument(name, help=helps[field.name], **settings)
    return parser


def _type_settings(field: Field[Any], hint: Any) -> dict[str, Any]:
    """The arguments of ``add_argument`` that follow from a field's type and default."""
    settings: dict[str, Any] = {}
    if field.default_factory is not MISSING:
        settings["default"] = field.default_factory()
    elif field.default is not MISSING:
        settings["default"] = field.default
    if hint is bool:
        return {**settings, "action": "store_true"}
    for option in (hint, *get_args(hint)):  # a list, or a list or None
        if get_origin(option) is list:
            (item,) = get_args(option)
            return {**settings, "type": item, "nargs": "+" if field.kw_only else "*"}
    return {**settings, "type": hint}


def take(arguments: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """The arguments without ``option``, and its values.

    Raises:
        UserError: the option is last, without a value.
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
