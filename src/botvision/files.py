"""Atomic writing of files."""

from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a killed process leaves no partial file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
