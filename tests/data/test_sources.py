"""From a name to a folder."""

import shutil
import tarfile

import pytest

from botvision.data import sources
from botvision.data.coco import find_splits
from botvision.data.sources import open_data, task_of
from botvision.errors import UserError


def test_a_folder_is_itself(tmp_path):
    assert open_data(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("kind", ["zip", "gztar"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_archives_are_unpacked_once(tmp_path, tiny_data, kind, wrapped, monkeypatch):
    base = {"base_dir": tiny_data.name} if wrapped else {}
    root = tiny_data.parent if wrapped else tiny_data
    archive = shutil.make_archive(str(tmp_path / "data"), kind, root, **base)
    folder = open_data(archive, cache=tmp_path / "cache")
    assert set(find_splits(folder)) == {"train", "val"}
    monkeypatch.setattr(sources, "unpack", None)
    assert open_data(archive, cache=tmp_path / "cache") == folder


def test_built_in_sets_are_made_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(sources, "write_shapes", lambda root, context: made.append(context))
    first = open_data("shapes", cache=tmp_path)
    assert open_data("shapes", cache=tmp_path) == first
    assert open_data("shapes-context", cache=tmp_path) != first
    assert made == [False, True]


def test_a_failure_leaves_nothing_half_made(tmp_path, monkeypatch):
    def fail(root, context):
        (root / "some.jpg").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "write_shapes", fail)
    with pytest.raises(KeyboardInterrupt):
        open_data("shapes", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_data(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder or archive; .*shapes-context"):
        open_data(str(tmp_path / "nowhere"))
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"broken.zip: not a readable zip or tar"):
        open_data(str(tmp_path / "broken.zip"), cache=tmp_path / "cache")


def test_an_archive_cannot_write_outside_its_folder(tmp_path):
    (tmp_path / "file").touch()
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.add(tmp_path / "file", arcname="../../escaped")
    with pytest.raises(UserError, match=r"evil.tar: ../../escaped leads out of the archive"):
        open_data(str(tmp_path / "evil.tar"), cache=tmp_path / "cache")
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/_annotations.coco.json"], "found train/_annotations.coco.json: move COCO files"),
        (["result.json", "images/a.jpg"], "found result.json: move COCO files to annotations/"),
        (["data.yaml", "labels/a.txt"], "found data.yaml and labels: export the data in COCO"),
        (["b.jpg", "a/x.txt"], "found a/, b.jpg"),
        ([], "the folder is empty"),
    ],
)
def test_a_folder_of_another_layout_is_described(tmp_path, files, message):
    for name in files:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
    with pytest.raises(UserError, match="neither COCO format") as raised:
        task_of(str(tmp_path))
    assert message in str(raised.value)
