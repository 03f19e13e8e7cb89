"""The tables on terminals of usual widths."""

import io

import pytest
from rich.console import Console

from botvision.evaluation.report import print_limit, print_metrics

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl"]


def printed(width, classes, kinds=("bbox", "segm")):
    """The output, and which number each cell was."""
    numbers = iter(range(100, 1000))

    def values():
        return {name: next(numbers) / 1000 for name in NAMES}

    metrics = {kind: {**values(), "AR100": 0.999} for kind in kinds}
    metrics["per_class"] = {name: {kind: values() for kind in kinds} for name in classes}
    console = Console(file=io.StringIO(), width=width)
    print_metrics(console, metrics)
    return console.file.getvalue(), metrics


def row(text, *cells):
    """Whether a line of a table has just these cells."""
    lines = ([c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines())
    return list(cells) in list(lines)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    "name",
    ["cat", "traffic light", "a name longer than the column has", "Archaeopteryx_lithographica"],
)
def test_every_ap_of_every_class_is_on_its_line(width, name):
    text, metrics = printed(width, [name, "dog"])
    assert max(map(len, text.splitlines())) <= width
    for kind, title in (("bbox", "box"), ("segm", "mask")):
        assert row(text, title, *(f"{metrics[kind][n]:.3f}" for n in NAMES))
        for label in (name, "dog"):
            values = [f"{metrics['per_class'][label][kind][n]:.3f}" for n in NAMES]
            assert any(
                title in line and all(v in line for v in values) for line in text.split("\n")
            )
    dog = metrics["per_class"]["dog"]["bbox"]
    assert row(text, "dog", "box", *(f"{dog[n]:.3f}" for n in NAMES))
    assert "…" not in text


def test_boxes_alone_and_nothing_to_find():
    text, metrics = printed(80, ["cat", "dog"], kinds=("bbox",))
    assert "mask" not in text
    metrics["per_class"]["dog"]["bbox"]["APl"] = -1.0
    console = Console(file=io.StringIO(), width=80)
    print_metrics(console, metrics)
    numbers = [f"{metrics['per_class']['dog']['bbox'][n]:.3f}" for n in NAMES[:-1]]
    assert row(console.file.getvalue(), "dog", "box", *numbers, "-")


@pytest.mark.parametrize(("classes", "shown"), [(1, False), (2, True), (20, True), (21, False)])
def test_few_classes_are_listed(classes, shown):
    text, _ = printed(80, [f"class{k}" for k in range(classes)])
    assert ("class0" in text) == shown


def test_a_limit_is_said():
    console = Console(file=io.StringIO(), width=40)
    print_limit(console, 50, 50)
    assert console.file.getvalue() == ""
    print_limit(console, 50, 5000)
    text = console.file.getvalue()
    assert "50 of the 5,000 images" in text and "limit" in text
