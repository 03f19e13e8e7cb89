"""Values of a JSON file that any tool may have written, each checked when it is read."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from botvision.errors import UserError

_NUMBER = re.compile(r"\s*[+-]?(\d{1,30}\.?\d{0,30}|\.\d{1,30})([eE][+-]?\d{1,3})?\s*", re.ASCII)
_SHOWN = 40  # characters of a wrong value in a message


class Malformed(ValueError):  # noqa: N818, what an entry is
    """An entry is not what it should be; the message completes "annotations[3]: "."""


def load_json(file: Path) -> Any:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Args:
        file: path of the file.

    Returns:
        The content.

    Raises:
        UserError: the file cannot be read or is not JSON.
    """
    try:
        if file.exists() and not file.is_file():  # reading a named pipe would wait for ever
            raise UserError(f"{file}: is not a regular file; give the annotations as a file")
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check the path") from None
    try:
        text = content.decode(json.detect_encoding(content))
    except UnicodeDecodeError:
        raise UserError(
            f"{file}: is not JSON (its bytes are not UTF-8, UTF-16 or UTF-32); export or copy the "
            "file again"
        ) from None
    del content
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} in line {error.lineno}, column {error.colno}"
    except RecursionError:
        reason = "its lists are nested too deeply"
    except ValueError:
        reason = "a number has thousands of digits"
    raise UserError(f"{file}: is not JSON ({reason}); export or copy the file again")


def shown(value: Any) -> str:
    """A value in a message: short, in one line, as it is written in JSON."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def number(value: Any, name: str) -> float:
    """The number that ``value`` is, or that it contains as text.

    Args:
        value: a value of a JSON file.
        name: what it is, for the error message.

    Returns:
        The number, which may be infinite or NaN.

    Raises:
        Malformed: it is not a number.
    """
    kind = type(value)
    if kind is float:
        return float(value)
    if kind is int or (kind is str and _NUMBER.fullmatch(value)):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    raise Malformed(f"{name} is {shown(value)}, which is not a number")


def whole(value: Any, name: str) -> int:
    """The whole number that ``value`` is: 12, 12.0, "12" or "12.0".

    Args:
        value: a value of a JSON file.
        name: what it is, for the error message.

    Returns:
        The number, of any size.

    Raises:
        Malformed: it is not a whole number.
    """
    if type(value) is int:
        return value
    if type(value) is str and _NUMBER.fullmatch(value):
        digits, _, rest = value.strip().partition(".")
        if not rest.strip("0") and digits.lstrip("+-").isdigit():  # exact beyond 2**53
            return int(digits)
        value = float(value)
    if type(value) is float and value.is_integer():
        return int(value)
    raise Malformed(f"{name} is {shown(value)}, which is not a whole number")


def flag(value: Any, name: str) -> bool:
    """Whether ``value`` is 1 or true, or these as text; null is false.

    Args:
        value: a value of a JSON file.
        name: what it is, for the error message.

    Returns:
        The flag.

    Raises:
        Malformed: it is not 0 or 1.
    """
    if value is None or type(value) is bool:
        return bool(value)
    if type(value) is str and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value not in (0, 1) and (type(value) is not str or whole(value, name) not in (0, 1)):
        raise Malformed(f"{name} is {shown(value)}, which is not 0 or 1")
    return bool(whole(value, name))


def text(value: Any, name: str) -> str:
    """The text that ``value`` is, or the digits of a number.

    Args:
        value: a value of a JSON file.
        name: what it is, for the error message.

    Returns:
        The text.

    Raises:
        Malformed: it is empty or not text, or contains a half of a UTF-16 pair or a null character.
    """
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return str(value)
    if type(value) is not str or not value.strip():
        raise Malformed(f"{name} is {shown(value)}, which is not a name")
    if "\0" in value or (not value.isascii() and re.search("[\ud800-\udfff]", value)):
        raise Malformed(f"{name} is {shown(value)}, which contains an invalid character")
    return value


def field(entry: dict[str, Any], name: str) -> Any:
    """``entry[name]``; raises Malformed if it is missing."""
    try:
        return entry[name]
    except KeyError:
        raise Malformed(f"has no {name!r}") from None
