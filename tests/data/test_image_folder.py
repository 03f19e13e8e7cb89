"""Class folders: splits, labels, faults, and samples that are a function of their key."""

import shutil

import pytest
import torch
from PIL import Image

from botvision.config import ClassificationConfig
from botvision.data.classification import (
    ClassificationDataset,
    eval_transform,
    readable_names,
    train_transform,
)
from botvision.data.formats import classification_splits
from botvision.data.image_folder import ImageFolder
from botvision.data.sources import task_of
from botvision.errors import UserError
from class_files import CLASSES, write_classes


@pytest.fixture
def root(tmp_path):
    return write_classes(tmp_path / "data")


def test_splits_go_by_their_usual_names(root):
    (root / "val").rename(root / "validation")
    splits = classification_splits(str(root))
    assert {name: len(open_split(None)) for name, open_split in splits.items()} == {
        "train": 11,
        "val": 7,
    }
    shutil.copytree(root / "train", root / "test")
    assert set(classification_splits(str(root))) == {"train", "val", "test"}


def test_labels_follow_the_names_in_natural_order(tmp_path):
    for name in ("class10", "class2", "class1"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    data = ImageFolder(tmp_path)
    assert data.classes == ("class1", "class2", "class10")
    assert [data.classes[label] for label in data.labels] == [f.parent.name for f in data.files]


def test_a_split_without_all_classes_keeps_the_labels(root):
    shutil.rmtree(root / "val" / "blue")
    data = ImageFolder(root / "val", CLASSES)
    assert {data.classes[label] for label in data.labels} == {"green", "red"}
    assert [data.classes[label] for label in data.labels] == [f.parent.name for f in data.files]
    assert data.summary().endswith("4 images of 2 classes")


def test_faults_of_the_folders_are_named(root, tmp_path):
    (root / "val" / "violet").mkdir()
    with pytest.raises(UserError, match="violet: a class without images"):
        ImageFolder(root / "val", CLASSES)
    Image.new("RGB", (4, 4)).save(root / "val" / "violet" / "0.png")
    with pytest.raises(UserError, match="violet: the class 'violet' is not one of the model's 3"):
        ImageFolder(root / "val", CLASSES)
    (tmp_path / "empty" / "train" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match=r"train.a: a class without images; fill it"):
        ImageFolder(tmp_path / "empty" / "train")
    with pytest.raises(UserError, match="no class folders or shards; expected train/CLASS"):
        classification_splits(str(tmp_path / "data" / "val"))


def test_what_a_folder_is(root, tiny_data, tmp_path):
    assert task_of(str(root)) == "classification"
    assert task_of(str(tiny_data)) == "detection"
    assert task_of("shapes") == "detection"
    (tmp_path / "neither").mkdir()
    with pytest.raises(UserError, match=r"neither COCO format .* nor class folders"):
        task_of(str(tmp_path / "neither"))


def test_a_broken_image_is_named(root):
    broken = root / "train" / "red" / "2.png"
    broken.write_bytes(b"no image")
    data = ImageFolder(root / "train")
    dataset = ClassificationDataset(data, eval_transform(16, 1.0))
    with pytest.raises(UserError, match=r"red.2\.png: cannot be read as an image"):
        dataset[data.files.index(broken)]


@pytest.mark.parametrize("policy", [None, "rand-m10-n2"])
def test_a_sample_is_a_function_of_seed_epoch_and_index(root, policy):
    config = ClassificationConfig(str(root), auto_augment=policy)
    data = ImageFolder(root / "train")

    def sample(key, seed=0):
        return ClassificationDataset(data, train_transform(config, 24), seed=seed)[key]

    image, label = sample((2, 5))
    assert image.shape == (3, 24, 24)
    assert image.dtype == torch.uint8
    assert label == data.labels[5]
    sample((0, 1))
    assert torch.equal(sample((2, 5))[0], image)
    assert not torch.equal(sample((3, 5))[0], image)
    assert not torch.equal(sample((2, 5), seed=1)[0], image)


def test_evaluation_sees_the_center():
    image = Image.new("RGB", (60, 40))
    image.paste((255, 255, 255), (10, 0, 50, 40))
    whole, center = eval_transform(20, 1.0)(image), eval_transform(20, 0.5)(image)
    # Resizing blends a little of the black beside the square into its edge.
    assert (whole[:, :, 1:-1] == 255).all()
    assert (whole > 200).all()
    assert (center == 255).all()


def test_synsets_have_words():
    assert readable_names(("n01440764", "n02123045")) == ("tench", "tabby")
    assert readable_names(("n01440764", "cat")) == ("n01440764", "cat")
    cranes = ("n02012849", "n03126707")
    assert readable_names(cranes) == ("crane (n02012849)", "crane (n03126707)")
