"""A run is resumed with other settings or data: what is refused, what is named, what is silent."""

import json
import shutil

import pytest
import torch
import yaml
from PIL import Image

import botvision
from botvision.cli.main import main
from botvision.data.detection import DetectionData, Objects
from botvision.data.fingerprint import fingerprint
from botvision.data.shapes import write_shapes
from class_files import write_classes
from commandline import fail
from tiny import TINY_SETTINGS


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of a finished run of 8 steps."""
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


def resume(capsys, data, run, *flags):
    """The lines that a resumed run prints before its first step."""
    main(["train", str(data), "--out", str(run), "--resume", *map(str, flags)])
    return capsys.readouterr().out.splitlines()


def differences(lines):
    found = [line for line in lines if line.startswith("resuming with other")]
    assert len(found) <= 1
    return found[0].partition(": ")[2] if found else ""


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--image-size", 96], "--image-size 96: the run in {run} has 64"),
        (["--model", "resnet50"], "--model resnet50: the run in {run} has botnet50"),
        (["--norm", "frozen"], "--norm frozen: the run in {run} has plain"),
        (["--task", "detection"], "--task detection: the run in {run} has segmentation"),
        (["--task", "classification"], "--task classification: the run in {run} has segmentation"),
        (
            ["--model-args", "{layers: [1, 1, 1, 2], channels: [16, 16, 32, 32]}"],
            "--model-args {{'layers': [1, 1, 1, 2], 'channels': [16, 16, 32, 32]}}: the run in "
            "{run} has {{'layers': [1, 1, 1, 1], 'channels': [16, 16, 32, 32]}}",
        ),
        (
            ["--detector.box-head-dim", 48],
            "--detector.box-head-dim 48: the run in {run} has 32",
        ),
        (["--optimizer", "adamw"], "--optimizer adamw: the run in {run} has sgd"),
        (["--freeze-stages", 1], "--freeze-stages 1: the run in {run} has 0"),
        (["--ema-decay", 0.9], "--ema-decay 0.9: the run in {run} has 0"),
    ],
)
def test_another_model_is_refused_and_the_run_is_left_as_it_was(
    run, tiny_data, capsys, flags, line
):
    files = [file for file in run.rglob("*") if file.is_file() and file.name != ".lock"]
    before = {file: file.read_bytes() for file in files}
    found = fail(capsys, "train", tiny_data, "--out", run, "--resume", "--max-steps", 9, *flags)
    assert line.format(run=run) in found
    assert "leave it out to continue that run" in found
    assert {file: file.read_bytes() for file in files} == before


def test_a_run_is_resumed_after_wrong_flags(run, tiny_data, capsys):
    fail(capsys, "train", tiny_data, "--out", run, "--resume", "--image-size", 128)
    lines = resume(capsys, tiny_data, run, "--max-steps", 9)
    assert "resuming from step 8" in lines
    assert differences(lines) == ""


def test_what_differs_is_named_in_one_line_and_applies(run, tiny_data, capsys):
    flags = ["--lr", 0.004, "--weight-decay", 0.5, "--seed", 7, "--batch-size", 4, "--max-steps", 9]
    lines = resume(capsys, tiny_data, run, *flags)
    assert sorted(differences(lines).split(", ")) == [
        "batch_size 4 (was 3)",
        "lr 0.004 (was 0.01)",
        "seed 7 (was 0)",
        "weight_decay 0.5 (was 0.0001)",
    ]
    optimizer = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    assert {group["weight_decay"] for group in optimizer["param_groups"]} == {0.0, 0.5}
    assert {group["initial_lr"] for group in optimizer["param_groups"]} == {0.004}
    step = json.loads((run / "metrics.jsonl").read_text().splitlines()[-3])
    assert (step["step"], step["lr"]) == (9, pytest.approx(0.004 * 0.01))
    lines = resume(capsys, tiny_data, run, "--max-steps", 10)
    assert differences(lines) == ""


def test_settings_without_influence_on_the_result_change_silently(run, tiny_data, capsys):
    flags = ["--epochs", 4.0, "--eval-steps", 3, "--patience", 5, "--workers", 1]
    flags += ["--checkpoint-steps", 2, "--checkpoint-minutes", 3]
    lines = resume(capsys, tiny_data, run, *flags)
    assert differences(lines) == ""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # 4 epochs of 7 images are 10 steps, although the run had a number of steps before.
    assert [event["step"] for event in events if event["event"] == "eval"] == [4, 8, 9, 10]


def test_explicit_settings_that_have_not_changed_are_no_difference(run, tiny_data, capsys):
    flags = [*TINY_SETTINGS, "--lr", 0.01, "--seed", 0, "--flip", "true", "--max-steps", 9]
    assert differences(resume(capsys, tiny_data, run, *flags)) == ""


def test_the_recipe_does_not_replace_the_settings_of_the_run(run, tiny_data, capsys):
    lines = resume(capsys, tiny_data, run, "--recipe", "quick", "--max-steps", 9)
    (line,) = [line for line in lines if line.startswith("the settings of the run apply")]
    assert "image_size 64 (recipe: " in line and "max_steps" not in line


def copy(data, to, change):
    """A copy of a COCO folder, with a changed annotation file of each split."""
    shutil.copytree(data, to)
    for file in (to / "annotations").iterdir():
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
    return to


def test_other_classes_are_refused(run, tiny_data, tmp_path, capsys):
    def swap(content):
        first, second = content["categories"][:2]
        first["name"], second["name"] = second["name"], first["name"]

    data = copy(tiny_data, tmp_path / "swapped", swap)
    line = fail(capsys, "train", data, "--out", run, "--resume", "--max-steps", 9)
    assert "has 4 classes and the run in" in line
    assert "class 1 is 'square' and was 'circle'; resume with the same classes" in line

    def add(content):
        content["categories"].append({"id": 9, "name": "star"})

    data = copy(tiny_data, tmp_path / "more", add)
    line = fail(capsys, "train", data, "--out", run, "--resume", "--max-steps", 9)
    assert "was trained with 4, class 5 is 'star' and was none" in line


def test_changed_data_is_named(run, tiny_data, tmp_path, capsys):
    def remove(content):
        gone = content["images"].pop()["id"]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != gone]

    data = copy(tiny_data, tmp_path / "fewer", remove)
    lines = resume(capsys, data, run, "--max-steps", 9)
    wanted = "training data 6 images (was 7), validation data 3 images (was 4)"
    assert differences(lines) == wanted
    assert differences(resume(capsys, data, run, "--max-steps", 10)) == ""

    def move(content):
        content["annotations"][0]["bbox"][0] += 1

    moved = copy(data, tmp_path / "moved", move)
    lines = resume(capsys, moved, run, "--max-steps", 11)
    assert differences(lines).startswith("training data with other file names, labels or boxes")


def test_moved_data_is_no_difference(run, tiny_data, tmp_path, capsys):
    shutil.copytree(tiny_data, tmp_path / "elsewhere")
    assert differences(resume(capsys, tmp_path / "elsewhere", run, "--max-steps", 9)) == ""


def test_class_folders(tmp_path, capsys):
    data, run = write_classes(tmp_path / "data"), tmp_path / "run"
    settings = ["--model", "resnet18", "--image-size", "32", "--batch-size", "4", "--device", "cpu"]
    main(["train", str(data), *settings, "--max-steps", "1", "--out", str(run)])
    capsys.readouterr()
    line = fail(capsys, "train", data, "--out", run, "--resume", "--image-size", 64)
    assert "--image-size 64: the run in" in line
    shutil.copy(data / "train/red/2.png", data / "train/red/200.png")
    lines = resume(capsys, data, run, "--max-steps", 2)
    assert differences(lines) == "training data 12 images (was 11)"
    (data / "train/red").rename(data / "train/pink")
    (data / "val/red").rename(data / "val/pink")
    capsys.readouterr()
    line = fail(capsys, "train", data, "--out", run, "--resume", "--max-steps", 3)
    assert "is 'pink' and was 'red'" in line


class Own(DetectionData):
    """A user's format."""

    categories = botvision.Categories((1,), ("cat",))

    def __init__(self, left):
        self.left = left

    def __len__(self):
        return 2

    def image(self, index):
        raise AssertionError("a fingerprint reads no image")

    def objects(self, index):
        return Objects([[self.left, 0, 9, 9]], [1], [None])


class OwnClasses:
    classes = ("cat",)

    def __init__(self, *labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)


def test_data_of_users_has_a_fingerprint():
    assert fingerprint(Own(0)) == fingerprint(Own(0)) != fingerprint(Own(1))
    assert fingerprint(OwnClasses(0, 1)) == fingerprint(OwnClasses(0, 1))
    assert fingerprint(OwnClasses(0, 1)) != fingerprint(OwnClasses(1, 1))
    assert fingerprint(Own(0))["images"] == 2


def test_a_run_of_an_earlier_version_is_resumed(run, tiny_data, capsys):
    """Its config lacks the data and its checkpoint the state of the evaluation."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["resolved"]["data"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    best = checkpoint["callbacks"]["Evaluation"]["best"]
    checkpoint["callbacks"]["Evaluation"] = {"best": best}
    checkpoint["callbacks"]["Patience{'monitor': 'score', 'mode': 'max'}"] = {"wait_count": 1}
    torch.save(checkpoint, run / "checkpoints/last.ckpt")
    assert differences(resume(capsys, tiny_data, run, "--max-steps", 9)) == ""
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["Evaluation"]
    assert state["best"] >= best
    assert state["step"] == 9


def test_images_of_a_changed_split_are_found(tmp_path):
    """The name of an image counts, too."""
    write_shapes(tmp_path / "a", train=2, val=1, image_size=64)
    main_split = botvision.data.coco.find_splits(tmp_path / "a")["train"]
    data = botvision.data.coco.load_split(main_split)
    first = fingerprint(data)
    file = next((tmp_path / "a" / "annotations").glob("*train*"))
    content = json.loads(file.read_text())
    old = content["images"][0]["file_name"]
    content["images"][0]["file_name"] = f"new-{old}"
    folder = data.image_path(0).parent
    Image.open(folder / old).save(folder / f"new-{old}")
    file.write_text(json.dumps(content))
    assert fingerprint(botvision.data.coco.load_split(main_split)) != first
