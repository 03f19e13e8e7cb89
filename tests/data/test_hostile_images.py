"""Image files that are none, never end, or fill the memory: one line."""

import os
import struct
import threading
import zlib

import pytest
from PIL import Image

from botvision.data.images import MAX_PIXELS, open_image
from botvision.errors import UserError
from botvision.tasks.load import read_images


def refused(path):
    with pytest.raises(UserError) as caught:
        open_image(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and len(line.splitlines()) == 1
    return line.removeprefix(f"{path}: ")


def test_a_pipe_does_not_hang(tmp_path):
    path = tmp_path / "pipe.jpg"
    os.mkfifo(path)
    lines = []
    thread = threading.Thread(target=lambda: lines.append(refused(path)), daemon=True)
    thread.start()
    thread.join(10)
    assert lines == ["is a pipe or a device and no image file; give an image file"]


def test_devices_and_folders(tmp_path):
    assert refused(tmp_path).startswith("is a folder")
    for path in ("/dev/zero", "/dev/null"):
        path = type(tmp_path)(path)
        if path.exists():
            assert refused(path).startswith("is a pipe or a device")


def png(width, height, data=b""):
    """A PNG file of one bit per pixel that only claims its size."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_an_image_of_182_megapixels_is_opened(tmp_path, recwarn):
    """Large images are what tiles are for."""
    side = 13_500
    (tmp_path / "large.png").write_bytes(png(side, side, bytes((side // 8 + 2) * side)))
    assert open_image(tmp_path / "large.png").size == (side, side)
    assert not recwarn.list


def test_a_bomb_is_refused(tmp_path):
    assert MAX_PIXELS == 16_384 * 16_384
    (tmp_path / "bomb.png").write_bytes(png(20_000, 20_000))
    assert refused(tmp_path / "bomb.png").startswith("has more than 268,435,456 pixels")


def test_no_other_program_reads_an_image(tmp_path, monkeypatch):
    """Pillow gives PostScript to Ghostscript, whatever the file's name is."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/trace\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    assert refused(tmp_path / "a.jpg").startswith("cannot be read as an image")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", ["[b].png", "..png", "a\nb.png", "\x1b[31m.png", "x" * 250, "$x$"])
def test_any_name_is_opened_and_named(tmp_path, name):
    path = tmp_path / name
    Image.new("RGB", (9, 9)).save(path, format="PNG")
    assert open_image(path).size == (9, 9)
    path.write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        open_image(path)
    assert len(str(caught.value).splitlines()) == 1
    assert name.replace("\n", "\\n").replace("\x1b", "\\x1b") in str(caught.value)


def test_a_folder_that_may_not_be_listed(tmp_path):
    errors = []
    assert list(read_images([tmp_path / "no", tmp_path], errors.append)) == []
    assert [str(error).rpartition(": ")[2] for error in errors] == [
        "no such image file; check the path",
        "no image files in this folder",
    ]
