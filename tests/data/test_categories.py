import pytest

from botvision.data.categories import Categories
from botvision.data.detection import DetectionDataset, merge_categories
from botvision.errors import UserError
from coco_files import IDENTITY, annotation, content, load


def test_labels_follow_the_order_of_the_ids_whatever_they_are():
    categories = Categories.from_pairs([(90, "z"), (0, "a"), (7, "m")], "file")
    assert (categories.ids, categories.names) == ((0, 7, 90), ("a", "m", "z"))
    assert categories.label_of == {0: 1, 7: 2, 90: 3}
    assert [categories.name(label) for label in (1, 2, 3)] == ["a", "m", "z"]
    assert str(categories) == "3 classes (label = id name): 1 = 0 a, 2 = 7 m, 3 = 90 z"
    assert len(categories) == 3
    for label in (0, 4):
        with pytest.raises(IndexError):
            categories.name(label)


def test_a_long_mapping_is_abridged():
    many = Categories.from_pairs(((i, f"c{i}") for i in range(80)), "file")
    assert str(many).endswith("8 = 7 c7, ..., 80 = 79 c79")


def test_categories_of_splits_are_united(tmp_path):
    one = load(tmp_path / "a", content([annotation(1, category_id=5)], categories=[(5, "e")]))
    two = load(tmp_path / "b", content([annotation(1, category_id=0)], categories=[(0, "o")]))
    united = merge_categories(one, two)
    assert united == Categories((0, 5), ("o", "e"))
    labels = [
        DetectionDataset(data, united, jitter=IDENTITY)[0][1]["labels"].tolist()
        for data in (one, two)
    ]
    assert labels == [[2], [1]]


def test_categories_that_are_numbered_differently_are_matched_by_name(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    one = load(tmp_path / "a", content([annotation(1)], categories=[(1, "cat"), (2, composed)]))
    two = load(
        tmp_path / "b",
        content(
            [annotation(i, category_id=i) for i in range(3)],
            categories=[(0, decomposed), (1, "owl"), (2, "cat")],
        ),
    )
    united = merge_categories(one, two)
    assert united == Categories((1, 2, 3), ("cat", composed, "owl"))
    labels = DetectionDataset(two, united, jitter=IDENTITY)[0][1]["labels"].tolist()
    assert labels == [2, 3, 1]


def test_a_category_that_the_model_lacks_is_an_error(tmp_path):
    data = load(tmp_path, content([annotation(1, category_id=2)]))
    with pytest.raises(UserError, match=r"the class 'dog' is not among the model's 1 class"):
        DetectionDataset(data, Categories((1,), ("cat",)), jitter=IDENTITY)
