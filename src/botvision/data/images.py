"""Opening any image file as the 8-bit RGB picture that its annotations describe."""

import struct
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from botvision.errors import UserError

# What Pillow's decoders raise on a file that is missing, cut off, broken, no image or far too big.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
)

# Larger images are refused: a small file may describe one that fills the memory. This many pixels
# take 1 GiB. Pillow refuses twice its limit, and warns from its limit on.
MAX_PIXELS = 2**28
if Image.MAX_IMAGE_PIXELS is not None:  # else the program that uses this library has raised it
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS // 2)
# Pillow would run Ghostscript, a program, on the content.
Image.init()
_FORMATS = [name for name in Image.ID if name != "EPS"]


def open_image(
    file: Path | BinaryIO, size: tuple[int, int] | None = None, *, name: str = ""
) -> Image.Image:
    """Open an image of any mode as 8-bit RGB, the right way up.

    Grayscale, 1-bit, palette and CMYK images are converted, alpha is dropped (the colors under it
    stay), 16-bit grayscale is scaled linearly from 0..65535 to 0..255, and so is Pillow's 32-bit
    integer mode, in which it opens 16-bit PGM. Floats are 0..1, or 0..255 if one is above 1.

    The EXIF orientation is applied unless only the image as stored has the wanted `size`: some
    tools annotate the stored pixels.

    Args:
        file: path of the image file, or the file opened in binary mode.
        size: (width, height) in pixels that the annotations assume. None accepts any size.
        name: name of the image in error messages. By default `file`.

    Returns:
        The image in Pillow's mode RGB, completely decoded.

    Raises:
        UserError: the file is missing, truncated, no image or of another size than `size`.
    """
    path = name or file
    _check_regular(file)
    try:
        with _opened(file) as stored:
            stored.load()
            upright = ImageOps.exif_transpose(stored) if _turned(stored) else stored
    except FileNotFoundError:
        raise UserError(f"{path}: no such image file; check the path") from None
    except (Image.DecompressionBombError, MemoryError) as error:
        raise UserError(
            f"{path}: has more than {MAX_PIXELS:,} pixels, or more than fit the memory; cut it "
            "into smaller images"
        ) from error
    except DECODE_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: cannot be read as an image ({reason}); replace or remove the file"
        ) from error
    if size is None or upright.size == size:
        return _to_rgb(upright)
    if stored.size == size:
        return _to_rgb(stored)
    raise UserError(
        f"{path}: the image is {upright.width}x{upright.height} but its annotations are for "
        f"{size[0]}x{size[1]}; use the images that were annotated, or correct the width and "
        "height in the annotation file"
    )


def _opened(file: Path | BinaryIO) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=_FORMATS)


def _check_regular(file: Path | BinaryIO) -> None:
    """Refuse what may never end, such as a named pipe."""
    if isinstance(file, Path) and file.exists() and not file.is_file():
        kind = "a folder" if file.is_dir() else "a pipe or a device"
        raise UserError(f"{file}: is {kind} and no image file; give an image file")


def _turned(stored: Image.Image) -> bool:
    return bool(stored.getexif().get(ExifTags.Base.Orientation, 1) != 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        sixteen = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((sixteen + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image), nan=0.0)
        top = 1.0 if values.max() <= 1 else 255.0
        image = Image.fromarray(np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        # Straight to RGB, Pillow warns that the transparency is lost, which is what is wanted.
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")
