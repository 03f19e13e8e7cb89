"""Entries and images of a data set that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

from botvision.errors import UserError


class BadEntryError(UserError):
    """An entry or an image cannot be read; ``skipped`` would leave it out."""


@dataclass(frozen=True)
class Skipped:
    """An entry or an image that is not used because it cannot be read."""

    what: str
    """An entry of the annotation file, such as ``annotations[3]``, or the name of an image."""
    reason: str
