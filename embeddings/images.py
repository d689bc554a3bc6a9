"""Product images, decoded once to one small square each.

Shape letters: P products, S pixels a side, N rows of a chunk.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import polars as pl
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from embeddings.image_cache import Progress, chunks_of, in_parallel, open_cached_rows
from embeddings.processor import read_processor
from features.image_check import DECODE_ERRORS, IMAGE_FORMATS, MAX_IMAGE_PIXELS


@dataclass(frozen=True, kw_only=True)
class ImageTable:
    """Decoded images in the order of the products table."""

    pixel_PSS3: NDArray[np.uint8]
    """Red, green, blue; zeros where a product has no image. A cache is mapped read-only."""
    present_P: NDArray[np.bool_]
    """Whether the product has an image."""


def decode_images(
    products: pl.DataFrame,
    pixels: int,
    *,
    image_root: str | Path | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> ImageTable:
    """Decode the ``image`` column of a products table.

    Each image is shrunk to fit a square and centred on white, so shapes keep their proportions.
    The result does not depend on ``workers``, nor on whether there is a cache.

    Args:
        products: ``image`` holds encoded bytes or a path; null, empty or an absent column mean no
            image. Of an animation the first frame counts, and no other is decoded.
        pixels: Side of the square.
        image_root: Folder that relative paths start from; the working directory if None.
        cache: A file that keeps the decoded images; read back memory-mapped. Images that changed
            (a file's size or time, or the bytes) and rows that were damaged are decoded again. A
            build that was killed goes on where it stopped.
        workers: Threads; the cores at hand if None. Pillow decodes outside the interpreter lock.
        progress: Called as ``progress("decode images", done, total, figures)`` with the figures
            images_per_s and seconds_left.

    Raises:
        ValueError: If an image is missing, cannot be decoded or is too large, naming its row; or
            the column holds something else, or ``pixels`` or ``workers`` is below 1.
        OSError: If the disk is too full for the cache.
    """
    for name, value in (("pixels", pixels), ("workers", workers)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    count = len(products)
    if "image" not in products.columns:
        return ImageTable(
            pixel_PSS3=np.zeros((count, 0, 0, 3), np.uint8), present_P=np.zeros(count, bool)
        )
    root = Path(image_root) if image_root is not None else Path()
    sources = _Sources(products=products, pixels=pixels, root=root, present_P=_present(products))
    workers = workers or read_processor().logical_cores
    shape = (count, pixels, pixels, 3)
    with _silent_pillow():
        if cache is not None and count:
            pixel_PSS3 = open_cached_rows(
                cache,
                shape,
                source=sources.digest,
                make=sources.decode,
                workers=workers,
                progress=progress,
            )
        else:
            pixel_PSS3 = np.zeros(shape, np.uint8)
            made = in_parallel(sources.decode, chunks_of(count), workers=workers, progress=progress)
            with closing(made):
                for rows, pixel_NSS3 in made:
                    pixel_PSS3[rows] = pixel_NSS3
    return ImageTable(pixel_PSS3=pixel_PSS3, present_P=sources.present_P)


def decode_image(source: bytes | Path, pixels: int) -> NDArray[np.uint8]:
    """Decode one image to (S, S, 3).

    Raises:
        ValueError: If it is no image, is cut short, or claims more than ``MAX_IMAGE_PIXELS``.
    """
    with _silent_pillow():
        return _decode(source, pixels)


def _decode(source: bytes | Path, pixels: int) -> NDArray[np.uint8]:
    if isinstance(source, Path) and not source.is_file():
        # Opening a pipe or a device by mistake would wait for ever.
        raise ValueError("there is no such file; is image_root the folder that paths start from?")
    try:
        # Some other formats that Pillow knows run programs.
        image = Image.open(
            io.BytesIO(source) if isinstance(source, bytes) else source, formats=IMAGE_FORMATS
        )
        with image:
            claimed = image.size
            if image.width * image.height <= MAX_IMAGE_PIXELS:
                return _to_square(image, pixels)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"it is larger than the limit of {MAX_IMAGE_PIXELS} pixels: {error}"
        ) from error
    except UnidentifiedImageError as error:
        known = ", ".join(IMAGE_FORMATS)
        raise ValueError(f"it cannot be decoded: it is none of {known}") from error
    except DECODE_ERRORS as error:
        raise ValueError(f"it cannot be decoded: {error or type(error).__name__}") from error
    raise ValueError(
        f"it claims {claimed[0]} x {claimed[1]} pixels, above the limit of {MAX_IMAGE_PIXELS}; "
        "shrink it or leave it out"
    )


def _to_square(image: Image.Image, pixels: int) -> NDArray[np.uint8]:
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


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """Where the images of a products table come from, read chunk by chunk."""

    products: pl.DataFrame
    pixels: int
    root: Path
    present_P: NDArray[np.bool_]

    def decode(self, rows: slice) -> NDArray[np.uint8]:
        """Images of some rows, (N, S, S, 3)."""
        values = self.products["image"][rows].to_list()
        pixel_NSS3 = np.zeros((len(values), self.pixels, self.pixels, 3), np.uint8)
        for at in np.flatnonzero(self.present_P[rows]):
            source = values[at] if isinstance(values[at], bytes) else self.root / values[at]
            try:
                pixel_NSS3[at] = _decode(source, self.pixels)
            except ValueError as error:
                row = rows.start + int(at)
                name = self.products["product_id"][row]
                shown = f" ({source})" if isinstance(source, Path) else ""
                raise ValueError(f"image of product {name!r}, row {row}{shown}: {error}") from error
        return pixel_NSS3

    def digest(self, rows: slice) -> str:
        """Digest of what the pixels of some rows depend on; files count by size and time."""
        # Decoders change between versions, by a bit here and there.
        digest = hashlib.sha256(f"{self.pixels} {self.root.resolve()} {PIL.__version__}".encode())
        for value in self.products["image"][rows].to_list():
            if isinstance(value, str) and value:
                path = self.root / value
                state = path.stat() if path.is_file() else None
                mark = f"{path} {state.st_size} {state.st_mtime_ns}" if state else str(path)
                value = mark.encode()
            digest.update(hashlib.sha256(value or b"").digest())
        return digest.hexdigest()


def _present(products: pl.DataFrame) -> NDArray[np.bool_]:
    image_P = products["image"]
    if image_P.dtype == pl.Binary:
        sizes = image_P.bin.size()
    elif image_P.dtype == pl.String:
        sizes = image_P.str.len_bytes()
    elif image_P.dtype == pl.Null:
        return np.zeros(len(products), bool)
    else:
        raise ValueError(
            f"the products column image has type {image_P.dtype}; it must hold encoded bytes "
            "(Binary) or paths (String)"
        )
    return (sizes.fill_null(0) > 0).to_numpy().astype(bool)


@contextmanager
def _silent_pillow() -> Iterator[None]:
    """Keep Pillow from warning: about bombs, refused here, and about metadata that is not read.

    Entered once around all threads, because warning filters belong to the whole process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield
