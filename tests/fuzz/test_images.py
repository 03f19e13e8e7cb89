"""Image files: small ones of many formats and modes with a few bytes changed."""

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from botvision.data.images import open_image
from botvision.errors import UserError
from fuzz.mutations import mutated


def _encoded(mode, form, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("RGB" if mode != "RGBA" else mode)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode in ("I", "F"):
        image = Image.fromarray(pixels[..., 0].astype(np.int32 if mode == "I" else np.float32))
    else:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _turned():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


_CONTENTS = [
    *(_encoded(mode, "PNG") for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")),
    *(_encoded(mode, "JPEG") for mode in ("RGB", "L", "CMYK")),
    _encoded("RGB", "JPEG", progressive=True, exif=_turned()),
    *(_encoded(mode, "TIFF") for mode in ("RGB", "RGBA", "L", "P", "1", "I;16", "I", "F", "CMYK")),
    *(_encoded("RGB", "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "packbits")),
    *(_encoded(mode, "GIF") for mode in ("P", "L")),
    _encoded("P", "GIF", transparency=3),
    *(_encoded(mode, "WEBP") for mode in ("RGB", "RGBA")),
    *(_encoded(mode, "BMP") for mode in ("RGB", "P", "1")),
    *(_encoded(mode, "PPM") for mode in ("RGB", "L", "I;16")),
    *(_encoded("RGB", form) for form in ("TGA", "JPEG2000", "ICO", "PCX", "SGI", "QOI", "DDS")),
]


def read(path, size):
    """Open an image whose annotations may be for a size."""
    try:
        image = open_image(path, size)
    except UserError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        return
    assert image.mode == "RGB"
    assert size is None or image.size == size


def test_the_images_are_sound(tmp_path):
    for content in _CONTENTS:
        path = tmp_path / "image"
        path.write_bytes(content)
        assert set(open_image(path).size) == {12, 9}


@given(mutated(_CONTENTS), st.sampled_from([None, (12, 9), (9, 12)]))
def test_a_mutated_image(tmp_path, content, size):
    path = tmp_path / "image"
    path.write_bytes(content)
    read(path, size)
