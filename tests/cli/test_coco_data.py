"""Training and evaluating on annotations as other tools write them."""

import json
import shutil

import pytest

import botvision
from botvision.data.coco import find_splits, load_split
from commandline import fail, run
from tiny import TINY_SETTINGS


@pytest.fixture
def data(tiny_data, tmp_path):
    """A copy of ``tiny_data`` and a function that changes its annotation files."""
    root = tmp_path / "data"
    shutil.copytree(tiny_data, root)

    def change(edit, *splits):
        for split in splits or ("train", "val"):
            file = root / "annotations" / f"instances_{split}.json"
            content = json.loads(file.read_text())
            edit(content)
            file.write_text(json.dumps(content))
        return root

    return change


def train(capsys, root, *more):
    out = root.parent / "run"
    return out, run(capsys, "train", root, *TINY_SETTINGS, "--max-steps", 2, "--out", out, *more)


def remove_masks(content):
    for annotation in content["annotations"][::3]:
        annotation["segmentation"] = []


def test_objects_with_and_without_masks_need_a_task(capsys, data):
    root = data(remove_masks)
    counts = [
        json.loads((root / "annotations" / f"instances_{s}.json").read_text())["annotations"]
        for s in ("train", "val")
    ]
    objects = sum(map(len, counts))
    absent = sum(len(c[::3]) for c in counts)
    line = fail(capsys, "train", root, *TINY_SETTINGS, "--max-steps", 1, "--out", root / "run")
    assert f"{absent} of {objects} objects have no mask; --task detection uses all boxes, " in line
    assert f"--task segmentation leaves {absent} objects without a mask out" in line
    assert not (root / "run" / "best.safetensors").exists()


def test_the_same_objects_are_left_out_of_training_and_evaluation(capsys, data):
    root = data(remove_masks)
    out, text = train(capsys, root, "--task", "segmentation")
    splits = {name: load_split(s, "segmentation") for name, s in find_splits(root).items()}
    for name, split in splits.items():
        left_out = split.annotations.left_out["no mask"]
        assert split.summary() in text
        assert f"{left_out} objects left out (no mask: {left_out})" in split.summary(), name
    assert splits["val"].summary() in run(capsys, "eval", out, root, "--device", "cpu")
    _, text = train(capsys, root, "--task", "detection", "--out", root / "boxes")
    assert "left out" not in text


def test_masks_of_one_split_only_need_a_task(capsys, data):
    def all_of_them(content):
        for annotation in content["annotations"]:
            del annotation["segmentation"]

    root = data(all_of_them, "val")
    line = fail(capsys, "train", root, *TINY_SETTINGS, "--max-steps", 1, "--out", root / "run")
    assert "val.json: " in line and "--task detection uses all boxes" in line
    arguments = [*TINY_SETTINGS, "--task", "segmentation", "--out", root / "run"]
    line = fail(capsys, "train", root, "--max-steps", 1, *arguments)
    assert "none of its objects can be used (no mask: " in line and "use the --task det" in line


def test_nothing_to_train_on_is_one_line_before_the_first_step(capsys, data):
    root = data(lambda content: content.update(annotations=[]), "train")
    line = fail(capsys, "train", root, *TINY_SETTINGS, "--max-steps", 1, "--out", root / "run")
    assert "instances_train.json: has no objects to train on" in line


def test_ids_of_any_kind_are_trained_on_evaluated_and_written(capsys, data):
    def number_differently(content):
        for image in content["images"]:
            image["id"] = 2**64 - image["id"]
        for annotation in content["annotations"]:
            annotation["id"] = 0
            annotation["image_id"] = 2**64 - annotation["image_id"]
            annotation["category_id"] = str(9 - annotation["category_id"])
        for category in content["categories"]:
            category["id"] = 9 - category["id"]

    root = data(number_differently, "val")
    out, _ = train(capsys, root)
    # The labels of the training file, the ids of the validation file.
    names = json.loads((root / "annotations" / "instances_train.json").read_text())["categories"]
    assert list(botvision.load(out, device="cpu").spec.categories.names) == [
        category["name"] for category in sorted(names, key=lambda c: c["id"])
    ]
    run(capsys, "eval", out, root, "--device", "cpu", "--score-threshold", 0)
    results = json.loads((out / "predictions" / "results.json").read_text())
    assert {r["image_id"] for r in results} <= {2**64 - i for i in range(1, 5)} and results
    assert {r["category_id"] for r in results} <= {5, 6, 7, 8}


def test_boxes_in_another_format_are_counted_and_the_command_is_named(capsys, data):
    def corners(content):
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            annotation["bbox"] = [x, y, x + width, y + height]

    root = data(corners)
    _, text = train(capsys, root)
    assert "boxes that reach out of their image: " in text
    assert f"run `botvision check {root}` to see these objects" in text
