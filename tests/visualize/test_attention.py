import numpy as np
import pytest
from PIL import Image

from botvision.errors import UserError
from botvision.visualize.attention import attention_figure

HEIGHT, WIDTH = 6, 8
IMAGE = Image.new("RGB", (WIDTH * 40, HEIGHT * 40), (90, 110, 100))


def panels(figure: Image.Image) -> list[np.ndarray]:
    """Cut the panels out of a figure of one row: wide runs of columns that are not white."""
    pixels = np.asarray(figure)
    inked = (pixels != 255).any(axis=2)
    rows = np.nonzero(inked.mean(axis=1) > 0.7)[0]
    body = pixels[rows[0] : rows[-1] + 1]
    full = np.concatenate([[False], (body != 255).any(axis=2).mean(axis=0) > 0.9, [False]])
    edges = np.nonzero(full[1:] != full[:-1])[0].reshape(-1, 2)
    return [body[:, left:right] for left, right in edges if right - left > 100]


def brightness(panel: np.ndarray) -> np.ndarray:
    """Return the mean brightness of each map cell, (HEIGHT, WIDTH)."""
    gray = Image.fromarray(panel).convert("L")
    return np.asarray(gray.resize((WIDTH, HEIGHT), Image.Resampling.BOX), dtype=float)


def brightest(panel: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(brightness(panel).argmax(), (HEIGHT, WIDTH)))


def point_weights(heads: int) -> np.ndarray:
    """Head h of the query at (row, column) looks at its mirror image, h columns further left."""
    weights = np.zeros((heads, HEIGHT, WIDTH, HEIGHT, WIDTH), dtype=np.float32)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            for head in range(heads):
                key = WIDTH - 1 - column - 3 * head
                weights[head, row, column, HEIGHT - 1 - row, key] = 1
    return weights


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 2), (5, 1), (4, 3)])
def test_the_cell_with_all_the_mass_lights_up(row, column):
    point = (column * 40 + 20, row * 40 + 20)
    query, mean, first, second = panels(attention_figure(IMAGE, point_weights(2), [point]))
    places = (HEIGHT - 1 - row, WIDTH - 1 - column), (HEIGHT - 1 - row, WIDTH - 4 - column)
    assert brightest(query) == (row, column)
    assert brightest(first) == places[0]
    assert brightest(second) == places[1]
    both = brightness(mean)
    top_two = np.sort(both.ravel())[-2:]
    assert sorted(both[place] for place in places) == pytest.approx(top_two)

    cells = brightness(first)
    assert cells[places[0]] > 2 * cells[places[1]]


def test_the_panels_of_a_row_share_one_scale():
    weights = point_weights(2)
    weights[1] = 1 / (HEIGHT * WIDTH)
    _, mean, peak, flat = panels(attention_figure(IMAGE, weights, [(20, 20)]))
    place = (HEIGHT - 1, WIDTH - 1)
    assert brightness(peak)[place] > brightness(mean)[place] > brightness(flat)[place] + 20


def test_a_row_a_query_and_a_column_a_head():
    one = attention_figure(IMAGE, point_weights(1), [(5, 5)], titles=["corner"])
    two_rows = attention_figure(IMAGE, point_weights(1), [(5, 5), (99.5, 70)])
    two_heads = attention_figure(IMAGE, point_weights(2), [(5, 5)])
    assert one.mode == "RGB"
    assert len(panels(one)) == 3
    assert len(panels(two_heads)) == 4
    assert two_rows.width == one.width
    assert two_rows.height - one.height == pytest.approx(panels(one)[0].shape[0], abs=20)


@pytest.mark.parametrize("point", [(-1, 5), (5, HEIGHT * 40), (WIDTH * 40, 5)])
def test_a_query_outside_the_image_is_the_users_fault(point):
    with pytest.raises(UserError, match="outside the image of 320 x 240 pixels"):
        attention_figure(IMAGE, point_weights(1), [point])


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="heads, H, W, H, W"):
        attention_figure(IMAGE, np.ones((1, 6, 8, 8, 6)), [(1, 1)])
    with pytest.raises(ValueError, match="1 queries and 2 titles"):
        attention_figure(IMAGE, point_weights(1), [(1, 1)], titles=["a", "b"])
    with pytest.raises(ValueError, match="0 queries"):
        attention_figure(IMAGE, point_weights(1), [])
