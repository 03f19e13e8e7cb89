"""Annotation files that are almost COCO's: reading ends in success or in a UserError."""

import copy
import json
import math
import tempfile
import threading
from pathlib import Path

from hypothesis import strategies as st
from PIL import Image

from botvision.config import DetectionTask
from botvision.data.coco import Split, load_split
from botvision.data.detection import DetectionDataset, merge_categories
from botvision.data.jitter import LargeScaleJitter
from botvision.data.skipped import Skipped
from botvision.errors import UserError
from botvision.evaluation.coco import coco_ground_truth, coco_metrics

TASKS: tuple[DetectionTask | None, ...] = (None, "detection", "segmentation")
WIDTH, HEIGHT = 20, 16
_POLYGON = [[2, 2, 12, 2, 12, 10.5, 2, 10]]
_RLE = {"size": [HEIGHT, WIDTH], "counts": [16, 48, 256]}
_COMPRESSED = {"size": [HEIGHT, WIDTH], "counts": "`0`1P8"}
_SEGMENTATIONS = (_POLYGON, _RLE, _COMPRESSED, [], None, _POLYGON[0], [[1, 2], [9, 2], [5, 9]])

_numbers = st.one_of(
    st.integers(-3, 30),
    st.floats(-3, 30),
    st.sampled_from([0, -1, 2**31, 2**53 + 1, 2**63, 2**64, 10**40, 1e8, 1e300, 5e-324]),
    st.sampled_from([math.inf, -math.inf, math.nan]),
)
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    _numbers,
    _numbers.map(str),
    st.sampled_from(["", "12", "12.0", " 7 ", "1_0", "\u0661", "0x1", "1e3", "a/../b", "a\\b"]),
    st.text(max_size=6),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def _sound(draw):
    annotations = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "id": st.integers(0, 5),
                    "image_id": st.integers(1, 2),
                    "category_id": st.integers(1, 2),
                    "bbox": st.sampled_from([[2, 2, 10, 8], [0, 0, 20, 16], [5.5, 1, 9, 14.5]]),
                    "area": st.sampled_from([0, 80, None]),
                    "iscrowd": st.sampled_from([0, 0, 0, 1]),
                    "segmentation": st.sampled_from(_SEGMENTATIONS),
                }
            ),
            min_size=1,
            max_size=4,
        )
    )
    images = [{"id": k, "file_name": f"{k}.png", "width": WIDTH, "height": HEIGHT} for k in (1, 2)]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b", "supercategory": "a"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return copy.deepcopy(content)


def _places(value, path=()):
    """The paths of all values inside a JSON value."""
    yield path
    if not isinstance(value, dict | list):
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _places(inner, (*path, key))


def _mutate(draw, content):
    """Replace, remove, repeat or wrap one value."""
    path = draw(st.sampled_from(list(_places(content))))
    if not path:
        return draw(_values)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    key, value = path[-1], parent[path[-1]]
    match draw(st.sampled_from(["replace", "number", "text", "remove", "repeat", "wrap", "deep"])):
        case "replace":
            parent[key] = draw(_values)
        case "number":
            parent[key] = draw(_numbers)
        case "text":
            parent[key] = str(value)
        case "remove":
            del parent[key]
        case "repeat" if isinstance(parent, list):
            parent.append(copy.deepcopy(value))
        case "wrap" | "repeat":
            parent[key] = [value]
        case "deep":
            for _ in range(draw(st.sampled_from([10, 400]))):
                value = [value]
            parent[key] = value
    return content


@st.composite
def annotation_files(draw):
    """The bytes of a file: sound COCO with some values and bytes changed, in any encoding."""
    content = draw(_sound())
    for _ in range(draw(st.integers(0, 3))):
        content = _mutate(draw, content)
        if not isinstance(content, dict | list):
            break
    text = json.dumps(content, ensure_ascii=draw(st.booleans()))
    encoding = draw(st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-32", "utf-16-be"]))
    data = bytearray(text.encode(encoding, "surrogatepass"))
    if draw(st.integers(0, 4)) == 0:
        for _ in range(draw(st.integers(1, 4))):
            place = draw(st.integers(0, max(0, len(data) - 1)))
            data[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(data)


_folder = threading.local()


def _root():
    """A COCO folder with two images, made once."""
    if not hasattr(_folder, "temporary"):
        _folder.temporary = tempfile.TemporaryDirectory()
        root = Path(_folder.temporary.name)
        (root / "annotations").mkdir()
        (root / "train").mkdir()
        for k in (1, 2):
            Image.new("RGB", (WIDTH, HEIGHT)).save(root / "train" / f"{k}.png")
    return Path(_folder.temporary.name)


def one_line(load):
    """What ``load`` returns, or None if it raises a UserError of one line."""
    try:
        return load()
    except UserError as error:
        assert len(str(error).splitlines()) == 1, str(error)
        return None


def read(data, task):
    """Read a file as training and evaluation do.

    Args:
        data: bytes of the annotation file.
        task: the task, or None for the one of the data.

    Returns:
        Whether the file was accepted. What is accepted can be trained on and evaluated, and perfect
        detections of its boxes are perfect.
    """
    root = _root()
    file = root / "annotations" / "instances_train.json"
    file.write_bytes(data)
    source = Split("train", file, root)
    skipped: list[Skipped] = []
    tolerant = one_line(lambda: load_split(source, task, skipped=skipped))
    split = one_line(lambda: load_split(source, task))
    if split is None:
        return False
    assert tolerant is not None and not skipped
    assert tolerant.summary() == split.summary()
    categories = merge_categories(split)
    masks = split.task == "segmentation"
    jitter = LargeScaleJitter(32, (0.5, 2.0))
    dataset = DetectionDataset(split, categories, jitter=jitter, masks=masks)
    for index in range(len(dataset)):
        try:
            dataset[index]
        except UserError:  # the image has another size
            continue
    truth = split.ground_truth()
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 1}
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]
    index = coco_ground_truth(truth)
    metrics, _ = coco_metrics(index, results, masks=False)
    assert metrics["bbox"]["AP"] > 0.999 or not results, metrics["bbox"]
    if masks:
        coco_metrics(index, [], masks=True)
    return True
