"""The folder of predictions: pictures, and a JSON file that is complete after every image."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from io import FileIO
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from botvision.errors import UserError
from botvision.files import make_folder, refuse_link, writing

# A file name has at most 255 bytes, of which a number and an ending need some.
_LONGEST_STEM = 200


class Results:
    """Writes ``predictions.json``, a list of entries, and the pictures that the entries name.

    The folder is changed when the first entry or picture is added. The pictures of an earlier call,
    which its ``predictions.json`` names, are then removed. No other file is replaced. A process
    that is stopped at any time leaves a valid ``predictions.json``.

    Args:
        folder: the folder. It is created if it does not exist.
        images: images or folders of the user. They are not removed, whatever an earlier
            ``predictions.json`` names.

    Raises:
        UserError: the folder is a link or a file.
    """

    def __init__(self, folder: Path, images: Iterable[str | PathLike[str]]) -> None:
        refuse_link(folder)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; give another `out`")
        self.folder = folder
        self.count = 0
        self._images = {_resolved(Path(fspath(image))) for image in images}
        self._taken: set[str] = set()
        self._file: FileIO | None = None
        self._end = 0

    def add(self, entry: dict[str, Any]) -> None:
        """Append an entry to ``predictions.json``.

        Raises:
            UserError: the file cannot be written. It is valid, without the entry.
        """
        file = self._begun()
        start = ",\n" if self.count else "[\n"
        with writing(self.folder / "predictions.json"):
            file.seek(self._end)
            try:
                end = _write(file, f"{start}{json.dumps(entry)}".encode())
                _write(file, b"\n]\n")
            except OSError:  # the disk is full, but what was there fits
                file.seek(self._end)
                file.truncate()
                _write(file, b"\n]\n" if self.count else b"[]\n")
                raise
        self._end += end
        self.count += 1

    def picture(self, stem: str) -> Path:
        """Return where to write a picture: a file that does not exist.

        Args:
            stem: name of the image, without its ending.

        Returns:
            A path in the folder, such as ``stem.png`` or ``stem-2.png``.
        """
        self._begun()
        stem, number = _file_name(stem), 1
        path = self.folder / f"{stem}.png"
        while path.name in self._taken or os.path.lexists(path):
            number += 1
            path = self.folder / f"{stem}-{number}.png"
        self._taken.add(path.name)
        return path

    def close(self) -> None:
        """Write everything to disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()

    def _begun(self) -> FileIO:
        if self._file is not None:
            return self._file
        make_folder(self.folder)
        path = self.folder / "predictions.json"
        for picture in _earlier_pictures(path):
            if _resolved(picture) not in self._images:
                picture.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        self._file = FileIO(path, "x")  # a new file, never the target of a link
        _write(self._file, b"[]\n")
        return self._file


def _write(file: FileIO, content: bytes) -> int:
    """Write all bytes, and return how many. An unbuffered file may write fewer."""
    written = 0
    while written < len(content):
        written += file.write(content[written:])
    return written


def _earlier_pictures(path: Path) -> list[Path]:
    """Return the pictures that an earlier ``predictions.json`` names.

    It may be of a stranger, and then names only what may have been written by ``Results``.
    """
    if path.is_symlink() or not path.is_file():
        return []
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(entries, list):
        return []
    named = [entry.get("picture") for entry in entries if isinstance(entry, dict)]
    stems = [name[:-4] for name in named if isinstance(name, str) and name.endswith(".png")]
    return [path.with_name(f"{stem}.png") for stem in stems if stem == _file_name(stem)]


def _resolved(path: Path) -> Path:
    """Resolve the folder of a path, but not what its name links to."""
    return path.parent.resolve() / path.name


def _file_name(stem: str) -> str:
    """Return a name that every file system can store and every program can show."""
    shown = "".join(c if c.isprintable() else "_" for c in stem.rpartition("/")[2]).lstrip(".")
    return shown.encode()[:_LONGEST_STEM].decode(errors="ignore") or "image"
