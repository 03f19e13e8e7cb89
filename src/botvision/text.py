"""Text of others, such as names of files and classes, made safe to print and to draw."""

from __future__ import annotations

import unicodedata

# Control characters, invisible formatting (which can reverse the order of what follows), halves of
# a character (bytes of a file name that are not UTF-8), and separators of lines and paragraphs.
_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Zero-width joiners belong to the spelling of several scripts and to emoji.
_JOINERS = "\u200c\u200d"


def printable(text: object) -> str:
    r"""Return text in one line, with control characters escaped.

    Args:
        text: any text, or an object whose ``str()`` is one, such as a path.

    Returns:
        The same text with escapes such as ``\n``, ``\x1b`` and ``\u202e``. Text without control
        characters is unchanged.
    """
    string = str(text)
    if string.isprintable():
        return string
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in _ESCAPED and c not in _JOINERS
        else c
        for c in string
    )


def shortened(text: object, length: int) -> str:
    """Return ``printable(text)``, cut to ``length`` characters with an ellipsis."""
    string = printable(text)
    return string if len(string) <= length else f"{string[: length - 1]}…"
