"""Shards and Hugging Face sets give what the class folders give that they were made of."""

import io
import resource
import tarfile

import numpy as np
import pytest
from PIL import Image

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
    with pytest.raises(UserError, match=r"red/\d\.cls is 2, but there are 2 classes, from 0"):
        WebDataset(sorted(shards.glob("*.tar")))
    broken = tmp_path / "val-0.tar"
    for content, message in (
        ([("a.png", b"x")], "val-0.tar: a has no label a.cls"),
        ([("a.cls", b"0")], "val-0.tar: a has no image"),
        ([("a.cls", b"cat"), ("a.png", b"x")], "val-0.tar: a.cls is not a number from 0"),
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
    with pytest.raises(UserError, match=r"val-0.tar: a\.png: cannot be read as an image"):
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


def write_tar(path, *members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            add(tar, name, content)
    return path


@pytest.fixture
def png(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def test_shards_hold_every_format_and_count_the_rest(tmp_path, png):
    members = [(f"{k}.{end}", png) for k, end in enumerate(["png", "TIF", "webp", "jfif", "Bmp"])]
    members += [(f"{k}.cls", b"%d\n" % (k % 2)) for k in range(5)]
    members += [("0.json", b"{}"), ("1.json", b"{}"), ("index", b"")]
    members += [("._0.png", b"x"), ("__MACOSX/0.cls", b"x"), (".ipynb_checkpoints/0.png", png)]
    data = WebDataset([write_tar(tmp_path / "train-0.tar", *members)])
    assert [member for _, member, _, _ in data.images] == [
        *("0.png", "1.TIF", "2.webp", "3.jfif", "4.Bmp"),
    ]
    assert data.labels == [0, 1, 0, 1, 0]
    assert data.summary().endswith(
        "5 images of 2 classes in 1 shards (left out: 1 without an extension, 2 .json)"
    )


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["a.png", "a.cls", "a.jpg"], "a has more than one image"),
        (["a.png", "a.cls", "a.png"], "a has more than one image"),
        (["a.png", "a.cls", "a.CLS"], "a has more than one label"),
        (["a.png", "a.cls", "b.cls"], "b has no image"),
        (["a.png", "a.cls", "b.png"], "b has no label b.cls"),
        (["a.txt"], "no images in the shards"),
        ([], "no images in the shards"),
    ],
)
def test_a_key_is_one_image_and_one_label(tmp_path, png, members, message):
    files = [(name, b"0" if name.lower().endswith("cls") else png) for name in members]
    with pytest.raises(UserError, match=message):
        WebDataset([write_tar(tmp_path / "train-0.tar", *files)])


@pytest.mark.parametrize("label", [b"1e9", b"-1", b"", b"1.0", b"1" * 33, b"\xd9\xa1", b"x" * 9999])
def test_a_label_is_a_number_from_0(tmp_path, png, label):
    shard = write_tar(tmp_path / "train-0.tar", ("a.png", png), ("a.cls", label))
    with pytest.raises(UserError, match=r"train-0.tar: a.cls is not a number from 0"):
        WebDataset([shard])


def test_a_huge_label_takes_no_memory(tmp_path, png):
    shard = write_tar(tmp_path / "train-0.tar", ("a.png", png), ("a.cls", b"1000000000"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"a.cls is 1000000000, but there are at most 32,768 cl"):
        WebDataset([shard])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"a.cls is 1000000000, but there are 2 classes"):
        WebDataset([shard])


def test_names_are_read_in_any_encoding(tmp_path, png):
    shard = write_tar(tmp_path / "train-0.tar", ("a.png", png), ("a.cls", b"1"))
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "classes.txt").write_text("cat\r\nMu\u0308cke\r\n\r\n", encoding, newline="")
        assert WebDataset([shard]).classes == ("cat", "M\u00fccke")
    for content, message in (
        (b"cat\n\ndog\n", "line 2 is blank"),
        (b"\ncat", "line 1 is blank"),
        (b"", "line 1 is blank"),
        (b"cat\ndog\ncat\n", "'cat' is in line 1 and in line 3"),
        (b"cat\n cat\n", "'cat' is in line 1 and in line 2"),
        (b"M\xfccke\n", "not a text in UTF-8"),
    ):
        (tmp_path / "classes.txt").write_bytes(content)
        with pytest.raises(UserError, match=rf"classes\.txt: {message}"):
            WebDataset([shard])


def test_names_of_another_split_are_matched(tmp_path, png):
    """The labels of each folder's shards count the lines of that folder's ``classes.txt``."""
    for split, names in (("train", "cat\ndog\nowl\n"), ("val", "owl\ncat\n")):
        (tmp_path / split).mkdir()
        (tmp_path / split / "classes.txt").write_text(names)
        members = [(f"{k}.png", png) for k in range(2)] + [(f"{k}.cls", b"%d" % k) for k in (0, 1)]
        write_tar(tmp_path / split / "0.tar", *members)
    splits = classification_splits(str(tmp_path))
    train = splits["train"](None)
    val = splits["val"](train.classes)
    assert [val.classes[label] for label in val.labels] == ["owl", "cat"]
    (tmp_path / "val" / "classes.txt").write_text("bat\ncat\n")
    with pytest.raises(UserError, match=r"classes.txt: the class 'bat' is not one of the model's"):
        splits["val"](train.classes)


def test_shards_of_each_name_are_one_split(tmp_path, png):
    def shard(name):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / name, ("a.png", png), ("a.cls", b"0"), ("b.png", png), ("b.cls", b"1"))

    for name in ("train-0.tar", "train-1.tar", "valid-0.tar"):
        shard(name)
    (tmp_path / "._train-0.tar").write_bytes(b"x")
    splits = classification_splits(str(tmp_path))
    assert {name: len(make(None)) for name, make in splits.items()} == {"train": 4, "val": 2}
    shard("val-0.tar")
    with pytest.raises(UserError, match="contains val and valid, which are the same split"):
        classification_splits(str(tmp_path))
    (tmp_path / "val-0.tar").unlink()
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match="contains val and valid, which are the same split"):
        classification_splits(str(tmp_path))


def test_a_shard_that_is_cut_off_is_refused(tmp_path, png):
    members = [m for k in range(9) for m in ((f"{k}.png", png), (f"{k}.cls", b"%d" % (k % 2)))]
    shard = write_tar(tmp_path / "train-0.tar", *members)
    whole = shard.read_bytes()
    blocks = 6 * 1024 + 512  # three samples and an image's header
    for content in (whole[: 6 * 1024], whole[:blocks], whole[: blocks + 60]):
        shard.write_bytes(content)
        with pytest.raises(UserError, match=r"train-0.tar: not a readable shard"):
            WebDataset([shard])
    shard.write_bytes(whole[: 6 * 1024] + bytes(len(whole)))
    with pytest.raises(UserError, match=r"train-0.tar: not a readable shard .a part of it is lost"):
        WebDataset([shard])


def test_links_in_a_shard_are_refused(tmp_path, png):
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        add(tar, "a.png", png)
        info = tarfile.TarInfo("b.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(UserError, match=r"b.png is a link; write the shard with its files"):
        WebDataset([tmp_path / "train-0.tar"])
