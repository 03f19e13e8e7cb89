"""Files are written whole or not at all, and never through a link."""

import os

import pytest

from botvision.errors import UserError
from botvision.files import append_text, atomic, make_folder, write_text


def test_a_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".bin"
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic(path) as temporary:
        temporary.write_text("new")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_links_are_replaced_and_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("a.txt", ".tmp-a.txt", "a.txt.tmp"):
        (folder / name).symlink_to(victim)
    write_text(folder / "a.txt", "text")
    assert victim.read_text() == "precious"
    assert (folder / "a.txt").read_text() == "text"
    assert not (folder / "a.txt").is_symlink()


def test_a_hard_link_is_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.link(victim, tmp_path / ".tmp-a.txt")
    os.link(victim, tmp_path / "a.txt")
    write_text(tmp_path / "a.txt", "text")
    assert victim.read_text() == "precious"


def test_text_is_not_appended_to_a_link(tmp_path):
    path = tmp_path / "events"
    append_text(path, "a\n")
    append_text(path, "b\n")
    assert path.read_text() == "a\nb\n"
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(UserError, match=r"link: is a link to .*, and results are not written"):
        append_text(tmp_path / "link", "c\n")
    assert path.read_text() == "a\nb\n"


def test_a_folder_of_results_is_no_link(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match=r"link: is a link to .*/a, and results are not written"):
        make_folder(tmp_path / "link")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(UserError, match="cannot be created, a file has this name"):
            make_folder(path)
