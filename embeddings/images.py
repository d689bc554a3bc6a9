"""Product images, decoded once to one small square each.

Shape letters: P products, S pixels a side.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image, ImageOps

MAX_PIXELS = 50_000_000
"""Images that claim more are refused by their header, before a pixel is decoded."""


@dataclass(frozen=True, kw_only=True)
class ImageTable:
    """Decoded images in the order of the products table."""

    pixel_PSS3: NDArray[np.uint8]
    """Red, green, blue; zeros where a product has no image."""
    present_P: NDArray[np.bool_]
    """Whether the product has an image."""


def decode_images(
    products: pl.DataFrame,
    pixels: int,
    *,
    image_root: str | Path | None = None,
    cache: str | Path | None = None,
) -> ImageTable:
    """Decode the ``image`` column of a products table.

    Each image is shrunk to fit a square and centred on white, so shapes keep their proportions.

    Args:
        products: ``image`` holds encoded bytes or a path; null, empty or an absent column mean no
            image.
        pixels: Side of the square.
        image_root: Folder that relative paths start from; the working directory if None.
        cache: A file that keeps the decoded images; read back memory-mapped when it was made from
            the same images, written again when not.

    Raises:
        ValueError: If an image is missing, cannot be decoded or is too large, naming its row.
    """
    count = len(products)
    if "image" not in products.columns:
        return ImageTable(
            pixel_PSS3=np.zeros((count, 0, 0, 3), np.uint8), present_P=np.zeros(count, bool)
        )
    values = products["image"].to_list()
    present_P = np.array([value is not None and len(value) > 0 for value in values], bool)
    root = Path(image_root) if image_root is not None else Path()
    if cache is None:
        pixel_PSS3 = np.zeros((count, pixels, pixels, 3), np.uint8)
        _fill_(pixel_PSS3, products, values, present_P, root)
        return ImageTable(pixel_PSS3=pixel_PSS3, present_P=present_P)
    cache = Path(cache)
    key = _source_digest(values, pixels, root)
    key_file = cache.with_name(f"{cache.name}.sha256")
    if not (cache.is_file() and key_file.is_file() and key_file.read_text("utf-8") == key):
        key_file.unlink(missing_ok=True)
        unfinished = cache.with_name(f".{cache.name}.part")
        mapped = np.lib.format.open_memmap(
            unfinished, mode="w+", dtype=np.uint8, shape=(count, pixels, pixels, 3)
        )
        try:
            _fill_(mapped, products, values, present_P, root)
            mapped.flush()
            unfinished.replace(cache)
        finally:
            unfinished.unlink(missing_ok=True)
        key_file.write_text(key, encoding="utf-8")
    return ImageTable(pixel_PSS3=np.load(cache, mmap_mode="r"), present_P=present_P)


def decode_image(source: bytes | Path, pixels: int) -> NDArray[np.uint8]:
    """Decode one image to (S, S, 3).

    Raises:
        ValueError: If it is no image, is cut short, or claims more than ``MAX_PIXELS``.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns about a bomb and then decodes it; the size is judged below instead.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"it claims {image.width} x {image.height} pixels, above the limit of "
                    f"{MAX_PIXELS}; shrink it or leave it out"
                )
            # JPEGs decode straight to a fraction of their size; twice the target loses nothing.
            image.draft("RGB", (2 * pixels, 2 * pixels))
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                upright = Image.new("RGBA", rgba.size, "white")
                upright.alpha_composite(rgba)
            square = ImageOps.pad(
                upright.convert("RGB"), (pixels, pixels), Image.Resampling.BILINEAR, color="white"
            )
            return np.asarray(square)
    except Image.DecompressionBombError as error:
        raise ValueError(f"it is larger than the limit of {MAX_PIXELS} pixels: {error}") from error
    except (OSError, SyntaxError) as error:
        raise ValueError(f"it cannot be decoded: {error}") from error


def _fill_(
    pixel_PSS3: NDArray[np.uint8],
    products: pl.DataFrame,
    values: list[bytes | str | None],
    present_P: NDArray[np.bool_],
    root: Path,
) -> None:
    ids = products["product_id"].to_list()
    for row in np.flatnonzero(present_P):
        value = values[row]
        assert value is not None
        source = root / value if isinstance(value, str) else value
        try:
            pixel_PSS3[row] = decode_image(source, pixel_PSS3.shape[1])
        except ValueError as error:
            shown = f" ({source})" if isinstance(source, Path) else ""
            raise ValueError(f"image of product {ids[row]!r}, row {row}{shown}: {error}") from error


def _source_digest(values: list[bytes | str | None], pixels: int, root: Path) -> str:
    digest = hashlib.sha256(f"{pixels} {root.resolve()}".encode())
    for value in values:
        if isinstance(value, str):
            path = root / value
            state = path.stat() if path.is_file() else None
            mark = f"{path} {state.st_size} {state.st_mtime_ns}" if state else str(path)
            value = mark.encode()
        digest.update(hashlib.sha256(value or b"").digest())
    return digest.hexdigest()
