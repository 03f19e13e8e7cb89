"""Images of more than 8 bits: no gray level is lost, and the range is that of the data."""

import numpy as np
import pytest
from PIL import Image

from botvision.data.image_folder import ImageFolder
from botvision.data.images import open_image
from botvision.data.pixel_survey import ImageFileList, survey_pixels
from botvision.data.pixels import Pixels
from botvision.errors import UserError
from botvision.tasks.load import read_images

RNG = np.random.default_rng(0)


def ramp(low, high, dtype, levels=4096):
    """Values that rise evenly, as an image of 64 x 64."""
    values = np.linspace(low, high, levels).reshape(64, -1)
    return (values if dtype is np.float32 else np.rint(values)).astype(dtype)


# Pillow's mode, file name and values; the range is the first and the last value.
IMAGES = {
    "I;16": ("I;16", "a.png", ramp(0, 65535, np.uint16)),
    "I;16B": ("I;16B", "a.tif", ramp(0, 65535, ">u2")),
    "I": ("I", "a.tif", ramp(0, 100_000, np.int32)),
    "PGM": ("I", "a.pgm", ramp(0, 65535, np.int32)),
    "F": ("F", "a.tif", ramp(-3.5, 17.25, np.float32)),
    "12-bit": ("I;16", "a.tif", ramp(0, 4095, np.uint16)),
    "float 0..1.02": ("F", "a.tif", ramp(0, 1.02, np.float32)),
    "float 0..65535": ("F", "a.tif", ramp(0, 65535, np.float32)),
    "negative int32": ("I", "a.tif", ramp(-1000, 3000, np.int32)),
    "int16": ("int16", "a.tif", ramp(-1000, 3000, np.int16)),
    "uint32": ("uint32", "a.tif", ramp(0, 4_000_000_000, np.uint32)),
}


def write(path, mode, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode in ("int16", "uint32"):
        path.write_bytes(tiff(values))
    elif mode == "I;16B":
        Image.frombytes(mode, values.shape[::-1], values.tobytes()).save(path)
        assert Image.open(path).mode == mode
    else:
        Image.fromarray(values.astype(np.int32) if mode == "I" else values).save(path)
    return path


def tiff(values):
    """A little-endian TIFF of any kind of numbers, which Pillow does not write."""
    height, width = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    bits = values.dtype.itemsize * 8
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 0), (277, 1)]
    tags += [(278, height), (279, values.nbytes), (339, kind)]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        np.array([tag, 4], "<u2").tobytes()
        + np.array([1, start if tag == 273 else value], "<u4").tobytes()
        for tag, value in tags
    )
    head = b"II*\0\x08\0\0\0" + np.uint16(len(tags)).tobytes() + entries + bytes(4)
    return head + values.tobytes()


def expected(values, low, high):
    scaled = (values.astype(np.float64) - low) / (np.float64(high) - low)
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def gray(image):
    pixels = np.asarray(image)
    assert pixels.dtype == np.uint8
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("kind", IMAGES)
def test_every_gray_level_survives(tmp_path, kind):
    mode, name, values = IMAGES[kind]
    low, high = float(values.min()), float(values.max())
    path = write(tmp_path / name, mode, values)
    found = gray(open_image(path, pixels=Pixels((low, high))))
    np.testing.assert_array_equal(found, expected(values, low, high))
    assert len(np.unique(found)) == 256


@pytest.mark.parametrize("kind", IMAGES)
def test_the_range_of_a_data_set_is_found(tmp_path, kind):
    mode, name, values = IMAGES[kind]
    path = write(tmp_path / name, mode, values)
    survey = survey_pixels(ImageFileList([path], Pixels()))
    low, high = survey.range
    want = np.percentile(values.astype(np.float64), (0.1, 99.9), method="nearest")
    # Pillow has no unsigned integers of 32 bits; they are read as float32.
    np.testing.assert_allclose([low, high], want, rtol=1e-7 if kind == "uint32" else 0)
    assert (survey.integers, survey.floats) == ((0, 1) if mode == "F" else (1, 0))
    assert len(np.unique(gray(open_image(path, pixels=Pixels(survey.range))))) == 256


def test_large_images_are_scaled_and_sampled_in_parts(tmp_path):
    values = RNG.integers(200, 3001, (1300, 1000), dtype=np.uint16)
    path = write(tmp_path / "a.tif", "I;16", values)
    found = gray(open_image(path, pixels=Pixels((200, 3000))))
    np.testing.assert_array_equal(found, expected(values, 200, 3000))
    low, high = survey_pixels(ImageFileList([path], Pixels())).range
    np.testing.assert_allclose([low, high], np.percentile(values, (0.1, 99.9)), atol=5)
    shares = (values / 3000).astype(np.float32)
    floats = write(tmp_path / "b.tif", "F", shares)
    np.testing.assert_array_equal(gray(open_image(floats)), expected(shares, 0, 1))
    shares[-1, -1] = 2  # 0 to 255, since a value is above 1
    floats = write(tmp_path / "c.tif", "F", shares)
    np.testing.assert_array_equal(gray(open_image(floats)), expected(shares, 0, 255))


def test_a_few_hot_pixels_do_not_darken_the_rest(tmp_path):
    values = ramp(100, 4000, np.uint16)
    values.flat[:3] = 65535
    path = write(tmp_path / "a.png", "I;16", values)
    low, high = survey_pixels(ImageFileList([path], Pixels())).range
    assert 100 <= low < 110
    assert 3990 < high <= 4000


def test_sparse_and_constant_images_have_a_range(tmp_path):
    spots = np.zeros((100, 100), np.uint16)
    spots[50, 50] = 900  # 0.01 % of the pixels
    sparse = write(tmp_path / "sparse.png", "I;16", spots)
    assert survey_pixels(ImageFileList([sparse], Pixels())).range == (0, 900)
    constant = write(tmp_path / "constant.png", "I;16", np.full((9, 9), 7, np.uint16))
    assert survey_pixels(ImageFileList([constant], Pixels())).range == (7, 8)


def test_nan_is_black_and_infinity_is_clipped(tmp_path):
    values = np.array([[np.nan, -np.inf, np.inf], [-1, 0.5, 2]], np.float32)
    path = write(tmp_path / "a.tif", "F", values)
    for pixels in (Pixels((-1, 2)), Pixels((0.0, 1.0))):
        found = gray(open_image(path, pixels=pixels))
        low, high = pixels.range
        assert found[0].tolist() == [0, 0, 255]
        np.testing.assert_array_equal(found[1], expected(values[1], low, high))
    assert survey_pixels(ImageFileList([path], Pixels())).range == (-1, 2)
    empty = write(tmp_path / "b.tif", "F", np.full((3, 3), np.nan, np.float32))
    survey = survey_pixels(ImageFileList([empty], Pixels()))
    assert (survey.floats, survey.range) == (1, None)
    assert gray(open_image(empty)).max() == 0


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA"])
def test_8_bit_images_are_never_changed(tmp_path, mode):
    image = Image.fromarray(RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8)).convert(mode)
    path = tmp_path / "a.tif"
    image.save(path)
    plain = np.asarray(open_image(path))
    ranged = np.asarray(open_image(path, pixels=Pixels((100.0, 101.0))))
    np.testing.assert_array_equal(plain, ranged)
    assert survey_pixels(ImageFileList([path], Pixels())).range is None


@pytest.mark.parametrize("given", [(5, 5), (6, 5), (0, float("inf")), (float("nan"), 1)])
def test_a_range_increases(given):
    with pytest.raises(UserError, match=r"pixel_range .*: must be two finite numbers, the first"):
        Pixels(given)
    with pytest.raises(UserError, match="page -1: pages count from 0"):
        Pixels(page=-1)


def stack(path, pages=3, mode="L"):
    images = [Image.new("L", (8, 8), 40 * page).convert(mode) for page in range(pages)]
    images[0].save(path, save_all=True, append_images=images[1:])
    return path


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png"])
def test_the_page_is_selected(tmp_path, name):
    path = stack(tmp_path / name, mode="RGB" if name == "a.webp" else "L")
    for page in range(3):
        value = np.asarray(open_image(path, pixels=Pixels(page=page)))[4, 4, 0]
        assert abs(int(value) - 40 * page) < 4
    with pytest.raises(UserError, match=r"has no page 3, counted from 0; give another `page`"):
        open_image(path, pixels=Pixels(page=3))
    (line,) = survey_pixels(ImageFileList([path], Pixels())).notices(Pixels())
    assert line == (
        "1 of 1 sampled images have several pages; page 0 is used, counted from 0 (`page`)"
    )


def test_a_single_page_has_no_other(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"a.jpg: has no page 1, counted from 0"):
        open_image(tmp_path / "a.jpg", pixels=Pixels(page=1))


def test_pages_of_deep_stacks_have_their_own_range(tmp_path):
    pages = [Image.fromarray(np.full((8, 8), 1000 * k + np.arange(8), np.uint16)) for k in (1, 2)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    files = ImageFileList([tmp_path / "a.tif"], Pixels())
    assert survey_pixels(files).range == (1000, 1007)
    assert survey_pixels(files, page=1).range == (2000, 2007)


def test_lines_about_deep_images(tmp_path):
    deep = write(tmp_path / "a.png", "I;16", ramp(3, 4080, np.uint16))
    flat = tmp_path / "b.jpg"
    Image.new("RGB", (8, 8)).save(flat)
    (tmp_path / "c.png").write_bytes(b"broken")
    survey = survey_pixels(ImageFileList([deep, flat, tmp_path / "c.png"], Pixels()))
    start = "1 of 2 sampled images have integers of more than 8 bits; "
    low, high = survey.range
    used = f"{low:g} to {high:g} ({high - low + 1:.0f} of 65536 levels)"
    assert survey.notices(Pixels(survey.range)) == [
        f"{start}their values {used} become 0 to 255 (`pixel_range`)"
    ]
    assert survey.notices(Pixels((0.0, 4095.0))) == [
        f"{start}they use {used}, and 0 to 4095 become 0 to 255 (`pixel_range`)"
    ]
    (line,) = survey.notices(Pixels())
    assert line.startswith(f"{start}they use {used}; without a pixel range integers are read as")
    assert survey_pixels(ImageFileList([flat], Pixels())).notices(Pixels()) == []


def test_rare_formats_are_in_the_sample(tmp_path):
    flat, deep = tmp_path / "a.jpg", write(tmp_path / "b.tif", "I;16", ramp(0, 9, np.uint16))
    Image.new("RGB", (8, 8)).save(flat)
    files = [*[flat] * 3000, deep, *[flat] * 3000]
    survey = survey_pixels(ImageFileList(files, Pixels()))
    assert (survey.images, survey.integers) == (501, 1)


def test_colors_of_16_bits_are_named(tmp_path):
    import struct
    import zlib

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + np.full(12, 0x1234, ">u2").tobytes() for _ in range(4))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(
        png + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    survey = survey_pixels(ImageFileList([tmp_path / "a.png"], Pixels()))
    assert survey.notices(Pixels()) == [
        "1 of 1 sampled images have colors of 16 bits, of which Pillow reads the upper 8"
    ]
    assert np.asarray(open_image(tmp_path / "a.png")).max() == 0x12


def test_colors_that_pillow_cannot_convert_are_one_line():
    with pytest.raises(UserError, match="images: La colors cannot be converted to RGB"):
        list(read_images(Image.new("La", (4, 4))))


def test_images_in_memory_are_scaled_alike():
    values = ramp(0, 4095, np.uint16)
    ((_, image),) = read_images(Image.fromarray(values), pixels=Pixels((0, 4095)))
    np.testing.assert_array_equal(gray(image), expected(values, 0, 4095))
    with pytest.raises(UserError, match="an array must contain RGB pixels, uint8"):
        list(read_images(values, pixels=Pixels((0, 4095))))


def test_data_reads_as_it_is_told(tmp_path):
    write(tmp_path / "cat" / "a.png", "I;16", ramp(0, 4095, np.uint16))
    data = ImageFolder(tmp_path)
    assert gray(data[0][0]).max() == 16
    data.pixels = Pixels((0, 4095))
    assert gray(data[0][0]).max() == 255
