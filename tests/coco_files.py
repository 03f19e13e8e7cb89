"""Small COCO folders for tests."""

import json

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from botvision.data.coco import find_splits, load_split
from botvision.data.jitter import LargeScaleJitter

TRIANGLE = [3.0, 4.0, 33.0, 6.0, 20.0, 30.0]
SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]
HEIGHT, WIDTH = 40, 60
# Scales by 1, crops nothing and does not mirror an image of 60 x 40.
IDENTITY = LargeScaleJitter(60, (1.0, 1.0), flip=False)


def annotation(id_, image_id=1, category_id=1, bbox=(10, 10, 20, 20), **more):
    entry = {"id": id_, "image_id": image_id, "category_id": category_id, "bbox": list(bbox)}
    return entry | {"segmentation": SQUARE} | more


def content(annotations, images=2, categories=((1, "cat"), (2, "dog"))):
    return {
        "images": [
            {"id": i + 1, "file_name": f"{i + 1}.png", "width": WIDTH, "height": HEIGHT}
            for i in range(images)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in categories],
    }


def compressed(mask):
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def masked_content():
    """Four objects of two classes on two images, with masks of every kind, and a crowd."""
    square = np.zeros((HEIGHT, WIDTH), np.uint8)
    square[5:15, 40:55] = 1
    runs = [0, 400, 2000]  # the first ten columns
    masks = [[TRIANGLE], compressed(square), {"size": [HEIGHT, WIDTH], "counts": runs}, [TRIANGLE]]
    boxes = [[3, 4, 30, 26], [40, 5, 15, 10], [0, 0, 10, 40], [3, 4, 30, 26]]
    annotations = [
        {
            "id": k + 1,
            "image_id": 1 + k // 2,
            "category_id": 1 + k % 2,
            "bbox": box,
            "area": 300.0,
            "iscrowd": 0,
            "segmentation": mask,
        }
        for k, (box, mask) in enumerate(zip(boxes, masks, strict=True))
    ]
    crowd = {**annotations[0], "id": 9, "iscrowd": 1, "image_id": 2}
    return content([*annotations, crowd])


def write(root, what, name="instances_train", folder="train"):
    """Write an annotation file and noise images; returns the file."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    file = root / "annotations" / f"{name}.json"
    file.write_text(json.dumps(what))
    rng = np.random.default_rng(0)
    for image in what.get("images", ()):
        path = root / folder / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return file


def load(root, what, **where):
    write(root, what, **where)
    return load_split(next(iter(find_splits(root).values())))
