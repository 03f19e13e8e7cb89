"""Shards and Hugging Face sets give what the class folders give that they were made of."""

import io
import tarfile

import numpy as np
import pytest

from botvision.cli.main import main
from botvision.data.formats import classification_splits
from botvision.data.huggingface import HuggingFaceData
from botvision.data.image_folder import ImageFolder
from botvision.data.sources import task_of
from botvision.data.webdataset import WebDataset
from botvision.errors import UserError
from class_files import CLASSES, write_classes


@pytest.fixture
def root(tmp_path):
    return write_classes(tmp_path / "folders")


def write_shards(folder, data, split, *, size=4, classes=CLASSES):
    """Shards of ``size`` samples; keys with dots and folders, as webdataset allows."""
    folder.mkdir(exist_ok=True)
    (folder / "classes.txt").write_text("\n".join(classes) + "\n")
    samples = list(zip(data.files, data.labels, strict=True))
    for first in range(0, len(samples), size):
        with tarfile.open(folder / f"{split}-{first:04}.tar", "w") as tar:
            for file, label in samples[first : first + size]:
                add(tar, f"{file.parent.name}/{file.stem}.png", file.read_bytes())
                add(tar, f"{file.parent.name}/{file.stem}.cls", str(label).encode())
    return folder


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def same(one, other):
    assert one.classes == other.classes
    assert len(one) == len(other)
    for index in range(len(one)):
        (image, label), (same_image, same_label) = one[index], other[index]
        assert label == same_label
        assert np.array_equal(np.asarray(image), np.asarray(same_image))


def test_shards_hold_what_the_folders_hold(root, tmp_path):
    shards = tmp_path / "shards"
    for split in ("train", "val"):
        write_shards(shards, ImageFolder(root / split), split)
    assert task_of(str(shards)) == "classification"
    splits = classification_splits(str(shards))
    assert set(splits) == {"train", "val"}
    data = splits["train"](None)
    same(data, ImageFolder(root / "train"))
    assert data.summary().endswith("11 images of 3 classes in 3 shards")
    same(splits["val"](data.classes), ImageFolder(root / "val"))


def test_shards_train(root, tmp_path, capsys):
    shards = tmp_path / "shards"
    for split in ("train", "val"):
        write_shards(shards, ImageFolder(root / split), split)
    settings = ["--model", "resnet18", "--image-size", "32", "--batch-size", "4"]
    more = ["--max-steps", "2", "--out", str(tmp_path / "run"), "--device", "cpu"]
    main(["train", str(shards), *settings, *more])
    assert "11 images of 3 classes in 3 shards" in capsys.readouterr().out
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_shards_without_names_have_numbers(root, tmp_path):
    shards = write_shards(tmp_path / "shards", ImageFolder(root / "val"), "val")
    (shards / "classes.txt").unlink()
    assert WebDataset(sorted(shards.glob("*.tar"))).classes == ("0", "1", "2")


def test_faults_of_a_shard_are_named(root, tmp_path):
    shards = write_shards(tmp_path / "s", ImageFolder(root / "val"), "val", classes=CLASSES[:2])
    with pytest.raises(UserError, match=r"red/\d\.cls is 2, but there are 2 classes"):
        WebDataset(sorted(shards.glob("*.tar")))
    broken = tmp_path / "val-0.tar"
    for content, message in (
        ([("a.png", b"x")], "val-0.tar: a has no label a.cls"),
        ([("a.cls", b"0")], "val-0.tar: a has no image"),
        ([("a.cls", b"cat"), ("a.png", b"x")], "val-0.tar: not a readable shard"),
    ):
        with tarfile.open(broken, "w") as tar:
            for name, data in content:
                add(tar, name, data)
        with pytest.raises(UserError, match=message):
            WebDataset([broken])
    broken.write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"val-0.tar: not a readable shard"):
        WebDataset([broken])
    with tarfile.open(broken, "w") as tar:
        add(tar, "a.png", b"no image")
        add(tar, "a.cls", b"0")
    with pytest.raises(UserError, match=r"val-0.tar: a: cannot be read as an image"):
        WebDataset([broken])[0]


def test_a_hugging_face_set_holds_what_the_folders_hold(root, monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    splits = classification_splits(f"hfds/{root}")
    assert set(splits) == {"train", "val"}
    data = splits["train"](None)
    assert isinstance(data, HuggingFaceData)
    folder = ImageFolder(root / "train")
    assert data.classes == folder.classes
    pictures = [
        sorted(
            (label, np.asarray(image).tobytes()) for image, label in map(d.__getitem__, range(11))
        )
        for d in (data, folder)
    ]
    assert pictures[0] == pictures[1]


def test_a_hugging_face_set_that_is_not_there(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hfds/no/where: cannot be opened"):
        classification_splits("hfds/no/where")
