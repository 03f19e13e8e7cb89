"""The console that all commands print to."""

from rich.console import Console


def terminal(quiet: bool = False) -> Console:
    """A console on standard output that prints text as it is, without colors or line breaks.

    Tables that should fit the width of the terminal are printed with ``soft_wrap=False``.
    """
    return Console(highlight=False, soft_wrap=True, markup=False, quiet=quiet)
