"""Which images a step sees, and how an image is fitted for evaluation."""

import numpy as np
import pytest
from PIL import Image

from botvision.data.coco import find_splits, load_split
from botvision.data.detection import WholeImages, collate
from botvision.data.loaders import eval_loader
from botvision.data.samplers import StepBatches, sample_images
from botvision.data.transforms import fit_image
from botvision.device import worker_count
from botvision.errors import UserError


def batches(start=0, seed=0, steps=9):
    return list(StepBatches(7, 3, steps, seed=seed, start=start))


def test_every_epoch_sees_every_image_once_in_another_order():
    keys = [key for batch in batches() for key in batch][:21]
    epochs = [[index for epoch, index in keys if epoch == e] for e in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_run_that_starts_late_sees_what_it_would_have_seen():
    whole = batches()
    for start in range(10):
        assert batches(start) == whole[start:]


def test_the_order_is_the_seeds():
    assert batches(seed=0) != batches(seed=1)
    assert len(StepBatches(7, 3, 9, seed=0, start=5)) == 9


def test_fitting_keeps_the_aspect_ratio():
    assert fit_image(Image.new("RGB", (200, 100)), 64).shape == (3, 32, 64)
    assert fit_image(Image.new("RGB", (30, 60)), 120).shape == (3, 120, 60)
    assert fit_image(Image.new("RGB", (1000, 1)), 64).shape == (3, 1, 64)


def test_evaluation_gives_every_image_once_in_order(tiny_data):
    data = load_split(find_splits(tiny_data)["val"])
    loaded = [
        pair
        for batch in eval_loader(WholeImages(data), collate, batch_size=3)
        for pair in zip(*batch, strict=True)
    ]
    assert [image_id for _, image_id in loaded] == list(data.image_ids)
    for index, (image, _) in enumerate(loaded):
        want = Image.open(data.image_path(index))
        np.testing.assert_array_equal(np.asarray(image), np.asarray(want))


def test_fitting_is_pillows_resizing(tiny_data):
    image = Image.open(tiny_data / "val" / "000000.jpg")
    want = image.resize((96, 96), Image.Resampling.BILINEAR)
    got = fit_image(image, 96)
    np.testing.assert_array_equal(got.permute(1, 2, 0).numpy(), np.asarray(want))


def test_workers():
    assert worker_count(3, "cpu") == 3
    assert worker_count(-1, "cpu") == 0
    assert 1 <= worker_count(-1, "cuda") <= 8


def test_a_limit_draws_over_all_images():
    assert sample_images(7, None) == sample_images(7, 7) == sample_images(7, 9) == list(range(7))
    drawn = sample_images(1000, 60)
    assert drawn == sorted(set(drawn)) and len(drawn) == 60
    assert drawn == sample_images(1000, 60)
    assert set(sample_images(1000, 20)) < set(drawn)
    # Ten classes of a hundred images, sorted by class: each is there.
    assert {index // 100 for index in drawn} == set(range(10))
    for limit in (0, -3):
        with pytest.raises(UserError, match=f"limit {limit}: must be at least 1"):
            sample_images(7, limit)
