"""RoIAlign as a sparse product, compared with torchvision's operator in float64."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import roi_align as torchvision_roi_align

from botvision.detection.roi_align import PyramidRoIAlign, roi_align


def regions(count: int, side: float, seed: int = 0) -> torch.Tensor:
    """Boxes of all sizes, some partly or wholly outside the map, and one of no size."""
    generator = torch.Generator().manual_seed(seed)
    corners = (torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3) * side
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    boxes[0, 2:] = boxes[0, :2]
    return boxes


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("shape", [(12, 12), (5, 9), (1, 1), (1, 30)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_equal_torchvisions(size, shape, memory_format):
    torch.manual_seed(0)
    features = torch.randn(3, 6, *shape, dtype=torch.float64).to(memory_format=memory_format)
    features.requires_grad_()
    boxes = regions(40, 4.0 * max(shape))
    images = torch.arange(40) % 3
    got = roi_align(features, boxes, images, size, 1 / 4)
    rois = torch.cat([images[:, None].double(), boxes], dim=1)
    want = torchvision_roi_align(features, rois, size, 1 / 4, sampling_ratio=2)
    torch.testing.assert_close(got, want)
    grad = torch.randn_like(want)
    (got_grad,) = torch.autograd.grad(got, features, grad)
    (want_grad,) = torch.autograd.grad(want, features, grad)
    torch.testing.assert_close(got_grad, want_grad)


def test_no_regions_and_regions_that_are_not_numbers():
    features = torch.randn(1, 4, 8, 8)
    assert roi_align(features, torch.empty(0, 4), torch.empty(0, dtype=torch.long), 7, 1).shape == (
        (0, 4, 7, 7)
    )
    lost = torch.tensor([[float("nan")] * 4, [float("inf")] * 4])
    assert roi_align(features, lost, torch.zeros(2, dtype=torch.long), 7, 1).eq(0).all()


def test_bf16_features_are_summed_in_float32():
    torch.manual_seed(0)
    features = torch.randn(1, 8, 16, 16).bfloat16()
    boxes = regions(20, 64.0).float()
    images = torch.zeros(20, dtype=torch.long)
    got = roi_align(features, boxes, images, 7, 1 / 4)
    assert got.dtype == torch.bfloat16
    rois = torch.cat([images[:, None], boxes], dim=1).double()
    exact = torchvision_roi_align(features.double(), rois, 7, 1 / 4, sampling_ratio=2)
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-5)


def test_each_region_is_pooled_from_the_level_that_torchvision_chooses():
    torch.manual_seed(0)
    levels = {str(i): torch.randn(2, 5, 128 >> i, 128 >> i) for i in range(4)}
    boxes = [regions(30, 512.0, seed).float() for seed in (1, 2)]
    theirs = MultiScaleRoIAlign(list(levels), 7, 2)
    sizes = [(512, 512)] * 2
    want = theirs(levels, boxes, sizes)
    got = PyramidRoIAlign([4, 8, 16, 32], 7)(levels, boxes, sizes)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert PyramidRoIAlign([4, 8, 16, 32], 7)(levels, [b[:0] for b in boxes], sizes).shape == (
        (0, 5, 7, 7)
    )
