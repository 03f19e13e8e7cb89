"""The console that the library prints to."""

from __future__ import annotations

from rich.console import Console


def terminal(quiet: bool = False) -> Console:
    """Return a console that prints text unchanged, without markup and without wrapping."""
    return Console(highlight=False, soft_wrap=True, markup=False, quiet=quiet)
