"""Names of classes, images and folders are text, from training to the pictures of predictions."""

import json
import shutil

import pytest
from PIL import Image

from commandline import run
from tiny import TINY_SETTINGS

CLASSES = ["[/x] cat[adult]", "\x1b[31mred", "two\nlines :cat: \u202e", "$x^2$ " + "n" * 250]
FILES = [
    "[b]\x1b[0m.jpg",
    "a\nb.jpg",
    "..jpg",
    f"{'n' * 240}.jpg",
    "$x$.jpg",
    ":cat:.jpg",
    "日.jpg",
]
CPU = ["--device", "cpu", "--precision", "32", "--workers", "0"]


def checked(text):
    """A command's output, which has no control characters."""
    assert all(line.isprintable() for line in text.split("\n"))
    return text


def printed(capsys, *arguments):
    return checked(run(capsys, *arguments))


def renamed(root, out):
    """The data with these names of classes and files."""
    shutil.copytree(root, out)
    for split in ("train", "val"):
        path = out / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        for category, name in zip(content["categories"], CLASSES, strict=True):
            category["name"] = name
        for image, name in zip(content["images"], FILES, strict=False):
            (out / split / image["file_name"]).rename(out / split / name)
            image["file_name"] = name
        path.write_text(json.dumps(content))
    return out


def test_a_detector(capsys, tiny_data, tmp_path):
    data = renamed(tiny_data, tmp_path / "data [red]")
    out = tmp_path / "run [b]"
    text = printed(capsys, "train", data, *TINY_SETTINGS, "--max-steps", "2", "--out", out)
    assert "1 = 1 [/x] cat[adult], 2 = 2 \\x1b[31mred, 3 = 3 two\\nlines :cat: \\u202e" in text
    assert f"run written to {out}" in text
    text = printed(capsys, "eval", out, data, *CPU)
    assert "[/x] cat[adult]" in text and f"written to {out}/metrics.json" in text
    assert set(json.loads((out / "metrics.json").read_text())["per_class"]) == set(CLASSES)
    folder = tmp_path / "out [/b]".replace("/", "")
    options = ["--score-threshold", "0", "--out", folder, *CPU[:4]]
    text = printed(capsys, "predict", out, data / "val" / FILES[0], data / "val", *options)
    assert f"{data}/val/a\\nb.jpg: " in text and "\\x1b[31mred" in text
    listed = json.loads((folder / "predictions.json").read_text())
    assert {entry["file"] for entry in listed} >= {str(data / "val" / FILES[k]) for k in (0, 1)}
    assert {i["class"] for entry in listed for i in entry["instances"]} <= set(CLASSES)
    assert all((folder / entry["picture"]).is_file() for entry in listed)
    more = ["--weights", out, "--max-steps", "1", "--out", tmp_path / "more"]
    text = printed(capsys, "train", data, *TINY_SETTINGS, *more)
    assert "classes with weights in the file: [/x] cat[adult], \\x1b[31mred, two\\nlines" in text


def test_a_classifier(capsys, tmp_path):
    """Control characters in names of class folders are refused elsewhere."""
    classes = ["cat[adult] [x]", "[red]{0}%s", "two :cat:", "$x^2$" + "n" * 200]
    for split in ("train", "val"):
        for k, name in enumerate(classes):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for file in FILES[:2]:
                Image.new("RGB", (40, 40), (60 * k, 0, 0)).save(folder / file)
    out = tmp_path / "run"
    tiny = ["--model-args", "{layers: [1, 1, 1, 1], channels: [16, 16, 32, 32]}"]
    size = ["--image-size", "48", "--batch-size", "4", "--max-steps", "1", "--out", out]
    printed(capsys, "train", tmp_path / "data", "--model", "botnet50_s1", *tiny, *size, *CPU)
    text = printed(capsys, "eval", out, tmp_path / "data", *CPU)
    assert "cat[adult] [x]" in text and "[red]{0}%s" in text
    text = printed(capsys, "predict", out, *(tmp_path / "data" / "val").iterdir(), *CPU[:4])
    listed = json.loads((out / "predictions" / "predictions.json").read_text())
    assert {c["class"] for entry in listed for c in entry["classes"]} == set(classes)
    assert len(listed) == 8 and {entry["picture"] for entry in listed} == {"predictions.png"}


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_bad_image_is_named_whole(capfd, tiny_data, tmp_path, workers):
    """Also where a data loading process finds it."""
    from botvision.cli.main import main

    data = renamed(tiny_data, tmp_path / "data")
    (data / "train" / FILES[1]).write_bytes(b"no image")
    settings = [*TINY_SETTINGS, "--workers", workers, "--max-steps", "9", "--out", tmp_path / "run"]
    with pytest.raises(SystemExit) as stopped:
        main(["train", *map(str, [data, *settings])])
    assert stopped.value.code == 2
    line = checked(capfd.readouterr().err.rstrip("\n").split("\n")[-1])
    assert line.startswith(f"botvision train: error: {data}/train/a\\nb.jpg: cannot be read as an")
