import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as oracle

from botvision.data.jitter import LargeScaleJitter
from botvision.data.transforms import CropResizeFlip
from botvision.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HEIGHT, WIDTH = 120, 200


def blob(rng, center, radius):
    angles = np.sort(rng.uniform(0, 2 * np.pi, 14))
    radii = radius * rng.uniform(0.6, 1.2, 14)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None] + center
    return np.round(points, 2).ravel().tolist()


def polygons(seed=0):
    rng = np.random.default_rng(seed)
    whole = [[blob(rng, rng.uniform(20, [180, 100]), rng.uniform(8, 35))] for _ in range(12)]
    two_parts = [[blob(rng, (40, 60), 15), blob(rng, (110, 70), 25)]]
    over_the_edge = [[blob(rng, (195, 5), 20)], [blob(rng, (0, 119), 25)]]
    return whole + two_parts + over_the_edge


def decode(parts):
    return oracle.decode(oracle.merge(oracle.frPyObjects(parts, HEIGHT, WIDTH)))


def rle_of(mask):
    return oracle.encode(np.asfortranarray(mask))


def views(count, size=(96, 128), scale=(0.1, 2.0)):
    jitter = LargeScaleJitter(size, scale)
    return [jitter.sample(np.random.default_rng(s), HEIGHT, WIDTH) for s in range(count)]


def by_pillow(array, view):
    """The view of a whole image, resized by Pillow, which sees beyond the crop at its borders."""
    size = (view.width, view.height)
    seen = np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BILINEAR, box=view.box))
    return seen[:, ::-1] if view.flip else seen


def seen_of(view, segmentations):
    """The masks as arrays (m, height, width), and which of the segmentations they are."""
    masks, visible = view.masks(segmentations)
    return masks.whole().numpy(), visible


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def picture():
    image = Image.new("RGB", (WIDTH, HEIGHT), (30, 60, 90))
    draw = ImageDraw.Draw(image)
    rng = np.random.default_rng(3)
    for parts in polygons():
        draw.polygon(parts[0], fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def test_the_image_is_what_pillow_makes_of_the_crop():
    image = picture()
    for view in views(40):
        seen = view.image(image)
        assert seen.shape == (3, view.height, view.width)
        assert seen.permute(1, 2, 0).is_contiguous()
        seen = seen.permute(1, 2, 0).numpy().astype(int)
        cropped = np.asarray(image.crop(view.box))
        whole = CropResizeFlip((0, 0, *cropped.shape[1::-1]), view.height, view.width, view.flip)
        assert np.abs(seen - by_pillow(cropped, whole)).max() <= 1
        # Away from the crop's borders also of the whole image.
        y, x = (
            -(-side // (2 * span)) + 1
            for side, span in zip(seen.shape[:2], cropped.shape[:2], strict=True)
        )
        inner = np.abs(seen - by_pillow(np.asarray(image), view))[y:-y, x:-x]
        assert inner.size == 0 or inner.max() <= 1


def test_boxes_are_scaled_shifted_clipped_and_mirrored():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, [WIDTH, HEIGHT], (50, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    for view in views(40):
        left, top, right, bottom = view.box
        sx, sy = view.width / (right - left), view.height / (bottom - top)
        x0, x1 = (np.clip(x * sx - left * sx, 0, view.width) for x in (boxes[:, 0], boxes[:, 2]))
        y0, y1 = (np.clip(y * sy - top * sy, 0, view.height) for y in (boxes[:, 1], boxes[:, 3]))
        if view.flip:
            x0, x1 = view.width - x1, view.width - x0
        expected = np.stack([x0, y0, x1, y1], axis=1)
        np.testing.assert_allclose(view.boxes(boxes), expected, rtol=0, atol=1e-9)
    assert view.boxes(np.zeros((0, 4))).shape == (0, 4)


def test_masks_at_identity_are_the_oracles():
    parts = polygons()
    expected = np.stack([decode(p) for p in parts])
    identity = CropResizeFlip((0, 0, WIDTH, HEIGHT), HEIGHT, WIDTH)
    for segmentations in (parts, [rle_of(m) for m in expected]):
        masks, visible = seen_of(identity, segmentations)
        assert visible.all()
        assert masks.dtype == np.uint8
        np.testing.assert_array_equal(masks, expected)
        mirrored, _ = seen_of(
            CropResizeFlip((0, 0, WIDTH, HEIGHT), HEIGHT, WIDTH, flip=True), segmentations
        )
        np.testing.assert_array_equal(mirrored, expected[:, :, ::-1])


def test_rle_masks_are_resized_then_cropped():
    masks = [decode(p) for p in polygons()]
    compared = 0
    for view in views(40):
        seen, visible = seen_of(view, [rle_of(m) for m in masks])
        expected = [by_pillow(m * np.uint8(255), view) >= 128 for m in masks]
        for mask in [m for m, v in zip(expected, visible, strict=True) if not v]:
            assert mask.sum() <= 1
        kept = [m for m, v in zip(expected, visible, strict=True) if v]
        for mask, other in zip(seen, kept, strict=True):
            assert (mask != other).sum() <= 0.02 * mask.sum() + 2
            compared += 1
    assert compared > 200


@pytest.mark.parametrize("scale", [0.25, 0.5, 2])
def test_small_rle_masks_are_exactly_the_resized_ones(scale):
    rng = np.random.default_rng(0)
    masks = np.zeros((200, HEIGHT, WIDTH), np.uint8)
    for mask in masks:
        y, x = rng.integers(0, [HEIGHT, WIDTH])
        mask[y : y + rng.integers(1, 7), x : x + rng.integers(1, 7)] = 1
    view = CropResizeFlip((0, 0, WIDTH, HEIGHT), int(HEIGHT * scale), int(WIDTH * scale))
    expected = np.stack([by_pillow(m * np.uint8(255), view) >= 128 for m in masks])
    seen, visible = seen_of(view, [rle_of(m) for m in masks])
    np.testing.assert_array_equal(visible, expected.any(axis=(1, 2)))
    np.testing.assert_array_equal(seen, expected[visible])


def test_polygon_masks_are_near_the_resized_ones():
    parts = polygons()
    overlaps = []
    for view in views(40, scale=(0.4, 2.0)):
        seen, visible = seen_of(view, parts)
        for mask, p in zip(
            seen, [p for p, v in zip(parts, visible, strict=True) if v], strict=True
        ):
            expected = by_pillow(decode(p) * np.uint8(255), view) >= 128
            if expected.sum() > 150:
                overlaps.append(iou(mask.astype(bool), expected))
    assert len(overlaps) > 100
    assert min(overlaps) > 0.9
    assert np.mean(overlaps) > 0.96


def test_a_polygon_seen_larger_has_smooth_edges():
    triangle = [[10.0, 10.0, 20.0, 10.0, 10.0, 20.0]]
    view = CropResizeFlip((8, 8, 24, 24), 256, 256)
    masks, _ = seen_of(view, [triangle])
    y, x = np.mgrid[:256, :256] + 0.5
    expected = (x > 32) & (y > 32) & (x + y < 64 + 160)
    assert iou(masks[0].astype(bool), expected) > 0.99


def test_a_mask_out_of_the_view_is_left_out():
    far = decode([[150.0, 80, 180, 80, 180, 110]])
    near = decode([[10.0, 10, 40, 10, 40, 40]])
    view = CropResizeFlip((0, 0, 60, 60), 30, 30)
    masks, visible = seen_of(view, [rle_of(far), rle_of(near), [[150.0, 80, 180, 80, 180, 110]]])
    assert visible.tolist() == [False, True, False]
    assert masks.shape == (1, 30, 30)
    # In the view, but too thin to reach half of any pixel of it.
    thin = np.zeros((HEIGHT, WIDTH), np.uint8)
    thin[:, 21] = 1
    masks, visible = seen_of(CropResizeFlip((0, 0, WIDTH, HEIGHT), 12, 20), [rle_of(thin)])
    assert visible.tolist() == [False]
    assert masks.shape == (0, 12, 20)
    masks, visible = seen_of(view, [])
    assert (masks.shape, visible.shape) == ((0, 30, 30), (0,))


def test_the_views_of_a_range_of_scales():
    jitter = LargeScaleJitter(100, (0.1, 2.0))
    rng = np.random.default_rng(0)
    drawn = [jitter.sample(rng, HEIGHT, WIDTH) for _ in range(4000)]
    assert all(1 <= v.height <= 100 and 1 <= v.width <= 100 for v in drawn)
    left, top, right, bottom = np.array([v.box for v in drawn]).T
    assert (left >= 0).all() and (top >= 0).all()
    assert (right <= WIDTH).all() and (bottom <= HEIGHT).all()
    # The longer side, 200, is fitted into s x 100.
    scales = np.array([v.width for v in drawn]) / (right - left)
    s = scales * WIDTH / 100
    deciles = np.quantile(s, np.linspace(0, 1, 11))
    np.testing.assert_allclose(deciles, np.linspace(0.1, 2.0, 11), atol=0.06)
    # The aspect ratio is kept but for the rounding to whole pixels.
    heights = np.array([v.height for v in drawn]) / (bottom - top)
    rounded = 0.5 / (scales * HEIGHT) + 0.5 / (scales * WIDTH)
    rounded += np.where(right - left < WIDTH, 0.5 / (right - left), 0)
    rounded += np.where(bottom - top < HEIGHT, 0.5 / (bottom - top), 0)
    assert (np.abs(heights / scales - 1) <= 1.02 * rounded).all()
    assert abs(np.mean([v.flip for v in drawn]) - 0.5) < 0.03
    # The crop is uniform over what is too much.
    large = s > 1.5
    place = left[large] / (WIDTH - (right - left)[large])
    np.testing.assert_allclose(
        np.quantile(place, [0, 0.25, 0.5, 0.75, 1]), [0, 0.25, 0.5, 0.75, 1], atol=0.05
    )
    assert (left[s < 0.99] == 0).all() and (right[s < 0.99] == WIDTH).all()


def test_an_image_that_fits_is_seen_whole():
    view = LargeScaleJitter((100, 400), (1.0, 1.0), flip=False).sample(
        np.random.default_rng(0), HEIGHT, WIDTH
    )
    assert view == CropResizeFlip((0, 0, WIDTH, HEIGHT), 100, 167, False)


def test_a_square_that_is_twice_too_large_is_cropped_on_the_pixel_grid():
    jitter = LargeScaleJitter(50, (2.0, 2.0), flip=False)
    offsets = set()
    for seed in range(300):
        view = jitter.sample(np.random.default_rng(seed), 100, 100)
        assert (view.height, view.width) == (50, 50)
        left, top, right, bottom = view.box
        assert (right - left, bottom - top) == (50, 50)
        offsets.add(left)
    assert offsets <= set(range(51))
    assert {0, 50} < offsets


def test_a_sliver_keeps_a_pixel():
    view = LargeScaleJitter(64, (0.1, 0.1)).sample(np.random.default_rng(0), 3, 2000)
    assert (view.height, view.width) == (1, 6)


@pytest.mark.parametrize(
    ("size", "scale"), [(64, (0.0, 1.0)), (64, (2.0, 0.5)), (0, (0.5, 1.0)), ((64, -1), (1, 2))]
)
def test_senseless_numbers_are_an_error(size, scale):
    with pytest.raises(UserError, match="scale jitter"):
        LargeScaleJitter(size, scale)
