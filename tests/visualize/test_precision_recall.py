import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from botvision.evaluation.precision_recall import PrecisionRecall
from botvision.visualize.curves import PARTS, TOTAL
from botvision.visualize.precision_recall import _draw, plot_precision_recall

BLUE = "#0072b2"


def curve(classes: int, seed: int = 0) -> PrecisionRecall:
    """Falling with recall and with IoU, 0 from some recall on."""
    rng = np.random.default_rng(seed)
    reach = rng.uniform(0.3, 0.9, classes) * np.linspace(1, 0.3, 10)[:, None]
    recalls = np.linspace(0, 1, 101)[None, :, None]
    precision = np.where(recalls <= reach[:, None], 1 - 0.4 * recalls, 0)
    return PrecisionRecall(tuple(f"class {k}" for k in range(classes)), precision, precision)


def drawn(of: PrecisionRecall, title: str = "boxes"):
    axes = Figure().add_subplot()
    _draw(axes, of, title, BLUE)
    return axes, [(to_hex(line.get_color()), line.get_linestyle()) for line in axes.lines]


def test_each_of_few_classes_and_the_means():
    of = curve(3)
    axes, styles = drawn(of)
    assert axes.get_title(loc="left") == "boxes: mean over 3 classes"
    means = [(TOTAL, "-"), (TOTAL, "--"), (TOTAL, ":")]
    assert styles == [*((color, "-") for color in PARTS[:3]), *means]
    expected = [*of.precision[0].T, *(of.precision[t].mean(1) for t in (0, 5))]
    expected.append(of.precision.mean((0, 2)))
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    names = [*of.classes, "mean, IoU 0.50", "mean, IoU 0.75", "mean, IoU 0.50:0.95"]
    for line, values, name, label in zip(axes.lines, expected, names, labels, strict=True):
        shown = line.get_ydata()
        np.testing.assert_allclose(shown, values[: len(shown)])
        np.testing.assert_allclose(line.get_xdata(), np.arange(len(shown)) / 100)
        assert shown[-1] == 0 < shown[-2] and not values[len(shown) :].any()
        assert label == f"{name}  {values.mean():.3f}"


@pytest.mark.parametrize(("classes", "what"), [(1, "class 0"), (7, "mean over 7 classes")])
def test_one_class_or_many_give_the_means_alone(classes, what):
    axes, styles = drawn(curve(classes))
    assert axes.get_title(loc="left") == f"boxes: {what}"
    assert styles == [(BLUE, "-"), (BLUE, "--"), (BLUE, ":")]


def test_full_recall_and_nothing_found_and_no_objects():
    full = PrecisionRecall(("a",), np.ones((10, 101, 1)), np.ones((10, 101, 1)))
    assert [len(line.get_ydata()) for line in drawn(full)[0].lines] == [101] * 3
    none = PrecisionRecall(("a",), np.zeros((10, 101, 1)), np.zeros((10, 101, 1)))
    labels = [text.get_text() for text in drawn(none)[0].get_legend().get_texts()]
    assert all(label.endswith("  0.000") for label in labels)
    axes, styles = drawn(curve(0))
    assert axes.get_title(loc="left") == "boxes: no objects"
    assert styles == [] and axes.get_legend() is None


def test_no_label_overlaps_another_or_leaves_the_picture(tmp_path):
    long = PrecisionRecall(
        tuple(f"{k} {'very ' * 9}long" for k in range(6)), *[curve(6).scores] * 2
    )
    path = plot_precision_recall({"bbox": long, "segm": long}, tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / "precision_recall.png"
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    # At a README's width, about 900, type of 8.5 points is still 12 pixels high.
    assert 1000 < pixels.shape[1] < 1500
    edge = np.concatenate([pixels[:2].ravel(), pixels[-2:].ravel(), pixels[:, :2].ravel()])
    assert (edge == 255).all() and (pixels[:, -2:] == 255).all()
    # Between the two legends nothing is written.
    middle = pixels.shape[1] // 2
    assert (pixels[int(0.8 * len(pixels)) :, middle - 5 : middle + 5] == 255).all()


def test_a_panel_for_each_kind(tmp_path):
    both = plot_precision_recall({"bbox": curve(1), "segm": curve(1)}, tmp_path / "both")
    boxes = plot_precision_recall({"bbox": curve(1)}, tmp_path / "boxes")
    seen = []
    for path in (both, boxes):
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        seen.append((pixels == [0xD5, 0x5E, 0x00]).all(-1).any())
    assert seen == [True, False]
