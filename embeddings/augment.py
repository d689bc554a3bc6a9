"""Random views of product images, made on tensors.

No mirror image and no change of hue: text on a package reads one way, and colour is often an
attribute that the title names.

Shape letters: B images, S pixels a side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SCALE = 0.93
"""A view shows at least this share of each side: badges sit in the corners of product images."""
MAX_BRIGHTNESS = 0.15
MAX_CONTRAST = 0.15


def random_views(pixel_BSS3: Tensor, generator: torch.Generator) -> Tensor:
    """Crop, shift, and change brightness and contrast a little, each image its own way.

    Args:
        pixel_BSS3: Floats around zero, channels last.
        generator: Makes the views repeatable.

    Returns:
        The same shape.
    """
    rows, device = len(pixel_BSS3), pixel_BSS3.device
    draw_B5 = torch.rand(rows, 5, generator=generator).to(device)
    scale_B = MIN_SCALE + (1 - MIN_SCALE) * draw_B5[:, 0]
    affine_B23 = torch.zeros(rows, 2, 3, device=device)
    affine_B23[:, 0, 0] = affine_B23[:, 1, 1] = scale_B
    affine_B23[:, :, 2] = (2 * draw_B5[:, 1:3] - 1) * (1 - scale_B)[:, None]
    image_B3SS = pixel_BSS3.permute(0, 3, 1, 2)
    grid = F.affine_grid(affine_B23, list(image_B3SS.shape), align_corners=False)
    view_B3SS = F.grid_sample(
        image_B3SS, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    contrast_B = 1 + MAX_CONTRAST * (2 * draw_B5[:, 3] - 1)
    brightness_B = 2 * MAX_BRIGHTNESS * (2 * draw_B5[:, 4] - 1)
    view_B3SS = view_B3SS * contrast_B[:, None, None, None] + brightness_B[:, None, None, None]
    return view_B3SS.permute(0, 2, 3, 1)
