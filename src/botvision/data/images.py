"""Opening any image file as the 8-bit RGB picture that its annotations describe."""

import contextlib
import logging
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from botvision.data.pixels import Pixels, as_unsigned
from botvision.errors import UserError

# What Pillow raises for a file that is missing or no image, and its decoders for damaged content.
DECODE_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError),
    *(RuntimeError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError),
)

# Larger images are refused: a small file may describe one that fills the memory. This many pixels
# take 1 GiB. Pillow refuses twice its limit, and warns from its limit on.
MAX_PIXELS = 2**28
if Image.MAX_IMAGE_PIXELS is not None:  # else the program that uses this library has raised it
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS // 2)
# Pillow logs errors in tags of TIFF, which Python prints if nobody has said what to do with them.
logging.getLogger("PIL").addHandler(logging.NullHandler())
# Pillow would run Ghostscript, a program, on the content.
Image.init()
FORMATS = [name for name in Image.ID if name != "EPS"]


@contextlib.contextmanager
def open_stored(file: Path | BinaryIO, page: int = 0) -> Iterator[Image.Image]:
    """Open a page of an image file as it is stored, without decoding it.

    Args:
        file: path of the image file, or the file opened in binary mode.
        page: page of a multi-page file, from 0.

    Yields:
        The image in any mode. Opening and decoding raise one of ``DECODE_ERRORS``.
    """
    # Pillow warns of large images and of damaged metadata, which change nothing.
    with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
        if page:
            image.seek(page)
        yield image


def open_image(
    file: Path | BinaryIO,
    size: tuple[int, int] | None = None,
    *,
    name: str = "",
    pixels: Pixels = Pixels(),  # noqa: B008, it is frozen
) -> Image.Image:
    """Open an image of any mode as 8-bit RGB, the right way up.

    Grayscale, 1-bit, palette and CMYK images are converted, alpha is dropped (the colors under it
    stay), and images of more than 8 bits are scaled as ``Pixels`` describes.

    The EXIF orientation is applied unless only the image as stored has the wanted `size`: some
    tools annotate the stored pixels.

    Args:
        file: path of the image file, or the file opened in binary mode.
        size: (width, height) in pixels that the annotations assume. None accepts any size.
        name: name of the image in error messages. By default `file`.
        pixels: the page, and how its pixels become 8-bit.

    Returns:
        The image in Pillow's mode RGB, completely decoded.

    Raises:
        UserError: the file is missing, truncated, no image or of another size than `size`, has no
            such page, or colors that Pillow cannot convert.
    """
    path = name or file
    _check_regular(file)
    try:
        with open_stored(file, pixels.page) as opened:
            opened.load()
            stored = as_unsigned(opened)
            upright = ImageOps.exif_transpose(stored) if _turned(stored) else stored
    except FileNotFoundError:
        raise UserError(f"{path}: no such image file; check the path") from None
    except (Image.DecompressionBombError, MemoryError) as error:
        raise UserError(
            f"{path}: has more than {MAX_PIXELS:,} pixels, or more than fit the memory; cut it "
            "into smaller images"
        ) from error
    except DECODE_ERRORS as error:
        if pixels.page and isinstance(error, EOFError):
            raise UserError(
                f"{path}: has no page {pixels.page}, counted from 0; give another `page`"
            ) from error
        raise UserError(
            f"{path}: cannot be read as an image ({_reason(error)}); replace or remove the file"
        ) from error
    if size is None or upright.size == size:
        return _to_rgb(upright, pixels, path)
    if stored.size == size:
        return _to_rgb(stored, pixels, path)
    raise UserError(
        f"{path}: the image is {upright.width}x{upright.height} but its annotations are for "
        f"{size[0]}x{size[1]}; use the images that were annotated, or correct the width and "
        "height in the annotation file"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "of no known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # Pillow's own errors are these. Others come from within.
    words = str(error).splitlines() if isinstance(error, OSError | SyntaxError | ValueError) else []
    return words[0] if words else "damaged"


def _check_regular(file: Path | BinaryIO) -> None:
    """Refuse what may never end, such as a named pipe."""
    if isinstance(file, Path) and file.exists() and not file.is_file():
        kind = "a folder" if file.is_dir() else "a pipe or a device"
        raise UserError(f"{file}: is {kind} and no image file; give an image file")


def _turned(stored: Image.Image) -> bool:
    return bool(stored.getexif().get(ExifTags.Base.Orientation, 1) != 1)


def _to_rgb(image: Image.Image, pixels: Pixels, path: object) -> Image.Image:
    try:
        return pixels.to_rgb(image)
    except ValueError as error:
        raise UserError(
            f"{path}: {image.mode} colors cannot be converted; save the image as RGB"
        ) from error
