import json
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as oracle

from botvision.data.coco import find_splits, load_split
from botvision.data.detection import DetectionDataset, merge_categories
from botvision.data.jitter import LargeScaleJitter
from botvision.errors import UserError
from coco_files import HEIGHT, IDENTITY, SQUARE, WIDTH, annotation, content, load, write

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def train_set(data, jitter=IDENTITY, **more):
    return DetectionDataset(data, data.categories, jitter=jitter, **more)


def without(key, annotations):
    return [{k: v for k, v in a.items() if k != key} for a in annotations]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["instances_train2017", "instances_val2017", "captions_val2017"], ["train", "val"]),
        (["instances_train", "extra"], ["train"]),
        (
            ["train", "valid", "test-dev", "captions_x", "person_keypoints_x"],
            ["test", "train", "val"],
        ),
        (
            ["trainval", "panoptic_val", "stuff_val", "image_info_test", "holdout"],
            ["holdout", "train"],
        ),
    ],
)
def test_splits_are_found_by_their_file_names(tmp_path, files, expected):
    for name in files:
        write(tmp_path, content([]), name)
    splits = find_splits(tmp_path)
    assert sorted(splits) == expected
    for name, split in splits.items():
        assert split.name == name
        assert split.annotations.is_file()


def test_two_files_of_one_split_are_an_error(tmp_path):
    write(tmp_path, content([]), "instances_val2014")
    write(tmp_path, content([]), "instances_val2017")
    with pytest.raises(UserError, match=r"val2017\.json: is the split 'val' and .*val2014\.json"):
        find_splits(tmp_path)


def test_another_folder_is_told_what_a_coco_folder_is(tmp_path):
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=r"not a folder in COCO format; expected annotations/"):
            find_splits(root)


@pytest.mark.parametrize("folder", ["train2017", "images/train2017", "images", "."])
def test_images_are_found_in_each_usual_folder(tmp_path, folder):
    data = load(tmp_path, content([]), name="instances_train2017", folder=folder)
    assert data.images == tmp_path / folder
    assert data.image_path(1) == tmp_path / folder / "2.png"
    assert len(data) == 2


def test_file_names_may_have_folders(tmp_path):
    what = content([])
    for image, name in zip(what["images"], ["train/a/1.png", "train/b/1.png"], strict=True):
        image["file_name"] = name
    data = load(tmp_path, what, folder="images")
    assert data.images == tmp_path / "images"


def test_missing_images_are_counted(tmp_path):
    write(tmp_path, content([], images=4))
    split = find_splits(tmp_path)["train"]
    (tmp_path / "train" / "2.png").unlink()
    (tmp_path / "train" / "4.png").unlink()
    with pytest.raises(UserError, match=r"2 of 4 image files are missing, the first is .*2\.png"):
        load_split(split)
    (tmp_path / "train" / "1.png").unlink()
    with pytest.raises(UserError, match=r"3 of 4 image files are missing, the first is .*1\.png"):
        load_split(split)
    (tmp_path / "train" / "3.png").unlink()
    with pytest.raises(UserError, match=r"first image, 1\.png, is in none of .*train, .*images"):
        load_split(split)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("annotations"), "has no list 'annotations'"),
        (lambda c: c.update(images={}), "has no list 'images'"),
        (lambda c: c.update(images=[]), "lists no images"),
        (lambda c: c.update(categories=[]), "lists no categories"),
        (lambda c: c["images"][1].pop("height"), r"images\[1\] with the id 2: has no 'height'"),
        (
            lambda c: c["images"][1].update(id="x"),
            """'id' is "x", which is not a whole""",
        ),
        (lambda c: c["images"][1].update(id=1), "two images have the id 1"),
        (lambda c: c["categories"][1].update(id=1), "two categories have the id 1"),
        (lambda c: c["categories"][1].update(name="cat"), "two categories have the name 'cat'"),
        (
            lambda c: c["annotations"][0].pop("bbox"),
            r"annotations\[0\] .* 7: has no 'bbox'",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
            r"'bbox' has 3 numbers",
        ),
        (
            lambda c: c["annotations"].append(None),
            r"annotations\[1\]: is null, which is",
        ),
        (lambda c: c["annotations"][0].update(image_id=9), "the id 7: has image_id 9, which"),
        (lambda c: c["annotations"][0].update(category_id=9), "the id 7: has category_id 9"),
        (
            lambda c: c["annotations"][0].update(
                segmentation={"size": [60, 40], "counts": [0, 2400]}
            ),
            r"RLE's size is \[60, 40\], the image's \[40, 60\]",
        ),
        (
            lambda c: c["annotations"][0].update(segmentation={"size": [40, 60], "counts": [3, 4]}),
            "counts do not add up",
        ),
        (
            lambda c: c["annotations"][0].update(segmentation={"size": [40, 60], "counts": "a b"}),
            "not COCO's compressed form",
        ),
    ],
)
def test_a_faulty_file_is_an_error_of_one_line(tmp_path, change, message):
    what = content([annotation(7)])
    change(what)
    file = write(tmp_path, content([]))
    file.write_text(json.dumps(what))
    with pytest.raises(UserError, match=message) as error:
        load_split(find_splits(tmp_path)["train"])
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[]", "one JSON object"), ("\x81", "is not JSON")]
)
def test_a_file_that_is_not_coco_json_is_an_error(tmp_path, text, message):
    write(tmp_path, content([])).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        load_split(find_splits(tmp_path)["train"])


def test_what_has_no_area_is_left_out_everywhere_and_counted(tmp_path):
    empty = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    annotations = [
        annotation(1),
        annotation(2, bbox=(10, 10, 0, 5)),
        annotation(3, bbox=(10, 10, 5, -1)),
        annotation(4, bbox=(10, float("nan"), 5, 5)),
        annotation(5, bbox=(-20, 10, 5, 5)),
        annotation(6, bbox=(WIDTH, 10, 5, 5)),
        annotation(7, segmentation=[[1, 2, 3, 4]]),
        annotation(8, segmentation=[[0, 0, 9, 9, 18, 18]]),
        annotation(9, segmentation=empty),
        annotation(10, segmentation=empty | {"counts": []}),
        annotation(11, segmentation=[[-9, 0, -1, 0, -1, 9]]),
        annotation(12, segmentation=[[0, 0, 1e8, 0, 9, 9]]),
        annotation(13, bbox=(0, 0, 1e8, 5)),
        annotation(14, segmentation=[[1, 2, 3, 4], *SQUARE], image_id=2),
        annotation(15, iscrowd=1, segmentation=empty),
        annotation(16, iscrowd=1),
    ]
    data = load(tmp_path, content(annotations, images=3))
    assert data.summary() == (
        "train: 3 images (1 without objects), 2 instances of 1 of 2 classes, 1 crowd region, "
        "13 objects left out (box without area or not finite: 3, coordinates far outside the "
        "image: 2, box outside the image: 2, mask without area: 6)"
    )
    assert data.has_masks
    assert [len(train_set(data)[i][1]["boxes"]) for i in range(3)] == [1, 1, 0]
    truth = data.ground_truth()["annotations"]
    found = [(a["id"], a["image_id"], a["iscrowd"]) for a in truth]
    assert found == [(1, 1, 0), (2, 1, 1), (3, 2, 0)]
    # Detection does not look at the masks.
    boxes = load_split(data.split, "detection")
    assert "8 instances of 1 of 2 classes without masks, 2 crowd regions, 6 obj" in boxes.summary()
    assert [len(train_set(boxes, masks=False)[i][1]["boxes"]) for i in range(3)] == [7, 1, 0]
    assert not any("segmentation" in a for a in boxes.ground_truth()["annotations"])


def test_crowd_regions_are_no_targets(tmp_path):
    annotations = [annotation(1, iscrowd=1), annotation(2, iscrowd=0), annotation(3, iscrowd=1)]
    data = load(tmp_path, content(annotations))
    assert "1 instance of 1 of 2 classes, 2 crowd regions" in data.summary()
    assert len(train_set(data)[0][1]["labels"]) == 1


def test_a_split_without_any_annotation(tmp_path):
    data = load(tmp_path, content([]))
    assert data.summary() == "train: 2 images (2 without objects), 0 instances of 0 of 2 classes"
    image, target = train_set(data)[1]
    assert image.shape == (3, HEIGHT, WIDTH)
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)
    assert target["labels"].dtype == torch.int64
    assert target["masks"].whole().shape == (0, HEIGHT, WIDTH)


@pytest.mark.parametrize("segmentation", [None, [], "absent"])
def test_detection_data_has_no_masks(tmp_path, segmentation):
    annotations = [annotation(i, segmentation=segmentation, area=400) for i in (4, 5)]
    if segmentation == "absent":
        annotations = without("segmentation", annotations)
    crowd = annotation(6, iscrowd=1)
    data = load(tmp_path, content([*annotations, crowd]))
    assert not data.has_masks
    assert "2 instances of 1 of 2 classes without masks, 1 crowd region" in data.summary()
    target = train_set(data, masks=False)[0][1]
    assert set(target) == {"boxes", "labels", "index"}
    assert len(target["boxes"]) == 2
    with pytest.raises(UserError, match=r"not every object has a mask \(one in 1\.png\)"):
        train_set(data)


def test_one_annotation_without_the_key_is_named(tmp_path):
    annotations = [annotation(1), *without("segmentation", [annotation(2)]), annotation(3)]
    data = load(tmp_path, content(annotations))
    assert len(train_set(data, masks=False)[0][1]["boxes"]) == 3
    with pytest.raises(UserError, match=r"not every object has a mask \(one in 1\.png\)"):
        train_set(data)


def test_every_kind_of_segmentation_gives_the_oracles_mask(tmp_path):
    rng = np.random.default_rng(0)
    random_mask = (rng.random((HEIGHT, WIDTH)) < 0.4).astype(np.uint8)
    compressed = oracle.encode(np.asfortranarray(random_mask))
    compressed["counts"] = compressed["counts"].decode()
    runs = np.diff(np.flatnonzero(np.diff(random_mask.ravel(order="F"), prepend=2)), append=2400)
    runs = runs.tolist() if random_mask[0, 0] == 0 else [0, *runs.tolist()]
    parts = [[5, 5, 20.5, 7, 11, 30.2], [30, 5, 55, 5, 55, 35, 31, 33.3]]
    whole = (0, 0, WIDTH, HEIGHT)
    annotations = [
        annotation(1, bbox=whole, segmentation=parts),
        annotation(2, bbox=whole, segmentation=compressed),
        annotation(3, bbox=whole, segmentation={"size": [HEIGHT, WIDTH], "counts": runs}),
    ]
    image, target = train_set(load(tmp_path, content(annotations)))[0]
    drawn = oracle.decode(oracle.merge(oracle.frPyObjects(parts, HEIGHT, WIDTH)))
    expected = np.stack([drawn, random_mask, random_mask])
    assert target["masks"].whole().dtype == torch.uint8
    np.testing.assert_array_equal(target["masks"].whole().numpy(), expected)
    stored = np.asarray(Image.open(tmp_path / "train" / "1.png"))
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), stored)


def test_boxes_are_xyxy_and_go_with_their_image(tmp_path):
    annotations = [
        annotation(1, image_id=2, category_id=2, bbox=(1, 2, 3, 4)),
        annotation(2, image_id=1, category_id=1, bbox=(5, 6, 50, 30)),
        annotation(3, image_id=2, category_id=1, bbox=(7, 8, 100, 100)),
    ]
    dataset = train_set(load(tmp_path, content(annotations)))
    assert len(dataset) == 2
    first, second = dataset[0][1], dataset[1][1]
    assert first["boxes"].tolist() == [[5, 6, 55, 36]]
    assert second["boxes"].tolist() == [[1, 2, 4, 6], [7, 8, WIDTH, HEIGHT]]
    assert second["boxes"].dtype == torch.float32
    assert (first["labels"].tolist(), second["labels"].tolist()) == ([1], [2, 1])
    assert (first["index"].item(), second["index"].item()) == (0, 1)
    assert second["index"].shape == ()
    assert second["index"].dtype == torch.int64


def test_instances_under_a_pixel_or_without_a_mask_pixel_are_left_out(tmp_path):
    annotations = [
        annotation(1, bbox=(10, 10, 0.9, 20)),
        annotation(2, bbox=(59.5, 10, 20, 20)),
        annotation(3, segmentation={"size": [HEIGHT, WIDTH], "counts": [0, 1, 2399]}),
        annotation(4, category_id=2),
    ]
    data = load(tmp_path, content(annotations))
    # Too small a view for the mask of annotation 3.
    small = LargeScaleJitter(6, (1.0, 1.0), flip=False)
    assert train_set(data, small)[0][1]["labels"].tolist() == [2]
    target = train_set(data)[0][1]
    assert target["labels"].tolist() == [1, 2]
    assert len(target["boxes"]) == len(target["masks"].crops) == 2


def test_an_item_is_a_function_of_seed_epoch_and_index(tmp_path):
    data = load(tmp_path, content([annotation(1), annotation(2, image_id=2)]))
    jitter = LargeScaleJitter(32, (0.5, 2.0))

    def pixels(key, seed=0):
        image, target = train_set(data, jitter, seed=seed)[key]
        return image.shape, image.numpy().tobytes(), target["boxes"].tolist()

    keys = [(epoch, index) for epoch in range(3) for index in range(2)]
    expected = {key: pixels(key) for key in keys}
    assert len({e[1] for e in expected.values()}) == len(keys)
    dataset = pickle.loads(pickle.dumps(train_set(data, jitter)))
    for seed, key in enumerate(reversed(keys)):
        np.random.default_rng(seed)
        random.seed(seed)
        torch.manual_seed(seed)
        image, target = dataset[key]
        assert (image.shape, image.numpy().tobytes(), target["boxes"].tolist()) == expected[key]
    assert pixels(1) == expected[0, 1]
    assert pixels((0, 0), seed=1) != expected[0, 0]


def test_an_image_of_another_size_is_an_error(tmp_path):
    what = content([])
    data = load(tmp_path, what)
    Image.new("RGB", (9, 9)).save(tmp_path / "train" / "2.png")
    with pytest.raises(UserError, match=r"2\.png: the image is 9x9 .* 60x40"):
        train_set(data)[1]


def test_coco_itself(coco_mini):
    splits = find_splits(coco_mini)
    data = {name: load_split(split) for name, split in splits.items()}
    assert data["train"].summary() == (
        "train: 100 images (2 without objects), 740 instances of 69 of 80 classes, 6 crowd regions"
    )
    categories = merge_categories(*data.values())
    assert categories.label_of[90] == 80
    assert categories.name(80) == "toothbrush"
    # The masks of some whole images are the oracle's.
    by_id = json.loads(splits["val"].annotations.read_text())
    dataset = DetectionDataset(
        data["val"], categories, jitter=LargeScaleJitter(640, (1, 1), flip=False)
    )
    for index in range(0, 100, 10):
        width, height = data["val"].annotations.sizes[index].tolist()
        if max(width, height) != 640:
            continue
        target = dataset[index][1]
        expected = [
            oracle.decode(oracle.merge(oracle.frPyObjects(a["segmentation"], height, width)))
            for a in by_id["annotations"]
            if a["image_id"] == data["val"].image_ids[index] and not a["iscrowd"]
        ]
        np.testing.assert_array_equal(target["masks"].whole().numpy(), np.stack(expected))


def test_hundreds_of_instances_in_a_large_jittered_image(nuclei):
    data = load_split(find_splits(nuclei)["train"])
    assert data.summary() == "train: 500 images, 21,912 instances of 1 class"
    crowded = int(np.diff(data.annotations.first).argmax())
    image, target = train_set(data, LargeScaleJitter(1024, (1.0, 1.0)))[crowded]
    assert max(image.shape) == 1024
    assert len(target["masks"].crops) > 300
    for mask, box in zip(target["masks"].whole().numpy(), target["boxes"].numpy(), strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(extent, box, atol=1)


def test_of_too_many_instances_some_are_drawn_at_random(tmp_path):
    boxes = [(x, y, 4, 4) for x in range(0, 50, 10) for y in range(0, 30, 10)]
    entries = [
        annotation(i + 1, bbox=b, segmentation=[[b[0], b[1], b[0] + 4, b[1], b[0] + 4, b[1] + 4]])
        for i, b in enumerate(boxes)
    ]
    data = load(tmp_path, content(entries, images=1))
    everything = train_set(data)[0][1]["boxes"]
    assert len(everything) == len(boxes)
    dataset = train_set(data, max_instances=4)
    drawn = [dataset[(epoch, 0)][1] for epoch in range(20)]
    assert all(len(t["boxes"]) == len(t["masks"].crops) == len(t["labels"]) == 4 for t in drawn)
    assert all((everything == box).all(dim=1).any() for t in drawn for box in t["boxes"])
    seen = {tuple(box.tolist()) for t in drawn for box in t["boxes"]}
    assert len(seen) > 10
    again = dataset[(3, 0)][1]["boxes"]
    assert torch.equal(again, drawn[3]["boxes"])
    assert len(train_set(data, max_instances=99)[0][1]["boxes"]) == len(boxes)
