"""What other tools write is accepted, and perfect detections are perfect."""

import contextlib
import io
import json
import time
import tracemalloc
import unicodedata

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import coco_files
from botvision.data.annotations import read_annotations
from botvision.data.coco import find_splits, load_split
from botvision.data.detection import merge_categories
from botvision.evaluation.coco import CocoEvaluator, coco_ground_truth, coco_metrics
from coco_files import HEIGHT, TRIANGLE, WIDTH, masked_content


def perfect(truth):
    """The objects themselves as detections."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    results = []
    for annotation in truth["annotations"]:
        if not annotation["iscrowd"]:
            result = {k: annotation[k] for k in ("image_id", "category_id", "bbox")}
            if "segmentation" in annotation:
                mask = annotation["segmentation"]
                if isinstance(mask, list):
                    size = sizes[annotation["image_id"]]
                    mask = coco_mask.merge(coco_mask.frPyObjects(mask, *size))
                result["segmentation"] = mask
            results.append({**result, "score": 0.9})
    return results


def scores(data, masks=True):
    truth = data.ground_truth()
    metrics, _ = coco_metrics(coco_ground_truth(truth), perfect(truth), masks=masks)
    return [metrics[kind]["AP"] for kind in ("bbox", "segm") if kind in metrics]


def each(key, values):
    def change(what):
        for entry, value in zip(what["annotations"], values, strict=True):
            entry[key] = value

    return change


def without(key):
    return lambda what: [entry.pop(key) for entry in what["annotations"]]


def renumber(section, key, number):
    """Change ids, and what refers to them."""

    def change(what):
        for entry in what[section]:
            entry["id"] = number(entry["id"])
        for entry in what["annotations"]:
            entry[key] = number(entry[key])

    return change


def numbers_as_text(what):
    for entry in what["images"]:
        entry.update(id=str(entry["id"]), width=f"{WIDTH}.0", height=f" {HEIGHT}")
    for entry in what["annotations"]:
        entry.update(
            image_id=f"{entry['image_id']}.0",
            category_id=str(entry["category_id"]),
            bbox=[str(value) for value in entry["bbox"]],
            iscrowd=str(entry["iscrowd"]),
            area="300.0",
        )
        if isinstance(entry["segmentation"], list):
            entry["segmentation"] = [[str(value) for value in TRIANGLE]]
        elif isinstance(entry["segmentation"]["counts"], list):
            entry["segmentation"] = {"size": ["40", "60"], "counts": ["0", "400", 2000.0]}


def numbers_as_floats(what):
    for section in ("images", "categories", "annotations"):
        for entry in what[section]:
            entry.update({k: float(v) for k, v in entry.items() if isinstance(v, int)})


def polygons(form):
    def change(what):
        for entry in what["annotations"]:
            entry["segmentation"] = form

    return change


PAIRS = [TRIANGLE[i : i + 2] for i in (0, 2, 4)]
ACCEPTED = {
    "as it is": lambda what: None,
    "annotation ids from 0": each("id", range(5)),
    "equal annotation ids": each("id", [7] * 5),
    "annotation ids 0": each("id", [0] * 5),
    "annotation ids of any type": each("id", ["a", None, -1, 1e300, [2]]),
    "no annotation ids": without("id"),
    "no area": without("area"),
    "area null": each("area", [None] * 5),
    "areas that are none": each("area", [0, -4, float("nan"), float("inf"), "x"]),
    "no iscrowd": lambda what: [without("iscrowd")(what), what["annotations"].pop()],
    "iscrowd null": lambda what: [each("iscrowd", [None] * 5)(what), what["annotations"].pop()],
    "iscrowd true": each("iscrowd", [False, False, False, False, True]),
    "64-bit image ids": renumber("images", "image_id", lambda i: 2**63 - 10 + i),
    "unsigned image ids": renumber("images", "image_id", lambda i: 2**64 - 10 + i),
    "image ids 0 and -1": renumber("images", "image_id", lambda i: i - 2),
    "image ids of 2**53 and on": renumber("images", "image_id", lambda i: 2**53 + i),
    "image ids as text of 17 digits": renumber("images", "image_id", lambda i: str(2**54 + i)),
    "category ids 0 and -1": renumber("categories", "category_id", lambda i: i - 2),
    "category ids beyond 2**53": renumber("categories", "category_id", lambda i: 2**60 + i),
    "numbers as text": numbers_as_text,
    "numbers as floats": numbers_as_floats,
    "numbers as class names": lambda what: [c.update(name=c["id"]) for c in what["categories"]],
    "a class that no object has": lambda what: what["categories"].append({"id": 3, "name": "x"}),
    "point pairs": polygons([PAIRS]),
    "point pairs without a list around": polygons(PAIRS),
    "a flat list": polygons(TRIANGLE),
    "integers": polygons([[3, 4, 33, 6, 20, 30]]),
    "two parts, one a point": polygons([TRIANGLE, [1, 2]]),
}


@pytest.mark.parametrize("change", ACCEPTED.values(), ids=ACCEPTED)
def test_what_is_clear_is_accepted_and_perfect_detections_are_perfect(tmp_path, change):
    what = masked_content()
    change(what)
    data = coco_files.load(tmp_path, what)
    assert data.num_objects == data.num_masks == 4
    assert scores(data) == [1.0, 1.0]
    assert scores(load_split(data.split, "detection"), masks=False) == [1.0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-le"])
def test_every_unicode_encoding_is_read(tmp_path, encoding):
    data = coco_files.load(tmp_path, masked_content())
    file = data.annotations.file
    file.write_bytes(file.read_text().encode(encoding))
    assert scores(load_split(data.split)) == [1.0, 1.0]


def test_image_ids_that_floats_cannot_tell_apart_are_two_images(tmp_path):
    what = masked_content()
    renumber("images", "image_id", lambda i: 2**53 + i)(what)
    data = coco_files.load(tmp_path, what)
    truth = data.ground_truth()
    results = perfect(truth)
    for result in results:
        result["image_id"] = 2 * 2**53 + 3 - result["image_id"]  # the other image
    metrics, _ = coco_metrics(coco_ground_truth(truth), results, masks=True)
    assert metrics["bbox"]["AP"] < 0.6


def test_results_have_the_ids_of_the_file(tmp_path):
    what = masked_content()
    renumber("images", "image_id", lambda i: 2**64 + i)(what)
    renumber("categories", "category_id", lambda i: 10 * i)(what)
    data = coco_files.load(tmp_path, what)
    evaluator = CocoEvaluator(data, data.categories, masks=False, max_detections=100)
    for index in range(2):
        boxes, ids, _ = data.objects(index)
        detection = {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.tensor([data.categories.label_of[i] for i in ids.tolist()]),
            "scores": torch.ones(len(boxes)),
        }
        evaluator.update([detection], ([data.image(index)], [data.image_ids[index]]))
    assert evaluator.compute()["bbox"]["AP"] == 1
    assert {r["image_id"] for r in evaluator.results} == {2**64 + 1, 2**64 + 2}
    assert {r["category_id"] for r in evaluator.results} == {10, 20}


def test_left_out_objects_are_no_misses(tmp_path):
    what = masked_content()
    base = what["annotations"][0]
    what["annotations"] += [
        {**base, "bbox": [100, 100, 5, 5]},
        {**base, "bbox": [1, 1, 0, 0]},
        {**base, "segmentation": [[1, 1, 2, 2]]},
        {**base, "segmentation": [[1, 1, 1e9, 2, 3, 3]]},
    ]
    data = coco_files.load(tmp_path, what)
    assert "4 objects left out" in data.summary()
    assert scores(data) == [1.0, 1.0]


@pytest.mark.parametrize("absent", ["area", "segmentation"])
def test_areas_and_size_classes_are_pycocotools(tmp_path, absent):
    """Against pycocotools on a file that is repaired by hand."""
    what = masked_content()
    for entry in what["annotations"]:
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
        if absent == "area" and isinstance(entry["segmentation"], list):
            rle = coco_mask.merge(coco_mask.frPyObjects(entry["segmentation"], HEIGHT, WIDTH))
            entry["area"] = float(coco_mask.area(rle))
        elif absent == "area":
            rle = entry["segmentation"]
            if isinstance(rle["counts"], list):
                rle = coco_mask.frPyObjects(rle, HEIGHT, WIDTH)
            entry["area"] = float(coco_mask.area(rle))
    file = tmp_path / "repaired.json"
    file.write_text(json.dumps(what))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        results = [r | {"bbox": [r["bbox"][0] + 1, *r["bbox"][1:]]} for r in perfect(what)]
        results = [{k: v for k, v in r.items() if k != "segmentation"} for r in results]
        evaluation = COCOeval(truth, truth.loadRes([dict(r) for r in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    for entry in what["annotations"]:
        entry["area"] = None
        if absent == "segmentation":
            del entry["segmentation"]
    data = coco_files.load(tmp_path, what)
    metrics, _ = coco_metrics(coco_ground_truth(data.ground_truth()), results, masks=False)
    np.testing.assert_allclose(list(metrics["bbox"].values()), evaluation.stats, atol=1e-9)


def test_the_root_that_roboflow_adds_is_no_class(tmp_path):
    what = masked_content()
    what["categories"] = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "cat"},
        {"id": 2, "name": "dog", "supercategory": "cat"},
    ]
    data = coco_files.load(tmp_path, what)
    assert data.categories.names == ("cat", "dog")
    assert scores(data) == [1.0, 1.0]


def test_validation_may_number_the_classes_differently(tmp_path):
    what = masked_content()
    train = coco_files.load(tmp_path / "a", what)
    renumber("categories", "category_id", lambda i: 3 - i)(what)
    val = coco_files.load(tmp_path / "b", what)
    united = merge_categories(train, val)
    assert united == train.categories
    evaluator = CocoEvaluator(val, united, masks=False, max_detections=100)
    names = dict(zip(val.categories.ids, val.categories.names, strict=True))
    for label, category in evaluator.labels.category_of.items():
        assert united.name(label) == names[category]


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_files_are_found_in_other_unicode_forms_and_with_backslashes(tmp_path, stored):
    what = masked_content()
    names = ["b\u00e4ume/\u00e9t\u00e9.png", "b\u00e4ume/2.png"]
    for entry, name in zip(what["images"], names, strict=True):
        entry["file_name"] = unicodedata.normalize(stored, name)
    coco_files.write(tmp_path, what)
    other = {"NFC": "NFD", "NFD": "NFC"}[stored]
    for entry in what["images"]:
        name = unicodedata.normalize(other, entry["file_name"])
        entry["file_name"] = name.replace("/", "\\")
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_text(json.dumps(what))
    data = load_split(find_splits(tmp_path)["train"])
    assert [data.image(index).size for index in range(2)] == [(WIDTH, HEIGHT)] * 2


@pytest.mark.parametrize("coordinate", [1e7, 1e8, 1e9, 1e300, float("inf"), float("nan")])
def test_a_coordinate_far_outside_costs_nothing(tmp_path, coordinate):
    what = masked_content()
    what["annotations"][0]["segmentation"] = [[1, 2, coordinate, 4, 5, 6]]
    file = coco_files.write(tmp_path, what)
    before = time.perf_counter()
    tracemalloc.start()
    annotations = read_annotations(file).with_masks()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert annotations.left_out == {"coordinates far outside the image": 1}
    assert time.perf_counter() - before < 2 and peak < 2**24
