"""Archives that are damaged or of a stranger: one line, and nothing stays in the cache."""

import io
import os
import random
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib

import pytest

from botvision.data import archives
from botvision.data.sources import open_data
from botvision.errors import UserError

CONTENT = {f"train/class{k % 2}/{k}.jpg": random.Random(k).randbytes(3000) for k in range(12)}


def packed(path, content=None):
    """A zip or tar of the content, by the suffix."""
    content = CONTENT if content is None else content
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w" if path.suffix == ".tar" else f"w:{path.suffix[1:]}") as archive:
        for name, data in content.items():
            add(archive, name, data)
    return path


def add(archive, name, data=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(path):
    """The message for an archive; nothing is left in the cache or written next to it."""
    cache = path.parent / "cache"
    before = set(path.parent.iterdir())
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        open_data(str(path), cache=cache)
    assert time.perf_counter() - start < 10
    assert list(cache.iterdir()) == []
    assert set(path.parent.iterdir()) == before | {cache}
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and len(line.splitlines()) == 1
    return line.removeprefix(f"{path}: ")


KINDS = ("a.zip", "a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz")


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_archive_is_unpacked(tmp_path, name):
    folder = open_data(str(packed(tmp_path / name)), cache=tmp_path / "cache")
    assert files(folder.parent) == CONTENT


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
def test_a_cut_archive_is_refused(tmp_path, name, share):
    path = packed(tmp_path / name)
    whole = path.read_bytes()
    kept = int(share * len(whole))
    path.write_bytes(whole[:kept])
    if not any(whole[kept:]):  # a tar that has lost only its padding
        return
    assert "not a readable zip or tar, or damaged" in refused(path)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.6])
def test_a_zeroed_tail_is_refused(tmp_path, name, share):
    path = packed(tmp_path / name)
    whole = path.read_bytes()
    kept = int(share * len(whole))
    path.write_bytes(whole[:kept] + bytes(len(whole) - kept))
    assert "not a readable zip or tar, or damaged" in refused(path)


def test_a_tar_is_refused_at_every_member_boundary(tmp_path):
    """Cut there, or with zeros from there on."""
    path = packed(tmp_path / "a.tar")
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        offsets = [member.offset for member in archive][1:]
    for offset in offsets:
        path.write_bytes(whole[:offset])
        assert "it is cut off" in refused(path)
    for offset in offsets[:-2]:  # of the last members, less than the usual padding is lost
        path.write_bytes(whole[:offset] + bytes(len(whole) - offset))
        assert "a part of it is lost" in refused(path)
    path.write_bytes(whole[: offsets[5]] + b"x" * 512 + whole[offsets[5] + 512 :])
    assert "a part of it is lost" in refused(path)
    path.write_bytes(whole + whole)
    assert "a part of it is lost" in refused(path)


def test_a_tar_without_padding_is_unpacked(tmp_path):
    """As some programs write it: two blocks of zeros, or one."""
    path = packed(tmp_path / "a.tar")
    whole = path.read_bytes().rstrip(b"\0")
    for zeros in (512, 1024):
        size = -(-len(whole) // 512) * 512 + zeros
        path.write_bytes(whole.ljust(size, b"\0"))
        assert files(open_data(str(path), cache=tmp_path / "cache").parent) == CONTENT


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_flipped_bytes_are_found(tmp_path, name):
    path = packed(tmp_path / name)
    whole = path.read_bytes()
    for offset in range(len(whole) // 10, len(whole) - 2000, len(whole) // 8):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x55
        path.write_bytes(damaged)
        refused(path)


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_without_files(tmp_path, name):
    assert refused(packed(tmp_path / name, {})).startswith("contains no files")
    if name == "a.tar":
        (tmp_path / "cache").rmdir()
        (tmp_path / name).write_bytes(bytes(5000))
        refused(tmp_path / name)


def test_an_encrypted_zip(tmp_path):
    path = packed(tmp_path / "a.zip")
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(signature)
        while start >= 0:
            content[start + offset] |= 1
            start = content.find(signature, start + 1)
    path.write_bytes(content)
    assert refused(path).startswith("is encrypted; unpack it with its password")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/../x", "..\\x", "a/../.."])
@pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
def test_names_that_lead_out(tmp_path, name, kind):
    inner = tmp_path / "inner"
    inner.mkdir()
    path = packed(inner / kind, {"b/c": b"1", name: b"2"})
    if "\\" in name and kind == "a.tar":  # a letter like others
        open_data(str(path), cache=inner / "cache")
    else:
        assert "leads out of the archive" in refused(path)
    assert [p.name for p in tmp_path.iterdir()] == ["inner"]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a\\b\\c.jpg", "a/b/c.jpg"),
        ("./a/c.jpg", "a/c.jpg"),
        ("/a/c.jpg", "a/c.jpg"),
        ("a/é日.jpg", "a/é日.jpg"),
        ("a/new\nline.jpg", "a/new\nline.jpg"),
        ("a/\x1b[31m.jpg", "a/\x1b[31m.jpg"),
        ("a/[b].jpg", "a/[b].jpg"),
        (f"a/{'x' * 250}.jp", f"a/{'x' * 250}.jp"),
    ],
)
def test_names_in_a_zip(tmp_path, name, place):
    path = packed(tmp_path / "a.zip", {name: b"1", "z": b"2"})
    folder = open_data(str(path), cache=tmp_path / "cache")
    assert files(folder) == {place: b"1", "z": b"2"}


def test_names_that_are_not_marked_as_utf8(tmp_path):
    """As macOS writes them; other bytes are read as the format says, in code page 437."""
    for name, place in (
        ("é日".encode(), "é日"),
        ("é".encode("cp437"), "é"),
        (b"\xff\xfe", "\xa0■"),
    ):
        path = packed(tmp_path / f"{place}.zip", {"x" * len(name): b"1", "z": b"2"})
        path.write_bytes(path.read_bytes().replace(b"x" * len(name), name))
        assert set(files(open_data(str(path), cache=tmp_path / "cache"))) == {place, "z"}


def test_names_that_are_marked_as_utf8_and_are_not(tmp_path):
    path = packed(tmp_path / "a.zip", {"é": b"1", "z": b"2"})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    refused(path)


def test_names_of_bytes_in_a_tar(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        add(archive, os.fsdecode(b"\xff\xfe.jpg"), b"1")
        add(archive, "z", b"2")
    folder = open_data(str(path), cache=tmp_path / "cache")
    assert {os.fsencode(p.name) for p in folder.iterdir()} == {b"\xff\xfe.jpg", b"z"}


@pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
def test_a_name_of_a_file_and_a_folder(tmp_path, kind):
    for names in (("a", "a/b"), ("a/b", "a")):
        path = packed(tmp_path / kind, dict.fromkeys(names, b"1"))
        assert "is both a file and a folder" in refused(path)
        (tmp_path / "cache").rmdir()


@pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
def test_a_name_that_no_disk_can_store(tmp_path, kind):
    path = packed(tmp_path / kind, {"x" * 300: b"1"})
    assert "cannot be unpacked to" in refused(path)


def test_an_archive_of_any_name_is_unpacked(tmp_path):
    for name in ("[bold]x[y]", "n" * 250, "日" * 80, "two\nlines", "\x1b[31m", "..", "$x$"):
        path = packed(tmp_path / f"{name}.zip")
        assert files(open_data(str(path), cache=tmp_path / "cache").parent) == CONTENT


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"Z"])
def test_devices_and_pipes(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "a.jpg", b"1")
        add(archive, "odd\n", type=kind)
    if kind == b"Z":  # unknown types are files, as POSIX has it
        return
    assert r"odd\n is a device or a pipe" in refused(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../etc/passwd", "..", "nothing", "b", "."])
def test_links_that_lead_nowhere(tmp_path, kind, target):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "a.jpg", b"1")
        add(archive, "b", type=kind, linkname=target)
        add(archive, "b/passwd", b"evil")
    line = refused(tmp_path / "a.tar")
    assert "is a link to" in line or "leads out of the archive" in line or "both a file" in line


def test_links_in_an_archive_become_files(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "val/second", type=tarfile.SYMTYPE, linkname="first")
        add(archive, "val/first", type=tarfile.SYMTYPE, linkname="../train/a.jpg")
        add(archive, "val/hard", type=tarfile.LNKTYPE, linkname="train/a.jpg")
        add(archive, "train/a.jpg", b"1")
    folder = open_data(str(path), cache=tmp_path / "cache")
    names = ("train/a.jpg", "val/first", "val/second", "val/hard")
    assert files(folder) == dict.fromkeys(names, b"1")
    assert not any(p.is_symlink() for p in folder.rglob("*"))


@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz", "a.tar.xz"])
def test_a_bomb_is_refused(tmp_path, kind, monkeypatch):
    """A small archive of a large file, of many files, and of many links to one file."""
    monkeypatch.setattr(archives, "_BYTES", 2**20)
    monkeypatch.setattr(archives, "_FILES", 100)
    path = packed(tmp_path / kind, {"a": b"1", "b": bytes(50 * 2**20)})
    assert "unpacks to more than" in refused(path)
    path = packed(tmp_path / kind, {str(k): b"" for k in range(5000)})
    assert "unpacks to more than" in refused(path) or kind == "a.zip"


def test_the_limits_leave_room_for_usual_data(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_BYTES", 0)
    monkeypatch.setattr(archives, "_FILES", 0)
    text = {"a.json": b'{"bbox": [1, 2, 3, 4], "id": 17}, ' * 20_000}
    text |= {f"{k}.png": random.Random(k).randbytes(300) for k in range(100)}
    for kind in ("a.zip", "a.tar.gz", "a.tar"):
        path = packed(tmp_path / kind, text)
        assert files(open_data(str(path), cache=tmp_path / "cache")) == text


def test_many_links_to_one_file_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_BYTES", 2**20)
    monkeypatch.setattr(archives, "_TIMES", 1)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "a", bytes(2**19))
        for k in range(20):
            add(archive, f"b{k}", type=tarfile.LNKTYPE, linkname="a")
    assert "unpacks to more than" in refused(tmp_path / "a.tar")


def test_a_sparse_file_is_counted_whole(tmp_path):
    """A hole of 1 TiB in GNU's format 1.0: the number of pieces, and offset and size of each."""
    size = str(2**40)
    sparse = {"major": "1", "minor": "0", "name": "hole", "realsize": size}
    headers = {f"GNU.sparse.{name}": value for name, value in sparse.items()}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "hole", f"1\n{size}\n0\n".encode().ljust(512, b"\0"), pax_headers=headers)
    with tarfile.open(tmp_path / "a.tar") as archive:
        (member,) = archive.getmembers()
        assert member.issparse() and member.size == 2**40
    assert "unpacks to more than 1 GiB plus 100 times its size" in refused(tmp_path / "a.tar")


def test_a_long_header_does_not_fill_the_memory(tmp_path):
    """A name of 200 MB, in an archive of 200 kB."""
    path = tmp_path / "a.tar.gz"
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 200 * 2**20
    packer = zlib.compressobj(9, wbits=31)
    with path.open("wb") as file:
        file.write(packer.compress(header.tobuf(tarfile.GNU_FORMAT)))
        for _ in range(200):
            file.write(packer.compress(b"a" * 2**20))
        file.write(packer.flush())
    assert "not a readable zip or tar" in refused(path)


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
def test_a_full_disk_is_named(tmp_path):
    """A limit on the size of files stands for the disk."""
    path = packed(tmp_path / "a.tar", {"a": bytes(10), "b": random.Random(0).randbytes(200_000)})
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from botvision.data.sources import open_data\n"
        "from botvision.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    open_data(sys.argv[1], cache=Path(sys.argv[2]))\n"
        "except UserError as error:\n"
        "    sys.exit(str(error))\n"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot be unpacked to" in done.stderr and "BOTVISION_CACHE" in done.stderr
    assert list((tmp_path / "cache").iterdir()) == []


def test_unpacked_files_can_be_read(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "a", b"1", mode=0)
        add(archive, "b", b"2", mode=0o7777)
    folder = open_data(str(tmp_path / "a.tar"), cache=tmp_path / "cache")
    for path in folder.iterdir():
        assert not path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)
        assert path.read_bytes()


@pytest.mark.parametrize("size", [8192, 8704, 9216, 9728])
def test_a_tar_that_ends_at_a_record_is_whole(tmp_path, size):
    """Its two blocks of zeros begin in one record and end in the next."""
    path = packed(tmp_path / "a.tar", {"a": bytes(size - 512), "b": b""})
    assert len(files(open_data(str(path), cache=tmp_path / "cache"))) == 2
