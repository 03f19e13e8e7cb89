"""The Python API, as used in notebooks and scripts."""

import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import botvision
from botvision import UserError
from botvision.settings import recipe_names
from botvision.tasks.prediction import ClassificationPrediction, DetectionPrediction

CPU = {"device": "cpu", "precision": "32"}


@pytest.fixture(scope="module")
def model(tiny_run):
    return botvision.load(tiny_run, **CPU)


@pytest.fixture(scope="module")
def images(tiny_data):
    return sorted((tiny_data / "val").iterdir())


def test_submodules_resolve_after_a_bare_import():
    code = (
        "import botvision; botvision.attention.RelativeAttention2d; botvision.models.to_botnet; "
        "botvision.detection.build_detector; botvision.data; botvision.tasks; botvision.bench; "
        "botvision.evaluation; botvision.training; botvision.visualize; "
        "[getattr(botvision, name) for name in botvision.__all__]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("order", ["import botvision, timm", "import timm, botvision"])
def test_models_are_registered_with_timm(order):
    code = f"{order}; timm.create_model('botnet50', layers=(1, 1, 1, 1))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = botvision.nothing


def test_predictions_do_not_need_torch():
    code = (
        "import sys; import botvision.tasks.prediction; "
        "assert not {'torch', 'matplotlib', 'timm'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_kind_of_image_gives_the_same(model, images):
    pil = Image.open(images[0])
    sources = [str(images[0]), images[0], pil, np.asarray(pil.convert("RGB"))]
    found = list(model.predict(sources, score_threshold=0.05))
    assert len(found[0]) > 3
    for prediction in found[1:]:
        np.testing.assert_array_equal(prediction.boxes, found[0].boxes)
        np.testing.assert_array_equal(prediction.scores, found[0].scores)
    assert [p.file for p in found] == [images[0], images[0], None, None]
    folder = list(model.predict(images[0].parent, score_threshold=0.05))
    assert [p.file for p in folder] == images
    np.testing.assert_array_equal(folder[0].boxes, found[0].boxes)


def test_masks_boxes_and_coco_agree(model, images):
    for prediction in model.predict(images, score_threshold=0.05):
        width, height = prediction.size
        count = len(prediction)
        assert prediction.boxes.shape == (count, 4) and prediction.boxes.dtype == np.float64
        assert prediction.masks.shape == (count, height, width)
        assert prediction.masks.dtype == np.bool_
        assert (np.diff(prediction.scores) <= 0).all()
        names = model.spec.categories.names
        assert prediction.names == [names[k] for k in prediction.class_ids]
        for index, result in enumerate(prediction.to_coco(image_id=9)):
            assert result["image_id"] == 9
            assert result["category_id"] == model.spec.categories.ids[prediction.class_ids[index]]
            decoded = coco_mask.decode(result["segmentation"]).astype(bool)
            np.testing.assert_array_equal(decoded, prediction.masks[index])
            left, top, w, h = result["bbox"]
            np.testing.assert_allclose(
                prediction.boxes[index], [left, top, left + w, top + h], rtol=1e-12
            )
        drawn = prediction.draw()
        assert drawn.width / drawn.height == pytest.approx(width / height)


def test_options_are_checked_at_once_and_hold_for_one_call(model, images):
    with pytest.raises(UserError, match="score_threshold 2: give a number from 0 to 1"):
        model.predict(images, score_threshold=2)
    with pytest.raises(UserError, match="batch_size 0: must be at least 1"):
        model.predict(images, batch_size=0)
    every = list(model.predict(images, score_threshold=0.01))
    few = list(model.predict(images, score_threshold=0.01, max_detections=2))
    assert [len(p) for p in few] == [min(2, len(p)) for p in every]
    again = list(model.predict(images, score_threshold=0.01))
    assert [len(p) for p in again] == [len(p) for p in every]


def test_what_is_no_image(model, images, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken\.png: cannot be read as an image"):
        list(model.predict([broken, images[0]]))
    errors = []
    found = list(model.predict([broken, images[0], tmp_path], on_error=errors.append))
    assert [p.file for p in found] == [images[0]]
    assert len(errors) == 2
    for array in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((3, 4, 4), np.uint8)):
        with pytest.raises(
            UserError, match=r"images: an array must contain RGB pixels.* of shape \("
        ):
            list(model.predict(array))


def test_a_run_reports_metrics_and_history(tiny_run):
    run = botvision.Run(tiny_run)
    assert run.metrics["segm"]["AP"] >= 0
    rows = run.history
    assert [row["step"] for row in rows if row["event"] == "train"] == list(range(1, 9))
    evaluations = [row for row in rows if row["event"] == "eval"]
    assert [row["step"] for row in evaluations] == [4, 8]
    assert evaluations[-1]["segm/AP50"] == run.metrics["segm"]["AP50"]
    assert not any(isinstance(value, dict) for row in rows for value in row.values())
    assert botvision.Run(tiny_run / "nowhere").history == []


def test_evaluate_returns_what_it_writes(tiny_run, tiny_data, tmp_path):
    metrics = botvision.evaluate(tiny_run, tiny_data, split="val", out=tmp_path, **CPU)
    written = botvision.Run(tmp_path).metrics
    assert written["segm"] == metrics["segm"]
    assert (written["split"], written["images"], written["precision"]) == ("val", 4, "32")


def test_recipes_are_plain_settings():
    assert botvision.load_recipe("quick")["image_size"] == 384
    assert botvision.load_recipe("quick", "classification")["image_size"] == 64
    assert botvision.load_recipe("cifar10")["model"]
    for task in ("detection", "classification"):
        for name in recipe_names(task):
            assert isinstance(botvision.load_recipe(name, task), dict)
    with pytest.raises(UserError, match=r"recipe best: no such recipe; choose one of .*cifar10"):
        botvision.load_recipe("best")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batchsize": 3}, "no setting is named batchsize; did you mean batch_size"),
        ({"batch_size": "many"}, "batch_size many: expected a whole number"),
        ({"detector": {"fpn": 3}}, r"no setting is named detector\.fpn"),
        ({"norm": "group"}, "norm group: expected one of plain, sync, frozen"),
        ({"recipe": "best"}, "recipe best: no such recipe for detection"),
        ({"config": "no.yaml"}, "config no.yaml: no such file"),
        ({"resume": True}, "resume: requires `out`"),
        ({"image_size": 100}, "image_size 100: must be a multiple of 32"),
    ],
)
def test_wrong_settings_name_the_parameter(tiny_data, settings, message):
    with pytest.raises(UserError, match=message) as error:
        botvision.train(tiny_data, **settings)
    assert "--" not in str(error.value)
    assert isinstance(error.value, ValueError)


def fake_supervision(monkeypatch):
    module = ModuleType("supervision")
    module.Detections = module.Classifications = lambda **given: given
    monkeypatch.setitem(sys.modules, "supervision", module)


def test_supervision_gets_its_arrays(monkeypatch, model, images):
    monkeypatch.setitem(sys.modules, "supervision", None)
    (prediction,) = model.predict(images[0], score_threshold=0.05)
    with pytest.raises(UserError, match="pip install supervision"):
        prediction.to_supervision()
    fake_supervision(monkeypatch)
    given = prediction.to_supervision()
    np.testing.assert_allclose(given["xyxy"], prediction.boxes, rtol=1e-6)
    np.testing.assert_array_equal(given["mask"], prediction.masks)
    np.testing.assert_array_equal(given["class_id"], prediction.class_ids)
    assert list(given["data"]["class_name"]) == prediction.names
    scores = np.array([0.2, 0.8], np.float32)
    one = ClassificationPrediction(file=None, size=(1, 1), probabilities=scores, classes=("a", "b"))
    np.testing.assert_array_equal(one.to_supervision()["confidence"], scores)
    assert one.top(1) == [("b", pytest.approx(0.8))]


def test_supervision_itself(model, images):
    supervision = pytest.importorskip(
        "supervision", reason="supervision is not installed; pip install it to run this test"
    )
    (prediction,) = model.predict(images[0], score_threshold=0.05)
    detections = prediction.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert len(detections) == len(prediction)


def test_a_prediction_without_masks_draws_and_has_none():
    prediction = DetectionPrediction(
        file=None,
        size=(50, 40),
        pixels=Image.new("RGB", (50, 40)),
        boxes=np.array([[5.0, 5, 20, 20]]),
        scores=np.array([0.9], np.float32),
        class_ids=np.array([0]),
        categories=botvision.Categories((3,), ("cat",)),
    )
    assert prediction.masks is None
    assert "segmentation" not in prediction.to_coco()[0]
    assert prediction.draw().size[0] > 0
    with pytest.raises(UserError, match="the model has no masks"):
        prediction.polygons(0)


def test_a_config_mapping_and_a_runs_own_config_are_settings(tiny_data, tiny_run, tmp_path):
    first = tiny_run / "config.yaml"
    run = botvision.train(
        tiny_data, config=[first, {"max_steps": 1, "eval_steps": 0}], out=tmp_path / "run"
    )
    assert run.settings["max_steps"] == 1
    own = botvision.Run(tiny_run).settings
    assert run.settings["detector"] == own["detector"]
