"""Unpacking of zip and tar archives, which may be damaged or of a stranger.

Only regular files and folders are written, and only below the given folder. Links become copies of
the files that they name, so that no link can lead out of it.
"""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO

from botvision.errors import UserError
from botvision.text import printable

# An archive may unpack to this many bytes plus a multiple of its own size. Images hardly shrink in
# an archive, and annotations to a tenth.
_BYTES, _TIMES = 2**30, 100
# It may contain this many files, plus one for every so many of its own bytes.
_FILES, _BYTES_PER_FILE = 100_000, 100
# tar pads an archive with zeros to a multiple of this. More zeros are lost content.
_RECORD = 10_240
# The longest header that a name may need.
_LONGEST_HEADER = 2**20


def unpack(archive: Path, root: Path) -> None:
    """Unpack a zip or tar archive, compressed or not.

    Args:
        archive: the archive.
        root: an empty folder. After an error its content is incomplete.

    Raises:
        UserError: the archive is damaged, cut off, encrypted or of another format, it contains
            anything but files, folders and links to its files, it unpacks to far more than its own
            size, or the disk is full.
    """
    output = _Output(archive, root)
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, output)
        else:
            _unpack_tar(archive, output)
    except UserError:
        raise
    except OSError as error:
        if error.errno is None:  # of a decompressor
            raise _damaged(archive) from error
        raise UserError(
            f"{archive}: cannot be unpacked to {root.parent} ({error.strerror}); free space there, "
            "set BOTVISION_CACHE to another folder, or unpack it and give the folder"
        ) from error
    except Exception as error:  # whatever the readers raise for damaged content
        raise _damaged(archive) from error
    if not any(path.is_file() for path in root.rglob("*")):
        raise UserError(f"{archive}: contains no files; download or pack it again")


def _damaged(archive: Path, detail: str = "") -> UserError:
    return UserError(
        f"{archive}: not a readable zip or tar, or damaged{detail}; download or pack it again"
    )


class _Output:
    """The folder that an archive is unpacked to, with its limits."""

    def __init__(self, archive: Path, root: Path) -> None:
        self.archive, self.root = archive, root
        size = archive.stat().st_size
        self.bytes, self.files = _BYTES + _TIMES * size, _FILES + size // _BYTES_PER_FILE

    def add(self, name: str, size: int) -> None:
        """Count a file before it is written."""
        self.bytes -= size
        self.files -= 1
        if self.bytes < 0 or self.files < 0:
            raise UserError(
                f"{self.archive}: unpacks to more than {_BYTES // 2**30} GiB plus {_TIMES} times "
                f"its size, or to more than {_FILES:,} files plus one for every {_BYTES_PER_FILE} "
                f"bytes (at {printable(name)}); if you trust it, unpack it and give the folder"
            )

    def path(self, name: str) -> Path:
        """Return where a name of the archive lies."""
        parts: list[str] = []
        for part in PurePosixPath(name.lstrip("/")).parts:
            if part == ".." and not parts:
                raise UserError(
                    f"{self.archive}: {printable(name)} leads out of the archive; pack it again "
                    "without such names"
                )
            parts = parts[:-1] if part == ".." else [*parts, part]
        return self.root.joinpath(*parts)

    def make_folder(self, name: str) -> None:
        """Create a folder."""
        self.add(name, 0)
        with self._one_kind(name):
            self.path(name).mkdir(parents=True, exist_ok=True)

    def write(self, name: str, source: IO[bytes]) -> None:
        """Write a file."""
        path = self.path(name)
        with self._one_kind(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                shutil.copyfileobj(source, file, 2**20)

    @contextmanager
    def _one_kind(self, name: str) -> Iterator[None]:
        try:
            yield
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise UserError(
                f"{self.archive}: {printable(name)} is both a file and a folder; pack it again"
            ) from error


def _unpack_zip(archive: Path, output: _Output) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        for member in members:
            if member.flag_bits & 0x1:
                raise UserError(
                    f"{archive}: is encrypted; unpack it with its password and give the folder"
                )
            output.add(member.filename, member.file_size)
        for member in members:
            name = _zip_name(member)
            if name.endswith("/"):
                output.make_folder(name)
                continue
            with opened.open(member) as source:
                output.write(name, source)


def _zip_name(member: zipfile.ZipInfo) -> str:
    name = member.filename
    if not member.flag_bits & 0x800:
        # Not marked as UTF-8, which macOS and others write all the same.
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")  # as some programs on Windows separate folders


class _Member(tarfile.TarInfo):
    """A member of a tar archive, whose long names cannot fill the memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.size > _LONGEST_HEADER and not (member.isfile() or member.isdir()):
            raise tarfile.TarError("a header of this size")
        return member


def _unpack_tar(archive: Path, output: _Output) -> None:
    links: list[tarfile.TarInfo] = []
    with tarfile.open(archive, tarinfo=_Member) as opened:
        for member in opened:
            if member.issym() or member.islnk():
                links.append(member)
            elif member.isfile():
                output.add(member.name, member.size)
                source = opened.extractfile(member)
                assert source is not None
                output.write(member.name, source)
            elif member.isdir():
                output.make_folder(member.name)
            else:
                raise UserError(
                    f"{archive}: {printable(member.name)} is a device or a pipe; pack it again "
                    "with files only"
                )
        try:
            check_end(opened)
        except tarfile.ReadError as error:
            raise _damaged(archive, f" ({error})") from error
    _copy_links(links, output)


def check_end(opened: tarfile.TarFile) -> None:
    """Check that a tar archive ends as it should, and not where its content is lost.

    The reader stops without an error at damage between two members.

    Args:
        opened: an archive of which all members have been read.

    Raises:
        ReadError: the archive is cut off, or a part of it is lost.
    """
    assert opened.fileobj is not None
    opened.fileobj.seek(opened.offset)
    rest = opened.fileobj.read(2 * _RECORD)
    if len(rest) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is cut off")
    if any(rest) or len(rest) >= _RECORD + 2 * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("a part of it is lost")


def _copy_links(links: Iterable[tarfile.TarInfo], output: _Output) -> None:
    """Copy the files that links name. A link may name another link."""
    waiting = list(links)
    while waiting:
        later = []
        for link in waiting:
            # A symbolic link starts from its own folder, a hard link from the archive's.
            folder = PurePosixPath(link.name).parent if link.issym() else PurePosixPath()
            target = output.path(str(folder / link.linkname))
            if not target.is_file():
                later.append(link)
                continue
            output.add(link.name, target.stat().st_size)
            with target.open("rb") as source:
                output.write(link.name, source)
        if len(later) == len(waiting):
            raise UserError(
                f"{output.archive}: {printable(later[0].name)} is a link to "
                f"{printable(later[0].linkname)}, which is no file in it; unpack it and give the "
                "folder"
            )
        waiting = later
