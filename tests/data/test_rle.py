import numpy as np
import pytest
from pycocotools import mask as oracle

from botvision.data.rle import decode_columns, encode_patch, run_lengths


def random_masks():
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = rng.integers(1, 90, 2)
        yield (rng.random((height, width)) < rng.random()).astype(np.uint8)
    # Long runs, whose numbers take several characters and have large differences.
    block = np.zeros((700, 900), np.uint8)
    block[3:650, 100:103] = block[600:602, 500:800] = 1
    yield block
    yield np.zeros((4, 5), np.uint8)
    yield np.ones((4, 5), np.uint8)


def test_run_lengths_are_those_that_the_oracle_encodes():
    for mask in random_masks():
        pixels = mask.ravel(order="F")
        changes = np.flatnonzero(np.diff(pixels, prepend=0)).tolist()
        expected = np.diff([0, *changes, pixels.size])
        counts = oracle.encode(np.asfortranarray(mask))["counts"]
        np.testing.assert_array_equal(run_lengths(counts), expected)
        np.testing.assert_array_equal(run_lengths(counts.decode()), expected)


def test_columns_are_those_of_the_whole_mask():
    rng = np.random.default_rng(1)
    for mask in random_masks():
        rle = oracle.encode(np.asfortranarray(mask))
        np.testing.assert_array_equal(decode_columns(rle, 0, mask.shape[1]), mask)
        start, stop = np.sort(rng.integers(0, mask.shape[1] + 1, 2))
        np.testing.assert_array_equal(decode_columns(rle, start, stop), mask[:, start:stop])


@pytest.mark.parametrize("counts", ["a b", "zz~~", "0P", "ééé"])
def test_other_text_is_an_error(counts):
    with pytest.raises(ValueError):
        run_lengths(counts)


def test_patches_are_encoded_as_the_oracle_encodes_the_whole_mask():
    rng = np.random.default_rng(0)
    for patch in random_masks():
        (top, left), (below, right) = rng.integers(0, 4, (2, 2)).tolist()
        whole = np.pad(patch, ((top, below), (left, right)))
        want = oracle.encode(np.asfortranarray(whole))
        got = encode_patch(patch.astype(bool), top, left, whole.shape)
        assert got == {"size": list(whole.shape), "counts": want["counts"].decode()}


def test_a_patch_without_pixels_is_an_empty_mask():
    for shape in ((0, 3), (3, 0)):
        got = encode_patch(np.zeros(shape, bool), 2, 1, (5, 4))
        np.testing.assert_array_equal(oracle.decode(got), np.zeros((5, 4)))


def test_no_text_is_no_run():
    assert run_lengths("").size == 0
