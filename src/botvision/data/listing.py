"""Image files among other files: which names count, in which order, and counts of the others."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from botvision.data.images import DECODE_ERRORS, FORMATS, open_stored
from botvision.errors import UserError

# What file managers, Windows, macOS and network storage leave in folders and archives.
_HIDDEN = {"__macosx", "@eadir", "thumbs.db", "desktop.ini"}
# Formats that Pillow recognizes, but decodes only with a library or program of another party.
_UNDECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG"}
# Kinds of left-out files that are listed by name.
_LISTED = 5


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is one of the system's, such as ``.DS_Store``."""
    return name.startswith(".") or name.lower() in _HIDDEN


@functools.cache
def image_extensions() -> frozenset[str]:
    """Return the extensions of the formats that are read, in lower case with their dot."""
    formats = {*FORMATS} - _UNDECODED
    known = Image.registered_extensions()
    return frozenset(extension for extension, name in known.items() if name in formats)


def is_image(name: str) -> bool:
    """Return whether a file is an image, by its extension in any letter case."""
    return _extension(name) in image_extensions() and not is_hidden(name)


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122, a name in an archive


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Return the sort key that orders ``class2`` before ``class10``, as timm's does.

    timm's fails for names with digits that are no numbers, such as a superscript.
    """
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def unicode_form(name: str) -> str:
    """Return the composed form (NFC), since macOS stores names in the decomposed form."""
    return unicodedata.normalize("NFC", name)


def count_classes(labels: Sequence[int]) -> str:
    """``3 classes``: the number of different labels."""
    count = len(set(labels))
    return f"{count} class{'' if count == 1 else 'es'}"


def same_names(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether two sequences of names are equal, apart from their Unicode form."""
    return [*map(unicode_form, one)] == [*map(unicode_form, other)]


class LeftOut(Counter[str]):
    """Numbers of files that are not part of the data, by kind: an extension, or a description."""

    def add_file(self, name: str) -> None:
        """Count a file that is no image, by its extension."""
        extension = _extension(name)
        self[extension if re.fullmatch(r"\.\w{1,12}", extension) else "without an extension"] += 1

    def __str__(self) -> str:
        """``3 outside the class folders, 2 .txt, 1 .pdf``: descriptions, then extensions."""
        counts = sorted(self.items(), key=lambda item: (item[0].startswith("."), -item[1]))
        listed = [f"{count} {kind}" for kind, count in counts[:_LISTED]]
        more = sum(count for _, count in counts[_LISTED:])
        return ", ".join([*listed, *([f"{more} others"] if more else [])])


class FolderWalk:
    """The image files below folders, each real folder read once.

    Links to folders are followed unless they lead to a folder that is read anyway, so a link to a
    parent adds nothing.

    Args:
        root: folder that contains all folders to read.
    """

    def __init__(self, root: Path) -> None:
        self.left_out = LeftOut()
        self._known: set[Path] = set()
        self._around: set[Path] = set()
        self._add(root.resolve())

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """Return what a folder contains, without hidden files, sorted by name.

        Raises:
            UserError: the folder cannot be read.
        """
        try:
            with os.scandir(folder) as entries:
                found = [entry for entry in entries if not is_hidden(entry.name)]
        except OSError as error:
            raise UserError(f"{folder}: cannot be read ({error.strerror}); check it") from error
        return sorted(found, key=lambda entry: entry.name)

    def is_new_folder(self, entry: os.DirEntry[str]) -> bool:
        """Return whether the entry is a folder to read. Counts links to folders that are not."""
        if not entry.is_symlink():
            return entry.is_dir()
        path = Path(entry.path)
        if not path.is_dir():
            return False
        target = path.resolve()
        if target in self._around or not self._known.isdisjoint((target, *target.parents)):
            self.left_out["as links to folders that are read anyway"] += 1
            return False
        self._add(target)
        return True

    def images(self, folder: Path) -> Iterator[Path]:
        """Yield the image files in a folder and its subfolders, and count the others."""
        folders = [folder]
        while folders:
            for entry in self.entries(folders.pop()):
                if self.is_new_folder(entry):
                    folders.append(Path(entry.path))
                elif is_image(entry.name):
                    yield Path(entry.path)
                elif not Path(entry.path).is_dir():
                    self.left_out.add_file(entry.name)

    def _add(self, target: Path) -> None:
        self._known.add(target)
        self._around.update((target, *target.parents))


def opens(file: Path) -> bool:
    """Return whether a file begins as an image, without decoding it."""
    if not file.is_file():  # a pipe would block
        return False
    try:
        with open_stored(file):
            return True
    except Image.DecompressionBombError:
        return True
    except DECODE_ERRORS:
        return False
