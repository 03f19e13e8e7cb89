"""``botvision check``: exit status, report, and every finding."""

import json

import numpy as np
import pytest
from PIL import Image

import botvision
import coco_files
from botvision.cli.main import main
from botvision.data.categories import Categories
from botvision.data.detection import DetectionData, Objects
from class_files import write_classes
from coco_files import HEIGHT, WIDTH, annotation, content
from commandline import fail


def check(capsys, root, *more):
    """The exit status and the report."""
    status = 0
    try:
        main(["check", str(root), "--json", "--out", str(root / "out"), *more])
    except SystemExit as stopped:
        status = stopped.code
    return status, json.loads(capsys.readouterr().out)


def kinds(report):
    return {finding["kind"] for finding in report["findings"]}


def folder(root, annotations=None, **change):
    """A COCO folder of five images with an object each, without findings."""
    entries = (
        [annotation(i, image_id=i) for i in range(1, 6)] if annotations is None else annotations
    )
    what = content(entries, images=5, categories=[(1, "cat")])
    what |= change
    coco_files.write(root, what)
    rng = np.random.default_rng(7)
    for i in range(1, 6):
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "train" / f"{i}.png")
    return root / "train"


def test_a_sound_set_is_clean(capsys, tiny_data, tmp_path):
    main(["check", str(tiny_data), "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: 7 images, ")
    assert lines[1].split()[0] == "classes" and "square: " in lines[1]
    assert "no findings" in lines
    assert lines[-1] == f"contact sheet: {tmp_path / 'sheet.png'}"
    assert Image.open(tmp_path / "sheet.png").width > 2000


def test_the_report_is_json(capsys, tmp_path):
    folder(tmp_path)
    status, report = check(capsys, tmp_path)
    assert status == 0 and report["findings"] == []
    train = report["splits"]["train"]
    assert train["classes"] == {"cat": 5}
    assert (train["images"], train["objects"], train["crowd_regions"]) == (5, 5, 0)
    assert train["box_sides"] == {"16-32": 5} and train["image_sides"] == {"32-64": 5}
    assert train["pixels"] == {"RGB": [0, 255]}
    assert report["sheet"] == str(tmp_path / "out" / "sheet.png")


@pytest.mark.parametrize("text", ["", "{}", '{"images": [], "annotations": []}'])
def test_data_that_cannot_be_read_is_status_2(capsys, tmp_path, text):
    folder(tmp_path)
    (tmp_path / "annotations" / "instances_train.json").write_text(text)
    assert "instances_train.json: " in fail(capsys, "check", tmp_path)
    assert "no such folder" in fail(capsys, "check", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "kind", "count"),
    [
        ({"segmentation": [[1, 2, True]]}, "malformed", 1),
        ({"image_id": 99}, "malformed", 1),
        ({"bbox": [1, 2, 0, 4]}, "left out", 1),
        ({"bbox": [900, 2, 4, 4]}, "left out", 1),
        ({"segmentation": [[1, 2, 3, 4]]}, "left out", 1),
        ({"segmentation": []}, "no mask", 1),
        ({"bbox": [50, 10, 20, 20], "segmentation": [[50, 10, 70, 10, 70, 30]]}, "outside", 1),
        ({"bbox": [10, 10, 20, 0.5]}, "small", 1),
        ({"bbox": [10, 10, 50, 25]}, "misfit", 1),
        ({"image_id": 2}, "repeated", 1),
    ],
)
def test_suspicious_objects_are_found(capsys, tmp_path, change, kind, count):
    entries = [annotation(i, image_id=i) for i in range(1, 6)]
    entries[0] |= change
    folder(tmp_path, entries)
    status, report = check(capsys, tmp_path)
    assert status == 1
    (finding,) = [f for f in report["findings"] if f["kind"] == kind]
    assert finding["count"] == count == len(finding["names"])
    assert finding["split"] == "train"


def replace(images, name, picture, **options):
    picture.save(images / name, **options)


def gray(low, high, dtype=np.uint8):
    pixels = np.linspace(low, high, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    return Image.fromarray(pixels.astype(dtype))


def nan_image():
    pixels = np.asarray(gray(0, 1, np.float32)).copy()
    pixels[0, 0] = np.nan
    return Image.fromarray(pixels)


IMAGES = {
    "missing": (lambda images: (images / "2.png").unlink(), "malformed"),
    "broken": (lambda images: (images / "2.png").write_bytes(b"no image"), "unreadable"),
    "another size": (lambda images: replace(images, "2.png", Image.new("L", (9, 9))), "unreadable"),
    "one color": (
        lambda images: replace(images, "2.png", Image.new("RGB", (WIDTH, HEIGHT), "red")),
        "flat",
    ),
    "black": (lambda images: replace(images, "2.png", Image.new("L", (WIDTH, HEIGHT))), "flat"),
    "low contrast": (lambda images: replace(images, "2.png", gray(100, 110)), "narrow"),
    "16 bits": (lambda images: replace(images, "2.png", gray(0, 4095, np.uint16)), "depth"),
    "floats with NaN": (
        lambda images: replace(images, "2.png", nan_image(), format="TIFF"),
        "depth",
    ),
    "pages": (
        lambda images: replace(
            images,
            "2.png",
            gray(0, 255),
            format="TIFF",
            save_all=True,
            append_images=[gray(255, 0)],
        ),
        "pages",
    ),
    "the same file": (
        lambda images: (images / "2.png").write_bytes((images / "3.png").read_bytes()),
        "identical",
    ),
    "the same pixels": (
        lambda images: replace(images, "2.png", Image.open(images / "3.png"), compress_level=0),
        "identical",
    ),
}


@pytest.mark.parametrize(("change", "kind"), IMAGES.values(), ids=IMAGES)
def test_suspicious_images_are_found(capsys, tmp_path, change, kind):
    images = folder(tmp_path)
    change(images)
    status, report = check(capsys, tmp_path)
    assert status == 1
    (finding,) = report["findings"]
    assert finding["kind"] == kind and finding["count"] == 1
    assert "2.png" in finding["names"][0]


def test_images_of_two_splits_and_classes_of_one_are_found(capsys, tmp_path):
    images = folder(tmp_path)
    val = content([annotation(1, category_id=2)], images=1)
    coco_files.write(tmp_path, val, "instances_val", "val")
    (tmp_path / "val" / "1.png").write_bytes((images / "4.png").read_bytes())
    status, report = check(capsys, tmp_path)
    assert status == 1
    by_kind = {finding["kind"]: finding for finding in report["findings"]}
    assert by_kind.keys() == {"shared", "untrained class"}
    assert by_kind["shared"]["names"] == ["train: 4.png = val: 1.png"]
    assert by_kind["untrained class"]["names"] == ["dog"]


def test_masks_of_one_split_only_are_found(capsys, tmp_path):
    folder(tmp_path)
    val = content([annotation(1, segmentation=[])], images=1, categories=[(1, "cat")])
    coco_files.write(tmp_path, val, "instances_val", "val")
    noise = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "val" / "1.png")
    status, report = check(capsys, tmp_path)
    assert status == 1
    (finding,) = report["findings"]
    assert (finding["kind"], finding["split"], finding["count"]) == ("no mask", "val", 1)
    assert check(capsys, tmp_path, "--task", "detection")[0] == 0


def test_class_folders(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for k in range(3):
                pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{k}.png")
    status, report = check(capsys, tmp_path)
    assert (status, report["findings"]) == (0, [])
    assert report["splits"]["val"]["classes"] == {"cat": 3, "dog": 3}
    cat, dog = tmp_path / "train" / "cat", tmp_path / "train" / "dog"
    (dog / "0.png").write_bytes((cat / "0.png").read_bytes())
    (tmp_path / "val" / "cat" / "1.png").write_bytes((cat / "1.png").read_bytes())
    (dog / "2.png").write_bytes(b"")
    (tmp_path / "train" / "stray.png").write_bytes((dog / "1.png").read_bytes())
    (tmp_path / "val" / "owl").mkdir()
    (tmp_path / "val" / "owl" / "1.png").write_bytes((dog / "1.png").read_bytes())
    status, report = check(capsys, tmp_path)
    assert status == 1
    assert kinds(report) == {
        *("identical", "contradiction", "shared", "unreadable", "untrained class", "left out"),
    }


def test_the_sheet_shows_the_most_suspicious_images_first(tmp_path):
    images = folder(tmp_path)
    replace(images, "5.png", Image.new("L", (WIDTH, HEIGHT)))
    report = botvision.check(tmp_path, out=tmp_path / "out")
    assert [str(finding) for finding in report.findings] == [
        "train: images of a single color: 1 (5.png)"
    ]
    sheet = np.asarray(Image.open(report.sheet))
    # The black image is the first one.
    assert sheet[200:400, 100:600].mean() < 40
    assert sheet[200:400, 800:1200].mean() > 80


def test_objects_of_ones_own_are_checked(tmp_path):
    class Rings:
        classes = ("a", "b")

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return Image.radial_gradient("L").rotate(9 * index).convert("RGB"), index % 2

        def summary(self):
            return "rings"

    report = botvision.check({"train": Rings()}, out=tmp_path)
    assert report.findings == []
    assert report.splits["train"]["images"] == 3


def test_the_classes_of_ones_own_detection_data_are_counted(tmp_path):
    class Squares(DetectionData):
        categories = Categories((4, 7, 9), ("small", "large", "absent"))

        def __len__(self):
            return 4

        def image(self, index):
            return Image.radial_gradient("L").rotate(9 * index).convert("RGB")

        def objects(self, index):
            side = 10 if index < 3 else 100
            boxes = np.array([[5, 5, 5 + side, 5 + side]] * (index > 0), np.float64).reshape(-1, 4)
            return Objects(boxes, np.full(len(boxes), 4 if index < 3 else 7), [None] * len(boxes))

    counts = botvision.check({"train": Squares()}, out=tmp_path).splits["train"]
    assert counts["classes"] == {"small": 2, "large": 1, "absent": 0}
    assert (counts["objects"], counts["images_without_objects"]) == (3, 1)
    assert counts["box_sides"] == {"8-16": 2, "64-128": 1}


def test_the_classes_of_a_hugging_face_set_are_counted(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = write_classes(tmp_path / "data")
    report = botvision.check(f"hfds/{data}", out=tmp_path / "out")
    assert report.splits["train"]["classes"] == {"blue": 4, "green": 4, "red": 3}
