"""The console that the library prints to."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from botvision.text import printable


def terminal(quiet: bool = False) -> Console:
    """Return a console that prints text unchanged, without markup and without wrapping."""
    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False, quiet=quiet)


def print_text(console: Console, text: str) -> None:
    """Print text as it is: no markup, no emoji codes, no wrapping, control characters escaped.

    Args:
        console: console to print to, with any settings.
        text: one or several lines. Names in it that may contain newlines must be ``printable``.
    """
    lines = "\n".join(map(printable, text.split("\n")))
    console.print(Text(lines), soft_wrap=True)


def cell(name: str) -> Text:
    """Return a name as the cell of a table, with control characters escaped and no markup."""
    return Text(printable(name))
