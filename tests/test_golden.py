"""What commit 331a5ec computed, saved and found is what is computed, loaded and found now."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from botvision.attention import products
from botvision.data.shapes import write_shapes
from class_files import CLASSES, write_classes
from commandline import run
from golden import outputs
from tiny import TINY_SETTINGS

GOLDEN = Path(__file__).parent / "golden"
EXACT = ["--device", "cpu", "--precision", "32"]
# CPUs differ in the order of their sums.
RTOL = 1e-4


@pytest.fixture(autouse=True)
def products_of_the_recording(monkeypatch):
    """Multiply with the library of the recording: random weights amplify its order of sums."""
    monkeypatch.setattr(products, "_keeps_float32", lambda: False)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def assert_close(got, want, where=""):
    """Numbers within RTOL of the largest of their list; names and structure equal."""
    if isinstance(want, dict):
        assert got.keys() == want.keys(), where
        for key in want:
            assert_close(got[key], want[key], f"{where}/{key}")
    elif isinstance(want, list) and want and isinstance(want[0], dict):
        assert len(got) == len(want), where
        for index, (one, other) in enumerate(zip(got, want, strict=True)):
            assert_close(one, other, f"{where}/{index}")
    elif isinstance(want, list | float):
        scale = np.abs(want).max(initial=0)
        np.testing.assert_allclose(got, want, rtol=RTOL, atol=RTOL * scale, err_msg=where)
    else:
        assert got == want, where


@pytest.mark.parametrize("name", outputs.MODELS)
def test_models_compute_what_they_did(name):
    assert_close(outputs.model_outputs(name), read(outputs.FILE)[name])


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_detectors_compute_what_they_did(task):
    assert_close(outputs.detector_outputs(task), read(outputs.FILE)[task])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("golden") / "data"
    write_shapes(root, train=7, val=4, image_size=64)
    return root


def instances(predictions):
    """What was found, without the masks, a pixel of whose edge may be another elsewhere."""
    return [
        [{k: v for k, v in i.items() if k != "segmentation"} for i in image["instances"]]
        for image in predictions
    ]


def test_an_old_run_predicts_what_it_did(capsys, data, tmp_path):
    options = ["--score-threshold", "0.05", "--max-detections", "10", *EXACT]
    run(capsys, "predict", GOLDEN / "run", data / "val", "--out", tmp_path, *options)
    got, want = (
        instances(read(tmp_path / "predictions.json")),
        read(GOLDEN / "run-predictions.json"),
    )
    for one, other in zip(got, instances(want), strict=True):
        assert_close(one, other)
    assert sum(map(len, got)) > 20


def test_an_old_run_evaluates_as_it_did(capsys, data, tmp_path):
    run(capsys, "eval", GOLDEN / "run", data, "--out", tmp_path, *EXACT)
    assert_close(read(tmp_path / "metrics.json"), read(GOLDEN / "run-evaluation.json"))


def test_an_old_classifier_predicts_what_it_did(capsys, tmp_path):
    write_classes(tmp_path)
    folders = [tmp_path / "val" / name for name in CLASSES]
    weights = GOLDEN / "classifier.safetensors"
    run(capsys, "predict", weights, *folders, "--out", tmp_path / "out", *EXACT)
    got = read(tmp_path / "out" / "predictions.json")
    for one, other in zip(got, read(GOLDEN / "classifier-predictions.json"), strict=True):
        assert Path(one.pop("file")).name == Path(other.pop("file")).name
        assert [c["class"] for c in one["classes"]] == [c["class"] for c in other["classes"]]
        assert_close(
            [c["probability"] for c in one["classes"]],
            [c["probability"] for c in other["classes"]],
        )


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event["loss"] for event in map(json.loads, lines) if event["event"] == "train"]


def test_training_has_the_losses_that_it_had(capsys, data, tmp_path):
    out = tmp_path / "run"
    settings = [*TINY_SETTINGS, "--detector.box-head-dim", "16", "--max-steps", "8"]
    run(capsys, "train", data, *settings, "--eval-steps", "4", "--out", out)
    np.testing.assert_allclose(losses(out), losses(GOLDEN / "run"), rtol=1e-3)


def test_an_old_run_is_resumed(capsys, data, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(GOLDEN / "run", out)
    run(capsys, "train", data, "--out", out, "--resume", "--max-steps", "10")
    assert losses(out)[:8] == losses(GOLDEN / "run")
    assert len(losses(out)) == 10
