import numpy as np
import pytest
from PIL import Image

from botvision.visualize.overlays import (
    CROWD,
    FILL_OPACITY,
    PALETTE,
    contact_sheet,
    draw_instances,
)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def changed(before: Image.Image, after: Image.Image) -> np.ndarray:
    return (np.asarray(before) != np.asarray(after)).any(axis=2)


def disc(width: int, height: int, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 < radius**2


@pytest.mark.parametrize(
    ("size", "factor"),
    [
        ((128, 128), 4),
        ((640, 427), 2),
        ((640, 480), 1),
        ((2000, 1500), 1),
        ((2000, 10), 2),
    ],
)
def test_no_instances_give_the_plain_enlarged_picture(size, factor):
    image = noise(*size)
    drawn = draw_instances(image, [], [], [], [])
    plain = image.resize((size[0] * factor, size[1] * factor), Image.Resampling.BICUBIC)
    assert drawn.size == plain.size
    assert not changed(plain, drawn).any()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_every_common_mode_becomes_rgb(mode):
    image = noise(500, 500).convert(mode)
    drawn = draw_instances(image, np.zeros((0, 4)), [])
    assert drawn.mode == "RGB"
    assert not changed(image.convert("RGB"), drawn).any()


@pytest.mark.parametrize("side", [125, 500])
def test_only_mask_box_and_tag_change(side):
    factor = 500 // side
    image = noise(side, side)
    box = [0.4 * side, 0.4 * side, 0.8 * side, 0.8 * side]
    mask = disc(side, side, 0.6 * side, 0.6 * side, 0.16 * side)
    drawn = draw_instances(image, [box], ["cell"], [0.5], [mask])

    plain = image.resize((500, 500), Image.Resampling.BICUBIC)
    different = changed(plain, drawn)
    # Box 200..400; the tag stands on its upper edge and is at most 40 px high and 150 px wide.
    allowed = np.zeros((500, 500), dtype=bool)
    allowed[160:400, 200:400] = True
    assert not (different & ~allowed).any()
    near_mask = disc(500, 500, 300, 300, 80 + factor)
    inside_box = np.zeros((500, 500), dtype=bool)
    inside_box[202:398, 202:398] = True
    assert not (different & inside_box & ~near_mask).any()
    assert different[200, 200:400].all()
    assert different[160:200, 200:240].any()

    deep = disc(500, 500, 300, 300, 80 - factor - 3)
    solid = Image.new("RGB", (500, 500), PALETTE[0])
    blend = np.asarray(Image.blend(plain, solid, FILL_OPACITY), dtype=int)
    assert np.abs(np.asarray(drawn, dtype=int) - blend)[deep].max() <= 1

    # The outline surrounds the fill: every ray from the center meets the pure color.
    pure = (np.asarray(drawn) == PALETTE[0]).all(axis=2)
    for angle in np.linspace(0, 2 * np.pi, 60):
        reach = np.arange(70, 90, 0.5)
        rows = (300 + reach * np.sin(angle)).astype(int)
        columns = (300 + reach * np.cos(angle)).astype(int)
        assert pure[rows, columns].any()


def test_masks_may_come_from_a_generator():
    image = noise(200, 100)
    boxes = [[10, 10, 60, 60], [90, 20, 150, 80], [0, 0, 5, 5]]
    masks = [disc(200, 100, 35, 35, 20), disc(200, 100, 120, 50, 25), np.zeros((100, 200), bool)]
    labels = ["a", "b", "c"]
    listed = draw_instances(image, np.array(boxes), labels, None, masks)
    generated = draw_instances(image, boxes, labels, None, (mask for mask in masks))
    assert not changed(listed, generated).any()


def test_touching_instances_of_one_class_differ_in_color():
    image = Image.new("RGB", (500, 500), (128, 128, 128))
    left, right = np.zeros((2, 500, 500), dtype=bool)
    left[100:400, 100:250] = True
    right[100:400, 250:400] = True
    boxes = [[100, 100, 250, 400], [250, 100, 400, 400]]
    drawn = np.asarray(draw_instances(image, boxes, ["cell"] * 2, None, [left, right]), dtype=int)
    assert np.abs(drawn[250, 175] - drawn[250, 325]).max() > 40


def test_tag_is_whole_in_every_corner():
    image = Image.new("RGB", (600, 500), (1, 2, 3))

    def area(x: int, y: int) -> int:
        return int(changed(image, draw_instances(image, [[x, y, x + 4, y + 4]], ["cell"])).sum())

    middle = area(300, 250)
    assert middle > 300
    assert [area(0, 0), area(596, 0), area(0, 496), area(596, 496)] == [middle] * 4


def test_tags_do_not_hide_each_other():
    image = Image.new("RGB", (500, 500))
    box = [200, 200, 300, 300]
    one = changed(image, draw_instances(image, [box], ["cell"])).sum()
    edge = 4 * 100 - 4
    both = changed(image, draw_instances(image, [box, box], ["cell", "cell"])).sum()
    assert both - edge == 2 * (one - edge)


def test_a_name_wider_than_the_image_is_cut():
    image = noise(500, 500)
    drawn = [draw_instances(image, [[9, 99, 200, 200]], ["w" * n]) for n in (200, 400)]
    assert not changed(*drawn).any()


def test_a_crowd_has_no_tags():
    image = noise(500, 500)
    boxes = np.array([[10 * i, 200, 10 * i + 8, 300] for i in range(CROWD + 1)])
    labels = ["nucleus"] * len(boxes)
    expected = np.zeros((500, 500), dtype=bool)
    for left, top, right, bottom in boxes:
        expected[top:bottom, left:right] = True
        expected[top + 1 : bottom - 1, left + 1 : right - 1] = False
    assert not (changed(image, draw_instances(image, boxes, labels)) & ~expected).any()
    tagged = draw_instances(image, boxes[:CROWD], labels[:CROWD])
    assert (changed(image, tagged) & ~expected).any()


def test_boxes_beyond_the_image_are_cut_off():
    image = noise(500, 500)
    drawn = draw_instances(image, [[-50, -50, 900, 900], [700, 700, 800, 800]], ["a", "b"])
    assert changed(image, drawn)[[0, -1]].all()


@pytest.mark.parametrize(
    ("labels", "scores", "masks"),
    [
        (["a", "b"], None, None),
        (["a"], [0.1, 0.2], None),
        (["a"], None, []),
        (["a"], None, [np.ones((50, 60), bool)] * 2),
        (["a"], None, [np.ones((60, 50), bool)]),
    ],
)
def test_counts_and_shapes_that_disagree_are_refused(labels, scores, masks):
    with pytest.raises(ValueError, match=r"labels|shorter|longer|masks|shape"):
        draw_instances(noise(60, 50), [[0, 0, 9, 9]], labels, scores, masks)


def test_contact_sheet_has_equal_cells_and_keeps_aspects():
    wide = Image.new("RGB", (200, 100), (255, 0, 0))
    tall = Image.new("RGB", (100, 200), (0, 0, 255))
    sheet = np.asarray(contact_sheet([[wide, tall], [tall, wide]], ["image", "prediction"]))

    middles = {}
    for name, color in (("wide", (255, 0, 0)), ("tall", (0, 0, 255))):
        rows, columns = np.nonzero((sheet == color).all(axis=2))
        assert len(rows) == 2 * 640 * 320
        half = rows > rows.mean() if name == "tall" else columns > columns.mean()
        middles[name] = [(rows[h].mean(), columns[h].mean()) for h in (half, ~half)]
    (tall_below, tall_above) = middles["tall"]
    (wide_right, wide_left) = middles["wide"]
    assert wide_left == pytest.approx((tall_above[0], tall_below[1]), abs=0.6)
    assert wide_right == pytest.approx((tall_below[0], tall_above[1]), abs=0.6)

    header = (sheet < 128).all(axis=2)[:50]
    center = sheet.shape[1] // 2
    for ink, middle in (
        (header[:, :center], wide_left[1]),
        (header[:, center:], wide_right[1] - center),
    ):
        columns = np.nonzero(ink.any(axis=0))[0]
        assert (columns[0] + columns[-1]) / 2 == pytest.approx(middle, abs=4)


@pytest.mark.parametrize("rows", [[], [[Image.new("RGB", (4, 4))]]])
def test_contact_sheet_refuses_a_ragged_grid(rows):
    with pytest.raises(ValueError, match="titles"):
        contact_sheet(rows, ["image", "prediction"])
