"""Training, evaluation and prediction read images of more than 8 bits in the same way."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import botvision
from botvision.cli.main import main
from botvision.data.pixels import Pixels
from botvision.detection import build_detector
from botvision.errors import UserError
from botvision.settings import load_recipe
from coco_files import annotation, content, write
from commandline import fail, run, train_config
from tiny import TINY_SETTINGS

CLASSIFIER = [
    *("--model", "resnet18", "--image-size", "32", "--batch-size", "4", "--max-steps", "2"),
    *("--device", "cpu", "--precision", "32", "--workers", "0", "--seed", "1"),
]
RNG = np.random.default_rng(0)


def twelve_bit(path, high=4095, pages=1):
    """Random values of 12 bits in 16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(RNG.integers(0, high + 1, (40, 60), dtype=np.uint16))] * pages
    images[0].save(path, **({"save_all": True, "append_images": images[1:]} if pages > 1 else {}))
    return path


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    for split in ("train", "val"):
        for index in range(8):
            twelve_bit(root / split / ("cat", "dog")[index % 2] / f"{index}.tif")
    return root


@pytest.fixture(scope="module")
def trained(classes, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    main(["train", str(classes), *CLASSIFIER, "--out", str(out)])
    return out


def used_range(out):
    """The range in config.yaml and in the model, which are the same."""
    config = yaml.safe_load((out / "config.yaml").read_text())
    spec = botvision.load(out).spec
    assert tuple(config["pixel_range"]) == spec.pixel_range
    return spec.pixel_range


def test_the_range_of_the_training_images_is_stored(trained, classes):
    low, high = used_range(trained)
    values = np.concatenate([np.ravel(Image.open(f)) for f in classes.glob("train/*/*.tif")])
    want = np.percentile(values.astype(float), (0.1, 99.9), method="nearest")
    np.testing.assert_array_equal([low, high], want)
    assert (low, high) != (0, 4095)


def test_prediction_scales_as_training_does(trained, classes, tmp_path, capsys):
    """An 8-bit image of the scaled values gives the same probabilities to the bit."""
    low, high = used_range(trained)
    file = next(classes.glob("val/*/*.tif"))
    values = np.asarray(Image.open(file)).astype(np.float64)
    scaled = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    eight = tmp_path / "eight.png"
    Image.fromarray(scaled).save(eight)
    model = botvision.load(trained, precision="32")
    pillow = Image.open(file)
    pillow.load()
    rgb = np.repeat(scaled[..., None], 3, axis=2)
    one, *others = model.predict([file, eight, pillow, rgb])
    for other in others:
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
    np.testing.assert_array_equal(np.asarray(one.image), rgb)
    out = run(capsys, "predict", trained, file, "--out", tmp_path / "p", "--device", "cpu")
    assert "1 of 1 sampled images have integers of more than 8 bits; they use " in out
    assert f"and {low:g} to {high:g} become 0 to 255 (`pixel_range`)" in out


def test_evaluation_scales_as_training_does(trained, classes, tmp_path, capsys):
    """The accuracy is that of the 8-bit images, and another range gives another loss."""
    low, high = used_range(trained)
    for file in classes.glob("val/*/*.tif"):
        values = np.asarray(Image.open(file)).astype(np.float64)
        scaled = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
        path = tmp_path / "eight" / "val" / file.parent.name / file.with_suffix(".png").name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scaled).save(path)
    options = ["--device", "cpu", "--precision", "32", "--workers", "0", "--out"]
    metrics = []
    for data, more in ((classes, []), (tmp_path / "eight", []), (classes, [0, 60000])):
        out = tmp_path / f"{len(metrics)}"
        given = ["--pixel-range", *more] if more else []
        run(capsys, "eval", *given, trained, data, *options, out)
        metrics.append(json.loads((out / "metrics.json").read_text()))
        del metrics[-1]["images_per_second"]
    assert metrics[0] == metrics[1]
    assert metrics[0] != metrics[2]


def test_a_resumed_run_keeps_its_range(trained, classes, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(classes, data)
    shutil.copytree(trained, out)
    twelve_bit(data / "train" / "cat" / "0.tif", high=60000)
    before = used_range(out)
    shown = run(capsys, "train", data, "--max-steps", 4, "--resume", "--out", out)
    assert f"and {before[0]:g} to {before[1]:g} become 0 to 255" in shown
    assert used_range(out) == before


def test_a_run_of_an_earlier_version_goes_on_without_a_range(trained, classes, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    config = yaml.safe_load((trained / "config.yaml").read_text())
    for name in ("pixel_range", "page"):
        del config[name]
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    assert train_config(classes, "--resume", "--out", out).pixel_range is None


def test_the_range_is_set(classes, tmp_path, capsys):
    options = [*CLASSIFIER, "--out", tmp_path / "run"]
    shown = run(capsys, "train", "--pixel-range", 0, 4095, classes, *options)
    assert used_range(tmp_path / "run") == (0, 4095)
    assert "and 0 to 4095 become 0 to 255" in shown
    options[-1] = tmp_path / "other"
    for bad in ((5, 5), ("nan", 1)):
        assert "--pixel-range" in fail(capsys, "train", classes, "--pixel-range", *bad, *options)
    assert "--page" in fail(capsys, "train", classes, "--page", "-1", *options)
    assert not (tmp_path / "other").exists()


def test_a_model_of_8_bit_images_has_none_and_says_so(tmp_path, capsys):
    for index in range(8):
        path = tmp_path / "data" / "train" / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    out = tmp_path / "run"
    shown = run(capsys, "train", tmp_path / "data", *CLASSIFIER, "--out", out)
    assert "sampled" not in shown
    assert botvision.load(out).spec.pixels == Pixels()
    assert yaml.safe_load((out / "config.yaml").read_text())["pixel_range"] == "auto"
    deep = twelve_bit(tmp_path / "deep.png")
    shown = run(capsys, "predict", out, deep, "--device", "cpu")
    assert "without a pixel range integers are read as 0 to 65535" in shown
    shown = run(capsys, "predict", out, deep, "--device", "cpu", "--pixel-range", 0, 4095)
    assert "and 0 to 4095 become 0 to 255" in shown
    error = fail(capsys, "predict", out, deep, "--device", "cpu", "--page", 4)
    assert "deep.png: has no page 4, counted from 0" in error


def test_a_detector_and_its_pages(tmp_path, capsys):
    what = content([annotation(1), annotation(2, image_id=2, category_id=2)])
    for image in what["images"]:
        image["file_name"] = f"{image['id']}.tif"
    write(tmp_path / "data", what)
    for index in (1, 2):
        file = twelve_bit(tmp_path / "data" / "train" / f"{index}.tif", pages=3)
    out = tmp_path / "run"
    options = [*TINY_SETTINGS, "--batch-size", "2", "--max-steps", "1", "--out", out]
    shown = run(capsys, "train", tmp_path / "data", *options, "--page", 2)
    assert "2 of 2 sampled images have several pages; page 2 is used, counted from 0" in shown
    low, high = used_range(out)
    model = botvision.load(out, device="cpu")
    assert model.spec.pixels == Pixels((low, high), 2)
    (found,) = model.predict(file)
    assert found.reading == model.spec.pixels
    values = np.asarray(Image.open(file)).astype(np.float64)
    scaled = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)
    np.testing.assert_array_equal(np.asarray(found.image)[..., 0], scaled)
    shown = run(capsys, "predict", out, file, "--device", "cpu", "--page", 0)
    assert "page 0 is used" in shown
    error = fail(capsys, "eval", out, tmp_path / "data", "--device", "cpu", "--page", 3)
    assert "has no page 3, counted from 0" in error


def test_files_of_other_versions(trained, tmp_path):
    """A file of schema 1 loads, and an earlier version refuses a file of schema 2."""
    path = tmp_path / "best.safetensors"
    with safe_open(trained / "best.safetensors", "pt") as file:
        card = json.loads(file.metadata()["botvision"])
    assert card["schema"] == 2
    tensors = load_file(trained / "best.safetensors")
    card["schema"] = 1
    for name in ("pixel_range", "page"):
        del card[name]
    save_file(tensors, path, metadata={"botvision": json.dumps(card)})
    assert botvision.load(path).spec.pixels == Pixels()
    card["schema"] = 3
    save_file(tensors, path, metadata={"botvision": json.dumps(card)})
    with pytest.raises(UserError, match="written by a later version of botvision"):
        botvision.load(path)


class OwnData:
    """Data of a user, whose images are 8-bit RGB already."""

    classes = ("cat", "dog")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return Image.new("RGB", (40, 40), (60 * index, 0, 0)), index % 2

    def summary(self):
        return "own data"


def test_data_of_users_needs_no_pixels(tmp_path):
    settings = load_recipe("cifar10") | {
        **{"model": "resnet18", "model_args": {}, "image_size": 32, "batch_size": 4},
        **{"max_steps": 1, "device": "cpu", "workers": 0, "pixel_range": (0, 4095)},
    }
    done = botvision.train({"train": OwnData()}, out=tmp_path / "run", **settings)
    # Whose own scaling it may be.
    assert botvision.load(done).spec.pixels == Pixels((0, 4095))


def test_a_detector_refuses_floats():
    args = {"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32]}
    detector = build_detector("resnet50", 2, 64, task="detection", model_args=args).eval()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    detector([image])
    for other in (image / 255, image.float(), image.to(torch.float16)):
        with pytest.raises(ValueError, match="images are uint8, 0 to 255, not torch"):
            detector([other])
