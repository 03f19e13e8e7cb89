"""Where the library prints what a user may want to read."""

from __future__ import annotations

from rich.console import Console


def terminal(quiet: bool = False) -> Console:
    """A console that prints text as it is: names in it are no markup, and lines are not cut."""
    return Console(highlight=False, soft_wrap=True, markup=False, quiet=quiet)
