"""The command ``botvision predict`` with a detector: pictures, JSON and augmented views."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from botvision.cli.main import main
from botvision.tasks.checkpoint import load_model, save_model
from commandline import fail, run


def listed(folder):
    return json.loads((folder / "predictions.json").read_text())


def test_predict_writes_overlays_and_json(capsys, tiny_run, tiny_data, tmp_path):
    one = tmp_path / "a" / "picture.png"
    two = tmp_path / "b" / "picture.jpg"
    for path in (one, two):
        path.parent.mkdir()
        Image.open(tiny_data / "val" / "000000.jpg").resize((90, 70)).save(path)
    out = tmp_path / "out"
    weights = tiny_run / "best.safetensors"
    text = run(
        capsys, "predict", weights, one, two.parent, "--out", out, "--score-threshold", "0.0"
    )
    assert str(two) in text
    assert {p.name for p in out.iterdir()} == {"picture.png", "picture-2.png", "predictions.json"}
    listed = json.loads((out / "predictions.json").read_text())
    assert [entry["file"] for entry in listed] == [str(one), str(two)]
    for entry in listed:
        assert (entry["width"], entry["height"]) == (90, 70)
        assert entry["instances"]
        for instance in entry["instances"]:
            assert set(instance) == {"class", "category_id", "score", "bbox", "segmentation"}
            assert coco_mask.decode(instance["segmentation"]).shape == (70, 90)
    sizes = Image.open(out / "picture.png").size
    assert sizes[0] / sizes[1] == pytest.approx(90 / 70)


def test_predict_does_the_readable_images_and_names_the_other(
    capsys, tiny_run, tiny_data, tmp_path
):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    good = tiny_data / "val" / "000001.jpg"
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(tiny_run), str(broken), str(good), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert "broken.jpg" in captured.err and len(captured.err.strip().splitlines()) == 1
    assert (tmp_path / "out" / "000001.png").exists()


def test_predict_finds_what_eval_finds(capsys, tiny_run, tiny_data, tmp_path):
    """With tiles, scales and mirrored views, at any batch size."""
    views = ["--flip", "--scales", "0.75", "1.25", "--tile", "48", "--max-detections", "20"]
    threshold = ["--score-threshold", "0.05", "--device", "cpu", "--precision", "32"]
    run(capsys, "eval", tiny_run, tiny_data, "--out", tmp_path / "eval", *views, *threshold)
    results = json.loads((tmp_path / "eval" / "predictions" / "results.json").read_text())
    plain = tmp_path / "plain"
    run(capsys, "eval", tiny_run, tiny_data, "--out", plain, *threshold, "--max-detections", "20")
    assert json.loads((plain / "predictions" / "results.json").read_text()) != results
    wanted = [(r["category_id"], r["score"], *r["bbox"]) for r in results]
    assert len(wanted) > 20
    for batch_size in ("1", "3"):
        out = tmp_path / f"predict{batch_size}"
        arguments = ["predict", tiny_run, tiny_data / "val", "--out", out, *views, *threshold]
        text = run(capsys, *arguments, "--batch-size", batch_size)
        assert "images per second (reading, detecting and encoding masks, without drawing)" in text
        assert "(limited by max_detections)" in text
        files = [entry["file"] for entry in listed(out)]
        assert files == [str(tiny_data / "val" / f"{n:06}.jpg") for n in range(4)]
        instances = [instance for entry in listed(out) for instance in entry["instances"]]
        got = [(i["category_id"], i["score"], *i["bbox"]) for i in instances]
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-3)


def test_predict_writes_polygons(capsys, tiny_run, tiny_data, tmp_path):
    found = {}
    for mask_format in ("rle", "polygon"):
        out = tmp_path / mask_format
        run(
            capsys,
            *("predict", tiny_run, tiny_data / "val" / "000000.jpg", "--out", out),
            *("--score-threshold", "0.05", "--mask-format", mask_format),
        )
        (entry,) = listed(out)
        found[mask_format] = entry["instances"]
        assert (out / "000000.png").read_bytes() == (tmp_path / "rle" / "000000.png").read_bytes()
    assert found["rle"]
    for rle, polygon in zip(found["rle"], found["polygon"], strict=True):
        assert {**rle, "segmentation": 0} == {**polygon, "segmentation": 0}
        want, parts = coco_mask.decode(rle["segmentation"]), polygon["segmentation"]
        if want.sum() < 50:
            continue
        got = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, 64, 64)))
        assert (got & want).sum() / (got | want).sum() > 0.7


def test_predict_lists_what_scores_from_the_threshold_on(capsys, tiny_run, tiny_data, tmp_path):
    """Also for thresholds below that of the run's evaluation."""
    detector, card = load_model(tiny_run)
    own = dataclasses.replace(card.detector, score_threshold=0.9)
    save_model(detector, dataclasses.replace(card, detector=own), tmp_path / "own.safetensors")
    scores = {}
    for threshold in ("0.01", "0.21"):
        out = tmp_path / threshold
        arguments = ["--out", out, "--score-threshold", threshold]
        run(capsys, "predict", tmp_path / "own.safetensors", tiny_data / "val", *arguments)
        scores[threshold] = [i["score"] for entry in listed(out) for i in entry["instances"]]
    assert min(scores["0.01"]) < 0.21 < max(scores["0.01"]) < 0.9
    assert scores["0.21"] == pytest.approx([s for s in scores["0.01"] if s >= 0.21])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scales", "1", "0"], "--scales 1 0: must be greater than 0"),
        (["--tile", "8"], "--tile 8: must be at least 32"),
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--max-detections", "0"], "--max-detections 0: must be at least 1"),
        (["--score-threshold", "50"], "--score-threshold 50: must be between 0 and 1"),
    ],
)
def test_senseless_views_are_one_line(capsys, tiny_run, tiny_data, tmp_path, arguments, message):
    for command in (["predict", tiny_run, tiny_data / "val"], ["eval", tiny_run, tiny_data]):
        line = fail(capsys, *command, "--out", tmp_path / "out", *arguments)
        assert message in line
    assert not (tmp_path / "out").exists()
