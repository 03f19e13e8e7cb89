"""Class folders as they are found in the wild: every image counts once, in the right class."""

import os
import shutil
import subprocess
import unicodedata

import numpy as np
import pytest
from PIL import Image, features

from botvision.cli.main import main
from botvision.config import ClassificationConfig
from botvision.data.formats import classification_splits
from botvision.data.image_folder import ImageFolder
from botvision.data.sources import open_data, task_of
from botvision.errors import UserError
from botvision.tasks.classification import ClassificationTraining
from class_files import CLASSES, write_classes

EXTENSIONS = ["tif", "tiff", "bmp", "gif", "webp", "jp2", "jfif", "ppm", "pgm", "tga", "ico", "JPG"]


@pytest.fixture
def root(tmp_path):
    return write_classes(tmp_path / "data")


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (200, 100, 50)).save(path)
    return path


def of(data):
    """The class of each file, by its path below the split."""
    return {
        str(file.relative_to(data.folder)): data.classes[label]
        for file, label in zip(data.files, data.labels, strict=True)
    }


@pytest.mark.parametrize(
    "extension", [*EXTENSIONS, *(["avif"] if features.check("avif") else []), "TIFF", "WebP"]
)
def test_every_format_that_predict_opens_is_found(tmp_path, extension):
    file = image(tmp_path / "cat" / f"1.{extension}")
    data = ImageFolder(tmp_path)
    assert data.files == [file]
    assert data[0][0].size == (16, 16)


def test_other_files_are_counted_by_extension(root):
    folder = root / "train" / "red"
    for name in ("notes.txt", "more.TXT", "a.heic", "README", "x.h5", "doc.pdf"):
        (folder / name).write_bytes(b"no image")
    image(root / "train" / "stray.png")
    (root / "train" / "labels.csv").touch()
    data = ImageFolder(root / "train")
    assert data.classes == CLASSES
    assert data.summary().endswith(
        "11 images of 3 classes (left out: 1 without an extension, 1 outside the class folders, "
        "2 .txt, 1 .csv, 1 .heic, 2 others)"
    )


def test_hidden_files_and_folders_never_count(root):
    split = root / "train"
    before = of(ImageFolder(split))
    for name in (
        *(".ipynb_checkpoints/1-checkpoint.png", "red/.ipynb_checkpoints/1.png", "red/._1.png"),
        *("__MACOSX/red/1.png", "red/__MACOSX/1.png", "@eaDir/1.png", ".hidden/1.png"),
    ):
        image(split / name)
    for name in (".DS_Store", "red/.DS_Store", "red/Thumbs.db", "desktop.ini"):
        (split / name).touch()
    data = ImageFolder(split)
    assert of(data) == before
    assert "left out" not in data.summary()
    image(root / "val" / ".cache" / "1.png")
    assert len(classification_splits(str(root))["val"](CLASSES)) == 7


def test_the_folder_at_the_top_is_the_class(tmp_path):
    for name in ("cat/1.png", "cat/2023/1.png", "cat/2023/may/2.png", "dog/2023/1.png"):
        image(tmp_path / name)
    for name in ("animals/cat/1.png", "toys/cat/1.png"):
        image(tmp_path / name)
    image(tmp_path / "1.png")
    data = ImageFolder(tmp_path)
    assert data.classes == ("animals", "cat", "dog", "toys")
    assert all(name.split("/")[0] == label for name, label in of(data).items())
    assert len(data) == 6
    assert "left out: 1 outside the class folders" in data.summary()


def test_the_order_of_existing_data_is_timms(tmp_path):
    """A resumed run counts on it: the k-th image of the data is the same image."""
    from timm.data.readers.reader_image_folder import ReaderImageFolder

    random = np.random.default_rng(0)
    for name in ("class10", "class2", "Dog", "cat", "a b", "x-1.5"):
        for number in random.integers(0, 2000, 6):
            image(tmp_path / name / f"img_{number}.jpg")
            image(tmp_path / name / f"{number}-B.png")
    reader = ReaderImageFolder(str(tmp_path))
    data = ImageFolder(tmp_path)
    assert [str(file) for file in data.files] == [file for file, _ in reader.samples]
    assert data.labels == [label for _, label in reader.samples]
    assert list(data.classes) == sorted(reader.class_to_idx, key=reader.class_to_idx.get)


def test_names_that_only_differ_in_case_or_zeros_have_one_order(tmp_path):
    for name in ("Cat", "cat", "1", "01", "²"):
        image(tmp_path / name / "1.png")
    assert ImageFolder(tmp_path).classes == ("01", "1", "Cat", "cat", "²")


def test_links_neither_loop_nor_duplicate(root):
    split = root / "train"
    before = of(ImageFolder(split))
    (split / "red" / "up").symlink_to("..")
    (split / "red" / "top").symlink_to("../..")
    (split / "red" / "self").symlink_to(".")
    (split / "red" / "loop").symlink_to("loop")
    (split / "green" / "red").symlink_to("../red")
    (split / "all").symlink_to(".")
    data = ImageFolder(split)
    assert of(data) == before
    assert "5 as links to folders that are read anyway" in data.summary()
    assert "1 without an extension" in data.summary()  # the link to itself


def test_links_to_other_places_are_followed_once(tmp_path):
    store = tmp_path / "store"
    for name in ("cats/1.png", "dogs/1.png", "dogs/2.png"):
        image(store / name)
    (store / "dogs" / "back").symlink_to(store)
    split = tmp_path / "data" / "train"
    split.mkdir(parents=True)
    (split / "cat").symlink_to(store / "cats")
    (split / "dog").symlink_to("../../store/dogs")
    image(split / "dog2" / "1.png").unlink()
    (split / "dog2" / "1.png").symlink_to(store / "dogs" / "1.png")  # files may be links
    data = ImageFolder(split)
    assert of(data) == {
        **{"cat/1.png": "cat", "dog/1.png": "dog", "dog/2.png": "dog"},
        "dog2/1.png": "dog2",
    }


@pytest.mark.parametrize("content", ["missing", "text", "other", "hidden", "pipe", "truncated"])
def test_a_class_without_readable_images_is_named(root, content):
    folder = root / "train" / "violet"
    folder.mkdir()
    name = {"other": "1.heic", "hidden": ".1.png"}.get(content, "1.png")
    if content == "pipe":
        os.mkfifo(folder / name)
    elif content == "truncated":
        (folder / name).write_bytes((root / "train" / "red" / "2.png").read_bytes()[:12])
    elif content != "missing":
        (folder / name).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"train.violet: (a class without images|none of its 1 f)"):
        ImageFolder(root / "train")


def test_one_split_under_two_names_is_refused(root):
    for name in ("valid", "validation"):
        (root / name).mkdir()
        with pytest.raises(UserError, match=f"data: contains val and {name}, which are the same"):
            classification_splits(str(root))
        (root / name).rmdir()


def test_an_empty_split_is_named(root):
    (root / "val").rename(root / "old")
    for content in ((), (".DS_Store",), ("notes.txt",), ("1.png",)):
        (root / "val").mkdir(exist_ok=True)
        for name in content:
            image(root / "val" / name) if name == "1.png" else (root / "val" / name).touch()
        with pytest.raises(UserError, match=r"val: no class folders"):
            classification_splits(str(root))["val"](CLASSES)
    with pytest.raises(UserError, match=r"val: no class folders \(only 1 .*\); put the images"):
        ClassificationTraining(ClassificationConfig(str(root)), str(root))


def test_test_images_without_labels_are_no_split(root):
    shutil.rmtree(root / "val")
    image(root / "test" / "1.png")
    assert set(classification_splits(str(root))) == {"train"}
    training = ClassificationTraining(ClassificationConfig(str(root)), str(root))
    assert training.notices == [
        "no validation split, neither val nor test with labels: the model is not evaluated"
    ]


def test_a_single_class_is_one_line(tmp_path, capsys):
    image(tmp_path / "data" / "train" / "cat" / "1.png")
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--device", "cpu"])
    error = capsys.readouterr().err.strip()
    assert "train: 1 images of 1 class; a classifier needs at least two classes" in error
    assert "\n" not in error
    assert not (tmp_path / "run").exists()


def test_unicode_forms_of_a_class_match(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD"))
    assert composed != decomposed
    for split, name in (("train", decomposed), ("val", composed)):
        image(tmp_path / split / name / "1.png")
        image(tmp_path / split / "Ant" / "1.png")
    splits = classification_splits(str(tmp_path))
    train = splits["train"](None)
    val = splits["val"](train.classes)
    assert train.classes == val.classes == ("Ant", composed)
    assert train.labels == val.labels == [0, 1]
    # A model of an earlier version may have the other form.
    assert splits["val"](("Ant", decomposed)).labels == [0, 1]
    image(tmp_path / "train" / composed / "1.png")
    with pytest.raises(UserError, match=r"the same class as .* differs only in its Unicode form"):
        ImageFolder(tmp_path / "train")


def test_a_name_that_cannot_be_printed_is_refused(tmp_path):
    image(tmp_path / "a\x1b[31m" / "1.png")
    with pytest.raises(UserError, match=r"a\\x1b\[31m': the name contains characters"):
        ImageFolder(tmp_path)


def test_an_archive_with_the_waste_of_a_system(root, tmp_path, monkeypatch):
    image(root / "__MACOSX" / "1.png")
    (root / ".DS_Store").touch()
    archive = tmp_path / "data.tar"
    subprocess.run(["tar", "-cf", archive, "-C", tmp_path, "data"], check=True)
    folder = open_data(str(archive), cache=tmp_path / "cache")
    assert task_of(str(folder)) == "classification"
    assert len(classification_splits(str(folder))["train"](None)) == 11


def test_a_folder_for_predict_is_listed_alike(tmp_path):
    from botvision.tasks.load import read_images

    for name in ("1.TIF", "2.webp", "._2.webp", ".3.png", "notes.txt", "a.h5", "a.eps"):
        image(tmp_path / "1.png")
        (tmp_path / name).write_bytes((tmp_path / "1.png").read_bytes())
    read = [file.name for file, _ in read_images(tmp_path)]
    assert read == ["1.TIF", "1.png", "2.webp"]
