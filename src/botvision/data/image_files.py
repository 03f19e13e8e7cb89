"""Finding the image files that an annotation file names."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path


class ImageFiles:
    """The files of a folder, found by names as other systems write them.

    Folders may be separated by backslashes, and accents may be in another Unicode form than in the
    folder. Each folder is listed once, which takes less time than looking for each file.

    Args:
        folder: the folder that the names are relative to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: dict[Path, dict[str, str]] = {}

    def find(self, name: str) -> str | None:
        """The name of an existing file, relative to the folder; None if there is none."""
        for candidate in dict.fromkeys((name, name.replace("\\", "/"))):
            parent, _, last = candidate.rpartition("/")
            names = self._names(self.folder / parent if parent else self.folder)
            if names.get(last) == last:
                return candidate
            found = self._walk(candidate)
            if found is not None:
                return found
        return None

    def find_all(self, names: Sequence[str]) -> list[str | None]:
        """``find`` for each of the names."""
        return [self.find(name) for name in names]

    def _walk(self, name: str) -> str | None:
        """Find each folder of the path in turn, by its composed form if need be."""
        path = Path(Path(name).anchor)
        for part in Path(name).relative_to(path).parts:
            names = self._names(self.folder / path)
            found = names.get(part, ".." if part == ".." else names.get(_composed(part)))
            if found is None:
                return None
            path /= found
        return str(path)

    def _names(self, folder: Path) -> dict[str, str]:
        """The names in a folder, which are also found by their composed form."""
        if folder not in self._listed:
            try:
                names = [path.name for path in folder.iterdir()]
            except OSError:
                names = []
            self._listed[folder] = {_composed(n): n for n in names} | {n: n for n in names}
        return self._listed[folder]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
