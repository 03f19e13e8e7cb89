"""What the subcommands' parsers have in common; nothing heavy loads here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

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

    def add_config(
        self, config: type, *, switches: Sequence[str] = (), lists: Sequence[str] = ()
    ) -> None:
        """Every field of a dataclass as an option, its docstring as the help.

        Args:
            config: the dataclass; fields without a default are positionals.
            switches: Boolean fields whose option takes no value.
            lists: fields whose option takes several numbers.
        """
        skip = {*switches, *lists}
        self.add_class_arguments(config, as_group=False, as_positional=True, skip=skip)
        params = docstring_parser.parse(config.__doc__ or "").params
        texts = {param.arg_name: param.description for param in params}
        for name in switches:
            self.add_argument(f"--{name}", action="store_true", help=texts[name])
        for name in lists:
            self.add_argument(f"--{name}", type=float, nargs="+", help=texts[name])
        for action in self._actions:
            dashed = [option.replace("_", "-") for option in action.option_strings]
            for option in set(dashed) - set(action.option_strings):
                self._option_string_actions[option] = action
            action.option_strings = dashed

    def given(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The options that ``arguments`` give, without defaults."""
        return dict(self.parse_args(list(arguments), defaults=False).as_dict())


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
