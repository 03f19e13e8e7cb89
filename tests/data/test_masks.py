import numpy as np
import torch
from torch.utils.data import DataLoader

from botvision.data.masks import Masks


def test_each_crop_lies_where_it_was_cut_out():
    rng = np.random.default_rng(0)
    whole = torch.zeros(3, 40, 50, dtype=torch.uint8)
    crops = ((0, 0, 40, 50), (3, 20, 7, 5), (39, 49, 1, 1))
    pixels = []
    for mask, (top, left, height, width) in zip(whole, crops, strict=True):
        patch = torch.from_numpy(rng.integers(0, 2, (height, width), dtype=np.uint8))
        mask[top : top + height, left : left + width] = patch
        pixels += [patch[y, x] for x in range(width) for y in range(height)]
    masks = Masks(torch.stack(pixels), crops, 40, 50)
    assert torch.equal(masks.whole(), whole)
    # As it comes out of another process.
    (sent,) = DataLoader([masks], batch_size=None, num_workers=1)
    assert torch.equal(sent.whole(), whole)


def test_no_instance_is_no_mask():
    masks = Masks(torch.empty(0, dtype=torch.uint8), (), 4, 5).whole()
    assert masks.shape == (0, 4, 5)
    assert masks.dtype == torch.uint8
