"""Safe writing of files: whole or not at all, on disk before it counts, and never through a link.

A folder that somebody else made may contain links where a run writes its results. No function of
this module writes to what a link points to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from botvision.errors import UserError

# What the names of files begin with that are being written.
_TEMPORARY = ".tmp-"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file that is either complete or not there.

    The file is written under another name in the same folder, synced to disk, and renamed. What
    ``path`` named before is replaced, and a link is replaced by the file. An exception leaves
    ``path`` as it was.

    Args:
        path: file to write. Its folder must exist.

    Yields:
        An empty temporary file to write to, with the suffix of ``path``. A killed process leaves
        it, and the next write of ``path`` replaces it.

    Raises:
        UserError: the disk is full, or the folder is read-only.
    """
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    with writing(path):
        try:
            temporary.unlink(missing_ok=True)
            temporary.touch(exist_ok=False)  # O_EXCL: a new file, never the target of a link
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors makes a file that only its owner may read
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes have left of files that they wrote with ``atomic``."""
    for path in () if folder.is_symlink() else folder.glob(f"{_TEMPORARY}*"):
        with writing(path):
            path.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into one line about a file that is written.

    Raises:
        UserError: such as a full disk.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        elif "(os error " in str(error):  # of a library in Rust, such as safetensors
            reason = str(error)
        else:
            raise
        raise UserError(
            f"{path}: cannot be written ({reason}); make room, correct the permissions, or give "
            "another `out`"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, see ``atomic``."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Append to a text file in UTF-8.

    Raises:
        UserError: ``path`` is a link, or cannot be written.
    """
    refuse_link(path)
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def make_folder(path: Path) -> None:
    """Create a folder of results, unless it exists.

    Args:
        path: the folder. Missing parents are created too.

    Raises:
        UserError: ``path`` is a link or a file, or cannot be created.
    """
    refuse_link(path)
    with writing(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(
                f"{path}: cannot be created, a file has this name; give another `out`"
            ) from error


def refuse_link(path: Path) -> None:
    """Raise UserError if a path for results is a link."""
    if path.is_symlink():
        raise UserError(
            f"{path}: is a link to {path.readlink()}, and results are not written through links; "
            "remove it, or give another `out`"
        )


def _sync_folder(folder: Path) -> None:
    """Sync a rename to disk, where the operating system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
