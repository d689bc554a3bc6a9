"""Can an image be decoded, and safely?

A few kilobytes can claim to be gigabytes of pixels, so the size is read from the header and
refused before anything is decoded. Only common formats are tried: some that Pillow knows run
other programs.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib

from PIL import Image

MAX_IMAGE_PIXELS = 50_000_000
"""Fifty megapixels, more than a product photo has; 150 MB when decoded."""

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

DECODE_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    EOFError,
    LookupError,
    ArithmeticError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on files that are damaged or no images at all."""

_THUMBNAIL = (64, 64)


def image_problem(encoded: bytes, *, max_pixels: int = MAX_IMAGE_PIXELS) -> str | None:
    """Say what is wrong with an encoded image; None if it decodes to its last pixel.

    Args:
        encoded: The bytes of a file.
        max_pixels: Width times height beyond which nothing is decoded.
    """
    try:
        # Pillow tells of bombs and of broken metadata by warnings alone.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    return f"{width} x {height} pixels, more than the {max_pixels} allowed"
                # JPEG's coarse mode reads the whole file but computes few pixels.
                image.draft("RGB", _THUMBNAIL)
                image.load()
    except (*DECODE_ERRORS, Warning) as error:
        return str(error) or type(error).__name__
    return None
