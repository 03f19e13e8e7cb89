import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from botvision.data.shapes import CONTEXT_CLASSES, SHAPES_CLASSES, write_shapes
from botvision.errors import UserError

# pycocotools predates the copy keyword of numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BOTH_SETS = pytest.mark.parametrize("root", ["shapes", "shapes-context"], indirect=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp("sets")
    for name in ("shapes", "shapes-context"):
        write_shapes(top / name, context=name == "shapes-context", train=150, val=50)
    return top


@pytest.fixture
def root(folders, request):
    return folders / request.param


def load(root: Path, split: str) -> COCO:
    return COCO(root / "annotations" / f"instances_{split}.json")


def contents(root: Path) -> dict[str, bytes]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.parametrize("context", [False, True])
def test_equal_seeds_write_equal_bytes(tmp_path, context):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_shapes(tmp_path / name, context=context, train=5, val=3, image_size=64, seed=seed)
    first = contents(tmp_path / "a")
    assert len(first) == 5 + 3 + 2
    assert first == contents(tmp_path / "b")
    other = contents(tmp_path / "c")
    assert all(first[name] != other[name] for name in first)
    assert len(set(first.values())) == len(first)


@BOTH_SETS
def test_small_set_is_the_beginning_of_a_large_one(root, tmp_path):
    write_shapes(tmp_path, context=root.name == "shapes-context", train=4, val=2)
    large, small = contents(root), contents(tmp_path)
    assert {k for k in small if k.endswith(".jpg")} == {
        *(f"train/{i:06d}.jpg" for i in range(4)),
        *(f"val/{i:06d}.jpg" for i in range(2)),
    }
    assert all(small[k] == large[k] for k in small if k.endswith(".jpg"))
    for split, count in (("train", 4), ("val", 2)):
        name = f"annotations/instances_{split}.json"
        whole, part = json.loads(large[name]), json.loads(small[name])
        assert part["images"] == whole["images"][:count]
        assert part["annotations"] == whole["annotations"][: len(part["annotations"])]
        assert part["annotations"][-1]["image_id"] == count
        assert whole["annotations"][len(part["annotations"])]["image_id"] > count


@BOTH_SETS
@pytest.mark.parametrize(("split", "count"), [("train", 150), ("val", 50)])
def test_annotations_agree_with_pycocotools(root, split, count):
    coco = load(root, split)
    assert len(coco.imgs) == count
    for image_id, entry in coco.imgs.items():
        with Image.open(root / split / entry["file_name"]) as image:
            assert image.size == (entry["width"], entry["height"]) == (160, 160)
            assert image.mode == "RGB"
        annotations = coco.imgToAnns[image_id]
        assert annotations
        for annotation in annotations:
            assert isinstance(annotation["segmentation"]["counts"], str)
            assert annotation["iscrowd"] == 0
            assert annotation["area"] >= 30
            assert annotation["area"] == rle.area(annotation["segmentation"])
            rows, columns = np.nonzero(coco.annToMask(annotation))
            x, y = columns.min(), rows.min()
            assert annotation["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
        assert sum(coco.annToMask(a) for a in annotations).max() == 1


def test_masks_outline_what_is_painted(folders):
    # The painter darkens the rim and the surroundings, so color changes most along mask edges.
    coco = load(folders / "shapes", "val")
    on_edge, elsewhere = [], []
    for image_id, entry in coco.imgs.items():
        with Image.open(folders / "shapes" / "val" / entry["file_name"]) as image:
            pixels = np.asarray(image, dtype=float)
        labels = sum(a["id"] * coco.annToMask(a).astype(int) for a in coco.imgToAnns[image_id])
        step = np.abs(np.diff(pixels, axis=1)).sum(2)
        edge = np.diff(labels, axis=1) != 0
        on_edge.append(step[edge])
        elsewhere.append(step[~edge])
    assert np.median(np.concatenate(on_edge)) > 5 * np.median(np.concatenate(elsewhere))


@BOTH_SETS
def test_all_classes_appear(root):
    names = CONTEXT_CLASSES if root.name == "shapes-context" else SHAPES_CLASSES
    for split in ("train", "val"):
        coco = load(root, split)
        assert tuple(coco.cats[k]["name"] for k in sorted(coco.cats)) == names
        counts = Counter(a["category_id"] for a in coco.anns.values())
        assert min(counts[k] for k in coco.cats) > 0.5 * len(coco.anns) / len(names)


@BOTH_SETS
def test_scales_and_numbers_vary(root):
    coco = load(root, "train")
    sides = [max(a["bbox"][2:]) / 160 for a in coco.anns.values()]
    low, high = np.percentile(sides, [5, 95])
    assert low < 0.25
    assert high > 2 * low
    assert max(sides) < 0.72
    numbers = {len(coco.imgToAnns[image_id]) for image_id in coco.imgs}
    assert numbers == (set(range(2, 6)) if root.name == "shapes" else set(range(2, 7)))


def test_class_of_a_ring_is_given_by_the_squares(folders):
    rings: Counter[str] = Counter()
    per_image: dict[bool, list[int]] = {True: [], False: []}
    for split in ("train", "val"):
        coco = load(folders / "shapes-context", split)
        for image_id in coco.imgs:
            names = Counter(coco.cats[a["category_id"]]["name"] for a in coco.imgToAnns[image_id])
            right, wrong = ("ring_a", "ring_b") if names["square"] else ("ring_b", "ring_a")
            assert names[right] > 0
            assert names[wrong] == 0
            rings[right] += names[right]
            per_image[names["square"] > 0].append(names[right])
    assert 0.35 < rings["ring_a"] / rings.total() < 0.65
    assert 0.35 < len(per_image[True]) / 200 < 0.65
    # The number of rings does not give the class away.
    assert np.mean(per_image[True]) == pytest.approx(np.mean(per_image[False]), rel=0.2)


def mean_colors(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    coco = load(root, split)
    colors, labels = [], []
    for image_id, entry in coco.imgs.items():
        with Image.open(root / split / entry["file_name"]) as image:
            pixels = np.asarray(image, dtype=float)
        for annotation in coco.imgToAnns[image_id]:
            colors.append(pixels[coco.annToMask(annotation) > 0].mean(0))
            labels.append(coco.cats[annotation["category_id"]]["name"])
    return np.array(colors), np.array(labels)


@pytest.mark.parametrize(
    ("root", "names"),
    [("shapes", SHAPES_CLASSES), ("shapes-context", ("ring_a", "ring_b"))],
    indirect=["root"],
)
def test_color_does_not_give_the_class(root, names):
    train_colors, train_labels = mean_colors(root, "train")
    colors, labels = mean_colors(root, "val")
    centers = np.stack([train_colors[train_labels == name].mean(0) for name in names])
    kept = np.isin(labels, names)
    distance = ((colors[kept][:, None] - centers) ** 2).sum(2)
    accuracy = (np.array(names)[distance.argmin(1)] == labels[kept]).mean()
    # Four standard errors of a guess above chance.
    chance = 1 / len(names)
    assert accuracy < chance + 4 * np.sqrt(chance * (1 - chance) / kept.sum())


@pytest.mark.parametrize("fault", [{"image_size": 63}, {"train": -1}, {"val": -1}, {"seed": -1}])
def test_faulty_arguments_are_user_errors(tmp_path, fault):
    name, value = next(iter(fault.items()))
    with pytest.raises(UserError, match=rf"{name}\D+{value}"):
        write_shapes(tmp_path / "set", **fault)
    assert not (tmp_path / "set").exists()
