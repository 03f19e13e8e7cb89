"""Archives: mutated zip and tar files. Nothing is written outside the cache."""

import io
import random
import shutil
import tarfile
import zipfile

from hypothesis import given
from hypothesis import strategies as st

from botvision.data.sources import open_data
from botvision.errors import UserError
from fuzz.mutations import mutated

_FILES = {f"train/{name}": random.Random(name).randbytes(700) for name in ("a/1.jpg", "b/2.jpg")}
_FILES |= {"empty": b"", "x" * 90: b"1", f"{'z' * 90}/{'z' * 60}": b"2"}


def _zip(method):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.mkdir("folder")
        for name, content in _FILES.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _tar(mode, form):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as archive:
        for name, content in _FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, kind, target in (
            ("folder", tarfile.DIRTYPE, ""),
            ("link", tarfile.SYMTYPE, "train/a/1.jpg"),
            ("train/hard", tarfile.LNKTYPE, "train/a/1.jpg"),
            ("y" * 90, tarfile.SYMTYPE, "x" * 90),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return buffer.getvalue()


_CONTENTS = [
    *(_zip(method) for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)),
    *(_tar("w", form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)),
    *(_tar(mode, tarfile.PAX_FORMAT) for mode in ("w:gz", "w:bz2", "w:xz")),
]


def unpack(folder, content):
    """Open data from an archive of this content, in a folder where nothing else may appear."""
    archive, cache = folder / "a.archive", folder / "inner" / "cache"
    archive.write_bytes(content)
    try:
        unpacked = open_data(str(archive), cache=cache)
    except UserError as error:
        assert str(error).startswith(f"{archive}: ") and "\n" not in str(error)
        assert not list(cache.iterdir())
    else:
        assert unpacked.is_relative_to(cache)
        assert not any(path.is_symlink() for path in unpacked.rglob("*"))
        assert all(path.is_file() or path.is_dir() for path in unpacked.rglob("*"))
    assert {path.name for path in folder.iterdir()} == {"a.archive", "inner"}
    assert {path.name for path in (folder / "inner").iterdir()} == {"cache"}
    shutil.rmtree(folder / "inner")


def test_the_archives_are_sound(tmp_path):
    for content in _CONTENTS:
        unpack(tmp_path, content)


@given(mutated(_CONTENTS))
def test_a_mutated_archive(tmp_path, content):
    unpack(tmp_path, content)


@given(st.dictionaries(st.text(max_size=12), st.sampled_from([b"", b"1"]), max_size=5))
def test_any_names(tmp_path, files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name.encode(errors="replace").decode()), content)
    unpack(tmp_path, buffer.getvalue())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    unpack(tmp_path, buffer.getvalue())
