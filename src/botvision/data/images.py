"""Opening any image file as the 8-bit RGB picture that its annotations describe."""

import struct
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
    Image.DecompressionBombError,
)


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
    try:
        with Image.open(file) as stored:
            stored.load()
            upright = ImageOps.exif_transpose(stored) if _turned(stored) else stored
    except FileNotFoundError:
        raise UserError(f"{path}: no such image file; check the path") from None
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
