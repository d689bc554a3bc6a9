"""Views of an image whose vectors are averaged when it is embedded: dearer, and steadier.

Shape letters: B images, S pixels a side.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from embeddings.stage1_config import ImageViews

CROP = 0.8
"""Side of a crop as a share of the image's."""


def read_pixels(pixels: int, views: ImageViews) -> int:
    """Side that images are wanted at by an encoder of ``pixels``: where crops are read, so large
    that a crop needs no enlarging."""
    return round(pixels / CROP) if views == "crops" else pixels


def views_of(pixel_BSS3: Tensor, views: ImageViews, pixels: int) -> list[Tensor]:
    """What an encoder reads of images: each whole, and further views.

    Args:
        pixel_BSS3: Images, channels last, best of ``read_pixels``.
        views: "one" is the image whole, "mirror" has two, "crops" twelve.
        pixels: Side of the views.

    Returns:
        The whole images first; each of shape (B, pixels, pixels, 3).
    """
    whole_BSS3 = resized(pixel_BSS3, pixels)
    if views == "one":
        return [whole_BSS3]
    both = [whole_BSS3, whole_BSS3.flip(2)]
    if views == "mirror":
        return both
    cropped = [crop for image in (pixel_BSS3, pixel_BSS3.flip(2)) for crop in _crops(image, pixels)]
    return both + cropped


def resized(pixel_BSS3: Tensor, pixels: int) -> Tensor:
    """Square images at another size, what is made smaller being averaged over."""
    if pixel_BSS3.shape[1] == pixels:
        return pixel_BSS3
    return F.interpolate(
        pixel_BSS3.permute(0, 3, 1, 2),
        (pixels, pixels),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    ).permute(0, 2, 3, 1)


def _crops(pixel_BSS3: Tensor, pixels: int) -> list[Tensor]:
    own = pixel_BSS3.shape[1]
    side = round(CROP * own)
    last, middle = own - side, (own - side) // 2
    corners = [(middle, middle), (0, 0), (0, last), (last, 0), (last, last)]
    return [
        resized(pixel_BSS3[:, top : top + side, left : left + side], pixels)
        for top, left in corners
    ]
