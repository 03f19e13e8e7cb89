import numpy as np
import pytest
from PIL import Image

from botvision.data.images import open_image
from botvision.errors import UserError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (5, 7, 1), dtype=np.uint8)
SIXTEEN = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
ORIENTED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def opened(path, size=None):
    image = open_image(path, size)
    assert image.mode == "RGB"
    return np.asarray(image)


def gray_to_rgb(gray):
    return np.repeat(gray[..., None], 3, axis=2)


def save(tmp_path, pixels, mode=None, name="image.png", **options):
    path = tmp_path / name
    image = Image.fromarray(pixels)
    assert mode is None or image.mode == mode
    image.save(path, **options)
    return path


def test_color_and_grey_are_kept(tmp_path):
    np.testing.assert_array_equal(opened(save(tmp_path, COLOR, "RGB")), COLOR)
    np.testing.assert_array_equal(opened(save(tmp_path, GREY, "L")), gray_to_rgb(GREY))


def test_one_bit(tmp_path):
    bits = GREY > 127
    path = tmp_path / "bits.png"
    Image.fromarray(bits).convert("1").save(path)
    assert Image.open(path).mode == "1"
    np.testing.assert_array_equal(opened(path), gray_to_rgb(bits * np.uint8(255)))


@pytest.mark.parametrize("transparency", [None, 2, bytes([0, 128, 255, 7])])
def test_palette_gives_its_colors_whatever_is_transparent(tmp_path, transparency, recwarn):
    indices = RNG.integers(0, 4, (5, 7), dtype=np.uint8)
    palette = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(palette.ravel().tolist())
    path = tmp_path / "palette.png"
    image.save(path, **({} if transparency is None else {"transparency": transparency}))
    assert Image.open(path).mode == "P"
    recwarn.clear()
    np.testing.assert_array_equal(opened(path), palette[indices])
    assert not recwarn.list


def test_alpha_is_dropped_not_composited(tmp_path):
    rgba = save(tmp_path, np.concatenate([COLOR, ALPHA], axis=2), "RGBA")
    np.testing.assert_array_equal(opened(rgba), COLOR)
    la = save(tmp_path, np.concatenate([GREY[..., None], ALPHA], axis=2), "LA")
    np.testing.assert_array_equal(opened(la), gray_to_rgb(GREY))


def test_cmyk(tmp_path):
    path = tmp_path / "cmyk.tif"
    cmyk = np.concatenate([COLOR, ALPHA], axis=2)
    Image.frombytes("CMYK", (7, 5), cmyk.tobytes()).save(path)
    expected = (255.0 - COLOR) * (255.0 - ALPHA) / 255
    np.testing.assert_allclose(opened(path), expected, atol=1)


@pytest.mark.parametrize("name", ["gray.png", "gray.tif", "gray.pgm"])
def test_16_bit_grey_is_scaled_linearly(tmp_path, name):
    path = tmp_path / name
    sixteen = SIXTEEN.copy()
    sixteen[0, :3] = 0, 65535, 128
    Image.fromarray(sixteen).save(path)
    expected = np.rint(sixteen * (255 / 65535)).astype(np.uint8)
    np.testing.assert_array_equal(opened(path), gray_to_rgb(expected))


def test_big_endian_16_bit_tiff(tmp_path):
    path = tmp_path / "big.tif"
    Image.frombytes("I;16B", (7, 5), SIXTEEN.astype(">u2").tobytes()).save(path)
    assert Image.open(path).mode == "I;16B"
    expected = np.rint(SIXTEEN * (255 / 65535)).astype(np.uint8)
    np.testing.assert_array_equal(opened(path), gray_to_rgb(expected))


def test_32_bit_integers_are_taken_as_16_bit_grey(tmp_path):
    path = save(tmp_path, np.array([[-5, 0, 257], [25700, 65535, 70000]], np.int32), "I", "i.tif")
    expected = np.array([[0, 0, 1], [100, 255, 255]], np.uint8)
    np.testing.assert_array_equal(opened(path), gray_to_rgb(expected))


def test_floats_are_0_to_1_or_0_to_255(tmp_path):
    unit = save(tmp_path, np.array([[-1, 0, np.nan], [0.2, 0.5, 1]], np.float32), "F", "a.tif")
    expected = np.array([[0, 0, 0], [51, 128, 255]], np.uint8)
    np.testing.assert_array_equal(opened(unit), gray_to_rgb(expected))
    byte = save(tmp_path, np.array([[0, 0.9, 51], [100, 255, 300]], np.float32), "F", "b.tif")
    expected = np.array([[0, 1, 51], [100, 255, 255]], np.uint8)
    np.testing.assert_array_equal(opened(byte), gray_to_rgb(expected))


def save_oriented(tmp_path, orientation, name="turned.png"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(tmp_path, COLOR, "RGB", name, exif=exif)


@pytest.mark.parametrize("orientation", ORIENTED)
def test_exif_orientation_is_applied(tmp_path, orientation):
    path = save_oriented(tmp_path, orientation)
    upright = ORIENTED[orientation](COLOR)
    np.testing.assert_array_equal(opened(path), upright)
    size = upright.shape[1], upright.shape[0]
    np.testing.assert_array_equal(opened(path, size), upright)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_exif_orientation_is_left_where_only_the_stored_size_agrees(tmp_path, orientation):
    np.testing.assert_array_equal(opened(save_oriented(tmp_path, orientation), (7, 5)), COLOR)


def test_exif_orientation_of_16_bit_and_tiff(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path, SIXTEEN, "I;16", exif=exif)
    expected = np.rint(np.rot90(SIXTEEN, -1) * (255 / 65535)).astype(np.uint8)
    np.testing.assert_array_equal(opened(path), gray_to_rgb(expected))
    tiff = save_oriented(tmp_path, 6, "turned.tif")
    np.testing.assert_array_equal(opened(tiff, (5, 7)), np.rot90(COLOR, -1))


def test_another_size_is_an_error_with_both_sizes(tmp_path):
    path = save(tmp_path, COLOR)
    with pytest.raises(UserError, match=r"image\.png: the image is 7x5 .* are for 8x5; use"):
        open_image(path, (8, 5))


def test_missing_truncated_and_other_files_are_errors_of_one_line(tmp_path):
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    broken = []
    for name in ("image.png", "image.jpg", "image.tif", "image.bmp"):
        path = save(tmp_path, noise, name=name)
        path.write_bytes(path.read_bytes()[:1500])
        broken.append(path)
    text = tmp_path / "text.jpg"
    text.write_text("not an image\n")
    empty = tmp_path / "empty.png"
    empty.touch()
    for path in [*broken, text, empty]:
        with pytest.raises(UserError, match=r"cannot be read as an image .* replace") as error:
            open_image(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"absent\.png: no such image file; check the path"):
        open_image(tmp_path / "absent.png")


def test_an_image_far_too_large_is_an_error(tmp_path, monkeypatch):
    path = save(tmp_path, COLOR)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match="has more than 268,435,456 pixels"):
        open_image(path)
