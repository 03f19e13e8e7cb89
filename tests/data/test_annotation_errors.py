"""Annotations whose meaning is not clear end in one line."""

import json
import os

import pytest
from PIL import Image

import coco_files
from botvision.data.annotations import read_annotations
from botvision.data.coco import find_splits, load_split
from botvision.errors import UserError
from coco_files import HEIGHT, WIDTH, masked_content


def set_first(**values):
    return lambda what: what["annotations"][0].update(values)


def rle(**values):
    return set_first(segmentation={"size": [HEIGHT, WIDTH], "counts": [0, 400, 2000]} | values)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


REFUSED = {
    "bool as id": (lambda c: c["images"][0].update(id=True), "'id' is true, which is not a whole"),
    "bool in a box": (set_first(bbox=[1, 2, True, 4]), "a number of 'bbox' is true"),
    "bool in a polygon": (set_first(segmentation=[[1, 2, True, 4, 5, 6]]), "is true, which is not"),
    "fractional id": (set_first(image_id=1.5), "'image_id' is 1.5, which is not a whole number"),
    "text as id": (set_first(image_id="one"), "'image_id' is \"one\""),
    "null as id": (set_first(category_id=None), "'category_id' is null"),
    "a list as id": (set_first(image_id=[1]), "'image_id' is a list"),
    "NaN as size": (lambda c: c["images"][0].update(width=float("nan")), "'width' is NaN"),
    "infinite size": (lambda c: c["images"][0].update(width=float("inf")), "'width' is Infinity"),
    "no size": (lambda c: c["images"][0].update(width=0), "has the size 0 x 40"),
    "huge size": (lambda c: c["images"][0].update(width=10**400), "which no image has"),
    "a list as file name": (lambda c: c["images"][0].update(file_name=[]), "'file_name' is a list"),
    "an empty file name": (lambda c: c["images"][0].update(file_name=""), "'file_name' is \"\""),
    "a null in a name": (lambda c: c["images"][0].update(file_name="a\0b"), "invalid character"),
    "half a pair": (lambda c: c["categories"][0].update(name="a\ud800"), "invalid character"),
    "no name": (lambda c: c["categories"][0].update(name=None), "'name' is null"),
    "a number as list": (lambda c: c.update(annotations=1.5), "has no list 'annotations'"),
    "a list as object": (
        lambda c: c["annotations"].append([]),
        "is a list, which is not an",
    ),
    "a box as text": (set_first(bbox="1 2 3 4"), "'bbox' is \"1 2 3 4\""),
    "a nested box": (set_first(bbox=[[1, 2], 3, 4, 5]), "a number of 'bbox' is a list"),
    "iscrowd 2": (set_first(iscrowd=2), "'iscrowd' is 2, which is not 0 or 1"),
    "iscrowd a list": (set_first(iscrowd=[0]), "'iscrowd' is a list"),
    "text as mask": (set_first(segmentation="mask.png"), "'segmentation' is \"mask.png\""),
    "text in a polygon": (set_first(segmentation=[[1, 2, "x", 4, 5, 6]]), 'is "x", which is not'),
    "an object in a mask": (set_first(segmentation=[[1, 2], {}]), "in place of a polygon"),
    "deep mask": (set_first(segmentation=nested(50)), "is a list, which is not a number"),
    "counts that do not add up": (rle(counts=[0, 5, 9]), "counts do not add up"),
    "negative counts": (rle(counts=[0, 2500, -100]), "counts do not add up"),
    "huge counts": (rle(counts=[0, 10**30]), "counts do not add up"),
    "fractional counts": (rle(counts=[0.5, 2399.5]), "counts' is 0.5"),
    "counts a number": (rle(counts=7), "'counts' is 7"),
    "counts not ASCII": (rle(counts="\u00e9"), "not COCO's compressed form"),
    "counts of many groups": (rle(counts="o" * 40 + "0"), "not COCO's compressed form|add up"),
    "size of another image": (rle(size=[3, 4]), r"RLE's size is \[3, 4\]"),
    "size a number": (rle(size=3), "RLE's size is 3"),
    "no counts": (set_first(segmentation={"size": [HEIGHT, WIDTH]}), "has no 'counts'"),
    "a crowd's counts": (
        lambda c: c["annotations"][4].update(
            segmentation={"size": [HEIGHT, WIDTH], "counts": [1, 2]}
        ),
        r"annotations\[4\].*do not add up",
    ),
    "fractions": (
        lambda c: [a.update(bbox=[0.1, 0.2, 0.5, 0.4]) for a in c["annotations"]],
        r"all boxes are in 0\.\.1, as fractions",
    ),
    "all boxes outside": (
        lambda c: [a.update(bbox=[100, 100, 5, 5]) for a in c["annotations"]],
        r"none of its objects can be used \(box outside the image: 5\)",
    ),
    "all crowds": (
        lambda c: [a.update(iscrowd=1) for a in c["annotations"]],
        r"none of its objects can be used \(crowd region: 5\); correct `iscrowd`",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_clear_is_one_line(tmp_path, change, message):
    what = masked_content()
    file = coco_files.write(tmp_path, what)
    change(what)
    file.write_text(json.dumps(what))
    with pytest.raises(UserError, match=message) as error:
        load_split(find_splits(tmp_path)["train"])
    assert str(error.value).startswith(str(file))
    assert len(str(error.value).splitlines()) == 1
    assert "Error" not in str(error.value).replace(str(file), "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"images": ' * 200_000, "nested too deeply"),
        (b"9" * 5000, "thousands of digits"),
        (b"\xff\xfe\x00", "not UTF-8, UTF-16 or UTF-32"),
        (b"\xe9", "not UTF-8, UTF-16 or UTF-32"),
        (b"", "is not JSON"),
        (b'{"images": [}', r"Expecting value in line 1, column 13"),
    ],
)
def test_bytes_that_are_not_json_are_one_line(tmp_path, text, message):
    file = tmp_path / "x.json"
    file.write_bytes(text)
    with pytest.raises(UserError, match=message) as error:
        read_annotations(file)
    assert len(str(error.value).splitlines()) == 1


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(UserError, match="is not a regular file"):
        read_annotations(tmp_path / "x.json")


def rotated(root, size, stored=(WIDTH, HEIGHT), orientation=6):
    what = masked_content()
    what["annotations"] = [what["annotations"][0] | {"bbox": [5, 35, 30, 20]}]
    what["annotations"][0]["segmentation"] = [[5, 35, 35, 35, 35, 55]]
    what["images"] = [what["images"][0] | {"width": size[0], "height": size[1]}]
    coco_files.write(root, what)
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", stored).save(root / "train" / "1.png", exif=exif)
    return find_splits(root)["train"]


def test_boxes_of_the_upright_photo_with_the_stored_size_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"1\.png: its boxes fit the upright image of 40x60, but"):
        load_split(rotated(tmp_path, (WIDTH, HEIGHT)))


@pytest.mark.parametrize(
    ("size", "stored", "orientation"),
    [((40, 60), (60, 40), 6), ((60, 40), (60, 40), 1), ((60, 40), (60, 40), 3)],
)
def test_other_boxes_that_leave_their_photo_are_kept(tmp_path, size, stored, orientation):
    assert load_split(rotated(tmp_path, size, stored, orientation)).num_objects == 1
