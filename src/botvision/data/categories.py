"""The classes of a data set, and how the annotation file's ids map to a model's labels."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from botvision.errors import UserError
from botvision.text import printable

# The printed mapping shows this many classes in full and abridges a longer one.
SHOWN = 10


@dataclass(frozen=True)
class Categories:
    """Category ids and names, sorted by id: category k, counted from 0, has label k + 1.

    Label 0 is the background. The ids are whatever the annotation files use: from 0, with gaps.
    Names are in Unicode's composed form (NFC), so that equal names match whoever wrote them.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        names = tuple(unicodedata.normalize("NFC", name) for name in self.names)
        object.__setattr__(self, "names", names)

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[int, str]], source: str) -> "Categories":
        """Categories of (id, name) pairs in any order.

        Args:
            pairs: id and name of each class.
            source: where the pairs are from, for the error message.

        Returns:
            The categories, sorted by id.

        Raises:
            UserError: two pairs have the same id or the same name.
        """
        ordered = sorted(pairs)
        categories = cls(tuple(i for i, _ in ordered), tuple(name for _, name in ordered))
        for what, values in (("id", categories.ids), ("name", categories.names)):
            seen: set[int | str] = set()
            for value in values:
                if value in seen:
                    raise UserError(
                        f"{source}: two categories have the {what} {value!r}; give each its own"
                    )
                seen.add(value)
        return categories

    def __len__(self) -> int:
        """Count the classes, without the background."""
        return len(self.ids)

    @cached_property
    def label_of(self) -> dict[int, int]:
        """Label of each category id."""
        return {category: k + 1 for k, category in enumerate(self.ids)}

    @cached_property
    def label_of_name(self) -> dict[str, int]:
        """Label of each class name."""
        return {name: k + 1 for k, name in enumerate(self.names)}

    def name(self, label: int) -> str:
        """Name of the class with a label from 1 to the number of classes."""
        if not 1 <= label <= len(self):
            raise IndexError(f"label {label} is not in 1..{len(self)}")
        return self.names[label - 1]

    def __str__(self) -> str:
        """Write the mapping as `label = id name`, abridged in the middle."""
        entries = [
            f"{k + 1} = {category} {printable(name)}"
            for k, (category, name) in enumerate(zip(self.ids, self.names, strict=True))
        ]
        if len(entries) > SHOWN:
            entries = [*entries[: SHOWN - 2], "...", entries[-1]]
        plural = "class" if len(self) == 1 else "classes"
        return f"{len(self)} {plural} (label = id name): {', '.join(entries)}"
