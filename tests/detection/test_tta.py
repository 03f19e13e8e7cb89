"""The views of an image: sizes computed by hand, tiles by brute force."""

import numpy as np
import pytest
from PIL import Image

from botvision.data.transforms import CropResizeFlip
from botvision.detection.tta import TTA
from botvision.errors import UserError


def tiles(width, height, tile):
    """Return the boxes (n, 4) of the tiles only."""
    whole, *parts = TTA(tile=tile).views(width, height, 64)
    assert whole.box == (0, 0, width, height)
    return np.array([view.box for view in parts]).reshape(-1, 4)


def test_by_default_the_whole_image_is_seen_once():
    assert TTA().views(200, 100, 64) == [CropResizeFlip((0, 0, 200, 100), 32, 64)]
    assert TTA().views(3, 1000, 64) == [CropResizeFlip((0, 0, 3, 1000), 64, 1)]


def test_every_scale_is_seen_plain_and_mirrored():
    box = (0, 0, 200, 100)
    assert TTA(flip=True, scales=(1.0, 1.5)).views(200, 100, 64) == [
        CropResizeFlip(box, 32, 64),
        CropResizeFlip(box, 32, 64, flip=True),
        CropResizeFlip(box, 48, 96),
        CropResizeFlip(box, 48, 96, flip=True),
    ]


def test_tiles_are_seen_at_the_image_size_besides_the_image():
    views = TTA(tile=40).views(100, 60, 80)
    assert views[0] == CropResizeFlip((0, 0, 100, 60), 48, 80)
    want = [CropResizeFlip((x, y, x + 40, y + 40), 80, 80) for x in (0, 30, 60) for y in (0, 20)]
    assert sorted(v.box for v in views[1:]) == sorted(v.box for v in want)
    assert {(v.height, v.width) for v in views[1:]} == {(80, 80)}


def test_an_image_lower_than_a_tile_is_cut_along_its_length_alone():
    views = TTA(tile=40).views(70, 20, 80)[1:]
    assert views == [
        CropResizeFlip((0, 0, 40, 20), 40, 80),
        CropResizeFlip((30, 0, 70, 20), 40, 80),
    ]


def test_an_image_no_larger_than_a_tile_has_none():
    assert len(tiles(40, 40, 40)) == len(tiles(10, 39, 40)) == 0
    assert len(tiles(41, 40, 40)) == 2


@pytest.mark.parametrize("tile", [32, 47, 100])
def test_what_is_no_larger_than_a_quarter_is_whole_in_a_tile(tile):
    rng = np.random.default_rng(0)
    for _ in range(40):
        width, height = (int(n) for n in rng.integers(tile, 8 * tile, 2))
        boxes = tiles(width + 1, height, tile)
        assert boxes[:, 2:].max(0).tolist() == [width + 1, height]
        for side in (0, 1):
            assert (boxes[:, side + 2] - boxes[:, side] == tile).all()
        corner = rng.uniform(0, [width + 1 - tile // 4, height - tile // 4], (50, 2))
        objects = np.concatenate([corner, corner + tile // 4], axis=1)[:, None]
        inside = (boxes[:, :2] <= objects[..., :2]) & (objects[..., 2:] <= boxes[:, 2:])
        assert inside.all(axis=2).any(axis=1).all()


def test_no_more_tiles_than_it_takes():
    # n tiles of 40 that overlap by 10 cover 40 + 30 (n - 1).
    for length, count in ((41, 2), (70, 2), (71, 3), (100, 3), (101, 4)):
        assert len(tiles(length, 40, 40)) == count


def test_a_tile_is_the_pixels_of_the_image():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    for view in TTA(tile=40).views(100, 60, 40)[1:]:
        left, top, right, bottom = view.box
        seen = view.image(Image.fromarray(pixels)).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(seen, pixels[top:bottom, left:right])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": (1.0, 0.0)}, "^scales 0: give positive numbers"),
        ({"scales": (-1.0,)}, "^scales -1: "),
        ({"scales": (float("nan"),)}, "^scales nan: "),
        ({"scales": (float("inf"),)}, "^scales inf: "),
        ({"scales": ()}, "^scales: give at least one"),
        ({"tile": 31}, "^tile 31: must be at least 32"),
        ({"tile": -5}, "^tile -5: must be at least 32"),
    ],
)
def test_senseless_numbers_are_an_error(options, message):
    with pytest.raises(UserError, match=message):
        TTA(**options)
