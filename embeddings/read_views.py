"""Views of an image whose vectors are averaged when it is embedded: dearer, and steadier.

Shape letters: B images, S pixels a side.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

ImageViews = Literal["one", "mirror", "crops"]
"""The image; also its mirror image; or both with the centre and the four corners of each."""

CROP = 0.8
"""Side of a crop as a share of the image's."""


def more_views(pixel_BSS3: Tensor, views: ImageViews) -> list[Tensor]:
    """The views beside the image itself, each of its shape.

    Args:
        pixel_BSS3: Images, channels last.
        views: "one" has none, "mirror" one, "crops" eleven.
    """
    if views == "one":
        return []
    mirror_BSS3 = pixel_BSS3.flip(2)
    if views == "mirror":
        return [mirror_BSS3]
    cropped = [crop for image in (pixel_BSS3, mirror_BSS3) for crop in _crops(image)]
    return [mirror_BSS3, *cropped]


def _crops(pixel_BSS3: Tensor) -> list[Tensor]:
    pixels = pixel_BSS3.shape[1]
    side = round(CROP * pixels)
    last, middle = pixels - side, (pixels - side) // 2
    corners = [(middle, middle), (0, 0), (0, last), (last, 0), (last, last)]
    return [
        F.interpolate(
            pixel_BSS3[:, top : top + side, left : left + side].permute(0, 3, 1, 2),
            (pixels, pixels),
            mode="bilinear",
            align_corners=False,
        ).permute(0, 2, 3, 1)
        for top, left in corners
    ]
