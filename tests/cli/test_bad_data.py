"""``--bad-data skip``: what cannot be read is left out, counted and listed."""

import json
import shutil

import pytest

from botvision.data.shapes import write_shapes
from class_files import write_classes
from commandline import fail, run
from tiny import TINY_SETTINGS


@pytest.fixture
def data(tmp_path):
    """A COCO folder with a broken image, a missing one and two malformed annotations."""
    root = tmp_path / "data"
    write_shapes(root, train=8, val=4, image_size=64)
    (root / "train" / "000001.jpg").write_bytes(b"no image")
    (root / "train" / "000002.jpg").unlink()
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = "1 2 3 4"
    content["annotations"][-1]["category_id"] = True
    file.write_text(json.dumps(content))
    return root


def train(capsys, root, out, *more):
    arguments = ["train", root, *TINY_SETTINGS, "--out", out, "--bad-data", "skip"]
    return run(capsys, *arguments, *map(str, more))


def test_an_error_names_the_command_that_lists_all(capsys, data, tmp_path):
    line = fail(capsys, "train", data, *TINY_SETTINGS, "--out", tmp_path / "run")
    assert "annotations[0] with the id 1: 'bbox' is \"1 2 3 4\"" in line
    hint = f"`botvision check {data}` lists all such errors, --bad-data skip leaves them out"
    assert line.endswith(hint)


def test_what_cannot_be_read_is_listed_and_the_list_is_kept(capsys, data, tmp_path):
    out = tmp_path / "run"
    text = train(capsys, data, out, "--max-steps", 2)
    assert "train: 6 images" in text
    assert "train: 4 skipped, listed in skipped.json; the first is annotations[0]" in text
    skipped = json.loads((out / "skipped.json").read_text())
    assert skipped["val"] == []
    assert [entry["what"].split()[0] for entry in skipped["train"]][2:] == [
        *("000002.jpg", "000001.jpg"),
    ]
    # A resumed run has the same data, although the image can be read now.
    shutil.copy(data / "train" / "000003.jpg", data / "train" / "000001.jpg")
    text = train(capsys, data, out, "--max-steps", 4, "--resume")
    assert "resuming from step 2" in text and "train: 6 images" in text
    assert json.loads((out / "skipped.json").read_text()) == skipped
    # Another run does not.
    assert "train: 7 images" in train(capsys, data, tmp_path / "other", "--max-steps", 1)


def test_a_damaged_list_is_one_line(capsys, data, tmp_path):
    out = tmp_path / "run"
    train(capsys, data, out, "--max-steps", 1)
    (out / "skipped.json").write_text('{"train": [1]}')
    arguments = ["--out", out, "--bad-data", "skip", "--max-steps", 2, "--resume"]
    line = fail(capsys, "train", data, *TINY_SETTINGS, *arguments)
    assert "skipped.json: is not a list of what the run skips" in line


def test_images_of_classes(capsys, tmp_path):
    root = write_classes(tmp_path / "data")
    broken = sorted((root / "train").rglob("*.*"))[0]
    broken.write_bytes(b"no image")
    settings = ["--model-args", "{layers: [1, 1, 1, 1], channels: [16, 16, 32, 32]}"]
    settings += ["--image-size", 64, "--batch-size", 4, "--device", "cpu", "--workers", 0]
    arguments = ["train", root, *settings, "--max-steps", 2, "--bad-data", "skip"]
    text = run(capsys, *arguments, "--out", tmp_path / "run")
    assert f"train: 1 skipped, listed in skipped.json; the first is {broken} (" in text
