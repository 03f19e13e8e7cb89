"""Masks pasted as torchvision pastes them, and polygons beside pycocotools' rasterizer."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from botvision.data.pasting import encode_mask, mask_polygons, paste_mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_are_pasted_as_torchvision_pastes_them(dtype):
    """In float32, also what a model in half precision gave."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(5, 1, 28, 28, generator=generator).to(dtype).float()
    # Over the image's border on all sides: 90 x 110 pixels.
    corners = torch.tensor([[-3.0, -7], [20, 30], [70, 60], [101, 81], [110, 90]])
    boxes = torch.cat([corners, corners + 5 + 40 * torch.rand(5, 2, generator=generator)], 1)
    want = paste_masks_in_image(masks, boxes, (90, 110))[:, 0] > 0.5
    for mask, box, expected in zip(masks, boxes, want, strict=True):
        decoded = coco_mask.decode(encode_mask(mask[0].numpy(), box.numpy(), (90, 110)))
        np.testing.assert_array_equal(decoded.astype(bool), expected.numpy())


def test_values_are_torchvisions():
    generator = torch.Generator().manual_seed(1)
    for _ in range(100):
        mask = torch.rand(1, 1, 28, 28, generator=generator)
        corner = torch.rand(2, generator=generator) * torch.tensor([100, 80]) - 10
        box = torch.cat([corner, corner + 11 + torch.rand(2, generator=generator) * 120])
        want = paste_masks_in_image(mask, box[None], (90, 110))[0, 0].numpy()
        top, left, part = paste_mask(mask[0, 0].numpy(), box.numpy(), (90, 110))
        got = np.zeros((90, 110), np.float32)
        got[top : top + part.shape[0], left : left + part.shape[1]] = part
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def test_a_box_outside_of_the_image_has_no_pixels():
    for box in ([200, 10, 220, 30], [-50, 10, -20, 30], [10, 200, 30, 240]):
        _, _, part = paste_mask(np.ones((28, 28), np.float32), np.array(box), (90, 110))
        assert part.size == 0


def shape_mask(paint):
    """(28, 28) probabilities, smooth at the edges, of what is painted on a grid of 280."""
    fine = np.zeros((280, 280))
    rows, columns = np.mgrid[:280, :280] + 0.5
    fine[paint(rows, columns)] = 1
    return fine.reshape(28, 10, 28, 10).mean((1, 3)).astype(np.float32)


def is_disk(rows, columns, radius=120):
    return (rows - 140) ** 2 + (columns - 140) ** 2 < radius**2


SHAPES = {
    "disk": is_disk,
    "corner": lambda rows, columns: (rows > 150) | (columns < 100),
    "everywhere": lambda rows, columns: rows > 0,
    "two": lambda rows, columns: abs(columns - 140) > 60,
}


def rasterized(polygons, size):
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size)))


def spread(mask):
    """The mask and its neighbors, up to the corners."""
    padded = np.pad(mask, 1)
    shape = mask.shape
    shifts = [padded[i : i + shape[0], j : j + shape[1]] for i in range(3) for j in range(3)]
    return np.max(shifts, axis=0)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    "box", [(10.3, 12.8, 70.1, 60.2), (-0.0, 30.0, 25.5, 90.0), (60.0, 0.0, 110.0, 90.0)]
)
def test_polygons_give_the_mask_back_but_for_pixels_at_its_edge(name, box):
    mask, box, size = shape_mask(SHAPES[name]), np.array(box), (90, 110)
    want = coco_mask.decode(encode_mask(mask, box, size))
    polygons = mask_polygons(mask, box, size)
    assert len(polygons) == (2 if name == "two" else 1)
    points = np.concatenate(polygons).reshape(-1, 2)
    assert (points >= 0).all() and (points <= [110, 90]).all()
    got = rasterized(polygons, size)
    assert (got <= spread(want)).all()
    assert (1 - got <= spread(1 - want)).all()
    assert (got & want).sum() / (got | want).sum() > 0.93


def test_polygons_run_between_the_pixels():
    """A disk's contour is a circle of its mask's area, closer than steps of a pixel could be."""
    mask, box, size = shape_mask(is_disk), np.array([20.0, 10, 60, 50]), (90, 110)
    (polygon,) = mask_polygons(mask, box, size)
    points = np.reshape(polygon, (-1, 2))
    radii = np.linalg.norm(points - points.mean(axis=0), axis=1)
    assert np.ptp(radii) < 0.5
    area = coco_mask.decode(encode_mask(mask, box, size)).sum()
    assert np.pi * radii.mean() ** 2 == pytest.approx(area, rel=0.02)
    np.testing.assert_allclose(points.mean(axis=0), [40, 30], atol=0.1)


def test_polygons_have_no_holes_and_nothing_is_no_polygon():
    def ring(rows, columns):
        return is_disk(rows, columns) & ~is_disk(rows, columns, 60)

    box, size = np.array([10.0, 10, 70, 70]), (90, 110)
    polygons = mask_polygons(shape_mask(ring), box, size)
    assert len(polygons) == 1
    filled = coco_mask.decode(encode_mask(shape_mask(is_disk), box, size))
    assert abs(int(rasterized(polygons, size).sum()) - int(filled.sum())) < 0.05 * filled.sum()
    assert mask_polygons(np.full((28, 28), 0.4), box, size) == []
