"""Metrics against pycocotools, masks against torchvision, labels by name."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from botvision.data.categories import Categories
from botvision.data.coco import find_splits, load_split
from botvision.data.pasting import paste_mask
from botvision.errors import UserError
from botvision.evaluation.coco import coco_ground_truth, coco_metrics, image_results
from botvision.evaluation.labels import LabelMap
from botvision.evaluation.precision_recall import RECALLS


def load_ground_truth(file):
    return coco_ground_truth(json.loads(file.read_text()))


NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl"]


def disk(height, width, x, y, radius):
    rows, columns = np.mgrid[:height, :width]
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).astype(np.uint8)


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def scene(tmp_path, *, images=12, seed=0):
    """Disks of three classes in large images, a crowd, and detections that are more or less off."""
    rng = np.random.default_rng(seed)
    side = 240
    annotations, results = [], []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 8)):
            x, y = rng.uniform(20, side - 20, 2)
            radius = float(np.exp(rng.uniform(np.log(4), np.log(70))))
            category = int(rng.choice([2, 5, 9]))
            mask = disk(side, side, x, y, radius)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": coco_mask.toBbox(rle(mask)).tolist(),
                    "area": int(mask.sum()),
                    "iscrowd": int(rng.random() < 0.1),
                    "segmentation": rle(mask),
                }
            )
            for _ in range(rng.integers(0, 3)):
                off = rng.normal(0, 0.15 * radius, 3)
                found = disk(side, side, x + off[0], y + off[1], max(2, radius + off[2]))
                results.append(
                    {
                        "image_id": image,
                        "category_id": category if rng.random() < 0.8 else 9,
                        "bbox": (coco_mask.toBbox(rle(found)) + rng.normal(0, 1, 4)).tolist(),
                        "score": float(rng.random()),
                        "segmentation": rle(found),
                    }
                )
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": side, "width": side}
            for i in range(1, images + 1)
        ],
        "categories": [{"id": i, "name": f"class{i}"} for i in (2, 5, 9)],
        "annotations": annotations,
    }
    file = tmp_path / "instances_val.json"
    file.write_text(json.dumps(content))
    return file, results


def pycocotools_stats(file, results, kind, max_detections, images=None):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.params.maxDets = sorted({1, min(10, max_detections), max_detections})
        if images is not None:
            evaluation.params.imgIds = images
        evaluation.evaluate()
        evaluation.accumulate()
        if max_detections == 100:
            evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_equals_pycocotools(tmp_path, kind):
    file, results = scene(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results))
    metrics = coco_metrics(load_ground_truth(file), results, masks=True)[0][kind]
    stats = pycocotools_stats(file, str(tmp_path / "results.json"), kind, 100).stats
    names = [*NAMES, "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert list(metrics) == names
    np.testing.assert_allclose([metrics[name] for name in names], stats, rtol=0, atol=1e-9)
    assert 0.1 < metrics["AP"] < 0.9


def areas_of(evaluation):
    """pycocotools' AP of each class, as it would be the mean over classes if there were one."""
    precision = evaluation.eval["precision"]
    for k in range(precision.shape[2]):
        own = precision[:, :, k, :, -1]
        for name, part in zip(
            NAMES,
            (own[..., 0], own[0, :, 0], own[5, :, 0], own[..., 1], own[..., 2], own[..., 3]),
            strict=True,
        ):
            yield k, name, part.mean() if (part > -1).all() else -1


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("max_detections", [3, 100])
def test_classes_and_limits_equal_pycocotools(tmp_path, kind, max_detections):
    file, results = scene(tmp_path, images=30, seed=1)
    content = json.loads(file.read_text())
    # Only medium objects of class2, none of class9.
    content["annotations"] = [
        a
        for a in content["annotations"]
        if a["category_id"] == 5 or (a["category_id"] == 2 and 32**2 < a["area"] < 96**2)
    ]
    file.write_text(json.dumps(content))
    truth, copies = load_ground_truth(file), [dict(r) for r in results]
    metrics, _ = coco_metrics(truth, copies, masks=True, max_detections=max_detections)
    evaluation = pycocotools_stats(file, results, kind, max_detections)
    seen = []
    for k, name, want in areas_of(evaluation):
        got = metrics["per_class"][("class2", "class5", "class9")[k]][kind]
        assert list(got) == NAMES
        assert got[name] == pytest.approx(want, abs=1e-9), (k, name)
        seen.append(want)
    assert seen.count(-1) == 2 + 6 and len({round(v, 6) for v in seen}) > 6
    recall = evaluation.eval["recall"][:, :, 0, -1]
    want = recall[recall > -1].mean()
    assert metrics[kind][f"AR{max_detections}"] == pytest.approx(want)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_some_images_equal_pycocotools_on_those(tmp_path, kind):
    file, results = scene(tmp_path)
    some = [11, 2, 5, 8, 9]
    truth = load_ground_truth(file)
    found = [dict(r) for r in results if r["image_id"] in some]
    metrics, _ = coco_metrics(truth, found, masks=True, image_ids=some)
    want = pycocotools_stats(file, results, kind, 100, images=some).stats
    np.testing.assert_allclose(list(metrics[kind].values()), want, rtol=0, atol=1e-9)
    whole, _ = coco_metrics(truth, [dict(r) for r in results], masks=True)
    assert whole[kind] != metrics[kind]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_curves_are_pycocotools_precision(tmp_path, kind):
    file, results = scene(tmp_path)
    content = json.loads(file.read_text())
    content["categories"].append({"id": 3, "name": "class3"})
    file.write_text(json.dumps(content))
    metrics, curves = coco_metrics(
        load_ground_truth(file), [dict(r) for r in results], masks=True, max_detections=20
    )
    evaluation = pycocotools_stats(file, results, kind, 20)
    precision = evaluation.eval["precision"][..., 0, -1]
    curve = curves[kind]
    np.testing.assert_array_equal(RECALLS, evaluation.params.recThrs)
    # Sorted by id; class3 has no object.
    assert curve.classes == ("class2", "class5", "class9")
    there = precision[:, :, [0, 2, 3]]
    np.testing.assert_allclose(curve.precision, there, rtol=0, atol=1e-12)
    scores = evaluation.eval["scores"][:, :, [0, 2, 3], 0, -1]
    np.testing.assert_array_equal(curve.scores, scores)
    for iou, name, of in (("0.50", "AP50", [0]), ("0.75", "AP75", [5]), ("0.50:0.95", "AP", None)):
        want = there if of is None else there[of]
        np.testing.assert_allclose(curve.mean(iou), want.mean((0, 2)))
        np.testing.assert_allclose(curve.of_class(iou, 1), want[:, :, 1].mean(0))
        assert curve.mean(iou).mean() == pytest.approx(metrics[kind][name], abs=1e-12)


def test_nothing_found_is_zero_and_nothing_to_find_is_minus_one(tmp_path):
    file, results = scene(tmp_path)
    truth = load_ground_truth(file)
    metrics, _ = coco_metrics(truth, [], masks=True)
    assert metrics["bbox"]["AP"] == metrics["segm"]["AP50"] == 0
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "annotations": []}))
    metrics, curves = coco_metrics(load_ground_truth(file), results, masks=True)
    assert metrics["bbox"]["AP"] == -1
    assert curves["segm"].classes == ()


def test_absent_area_and_iscrowd_are_filled_in(tmp_path):
    file, results = scene(tmp_path)
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
    file.write_text(json.dumps(content))
    want, _ = coco_metrics(load_ground_truth(file), results, masks=True)
    for annotation in content["annotations"]:
        del annotation["iscrowd"], annotation["area"]
    file.write_text(json.dumps(content))
    assert coco_metrics(load_ground_truth(file), results, masks=True)[0] == want


def test_one_mask_is_pasted_at_a_time_and_runs_of_pixels_are_kept(monkeypatch):
    def paste(mask, box, size):
        assert mask.shape == (28, 28) and box.shape == (4,)
        top, left, pixels = paste_mask(mask, box, size)
        shapes.append(pixels.shape)
        return top, left, pixels

    shapes = []
    monkeypatch.setattr("botvision.data.pasting.paste_mask", paste)
    detection = {
        "boxes": torch.tensor([[10.0, 20, 300, 600]]).repeat(9, 1),
        "labels": torch.ones(9, dtype=torch.int64),
        "scores": torch.rand(9),
        "masks": torch.ones(9, 1, 28, 28),
    }
    results = image_results(detection, 7, (900, 1100))
    # The box with a cell of padding, 30 / 28 of it, not the image.
    assert shapes == [(621, 311)] * 9
    # Two numbers a column of the box.
    assert all(len(result["segmentation"]["counts"]) < 6 * 310 for result in results)


def test_detections_in_cocos_format():
    detection = {
        "boxes": torch.tensor([[20.0, 60, 60, 180]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.5]),
    }
    (result,) = image_results(detection, 7, (300, 200))
    assert result == {"image_id": 7, "category_id": 2, "bbox": [20, 60, 40, 120], "score": 0.5}


def write_folder(root, categories):
    (root / "annotations").mkdir(parents=True)
    (root / "val").mkdir()
    (root / "val" / "a.png").touch()
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}],
        "categories": [{"id": i, "name": n} for i, n in categories],
        "annotations": [],
    }
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return load_split(find_splits(root)["val"])


def test_labels_are_matched_by_name(tmp_path):
    model = Categories((1, 2, 3), ("cat", "dog", "owl"))
    labels = LabelMap.between(model, write_folder(tmp_path, [(0, "dog"), (7, "cat"), (8, "emu")]))
    assert labels.category_of == {1: 7, 2: 0}
    assert labels.only_model == ["owl"]
    assert labels.only_data == ["emu"]
    assert "owl" in str(labels) and "emu" in str(labels)


def test_no_common_class_is_an_error(tmp_path):
    model = Categories((1,), ("cat",))
    with pytest.raises(UserError, match=r"instances_val.json: has none of the model's classes"):
        LabelMap.between(model, write_folder(tmp_path, [(1, "emu")]))
