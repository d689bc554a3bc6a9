"""Random views of images, made on tensors: one resampling and one colour matrix an image.

The defaults suit packshots: no mirror image and no change of hue, because text on a package reads
one way and colour is often an attribute that the title names.

Shape letters: B images, S pixels a side, K numbers drawn for an image.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from embeddings.view_config import ALL_DRAWS, ViewConfig

MOST_ELONGATED = 3.0
"""Height over width of an erased rectangle is at most this, and at least its inverse."""

LUMA = (0.299, 0.587, 0.114)
"""How bright red, green and blue look; ITU-R BT.601."""


def random_views(
    pixel_BSS3: Tensor, generator: torch.Generator, config: ViewConfig | None = None
) -> Tensor:
    """Change each image its own way; ``draw_views`` and ``apply_views`` in one."""
    config = config or ViewConfig()
    return apply_views(pixel_BSS3, draw_views(len(pixel_BSS3), config, generator), config)


def draw_views(count: int, config: ViewConfig, generator: torch.Generator) -> Tensor:
    """Draw what decides the views of ``count`` images.

    Ranks that draw for the whole batch with equal generators and apply their own rows make
    together the views that one rank would make.

    Returns:
        Numbers in [0, 1), shape (count, K), on the generator's device.
    """
    return torch.rand(count, config.draws, generator=generator, device=generator.device)


def apply_views(
    pixel_BSS3: Tensor, draw_BK: Tensor, config: ViewConfig, *, pixels: int | None = None
) -> Tensor:
    """Make the views that were drawn; a view depends on its own image and numbers alone.

    Args:
        pixel_BSS3: Channels last; bytes, or floats in [-2, 2] with mid-grey at 0.
        draw_BK: From ``draw_views`` with the same configuration.
        pixels: Side of the views; that of the images if None.

    Returns:
        Floats, mid-grey at 0; the same shape but for another side.

    Raises:
        ValueError: If the numbers do not fit the images or the configuration.
    """
    if draw_BK.shape != (len(pixel_BSS3), config.draws):
        raise ValueError(
            f"draw_BK has shape {tuple(draw_BK.shape)} where {len(pixel_BSS3)} images need "
            f"({len(pixel_BSS3)}, {config.draws}); was it drawn for another batch or other views?"
        )
    if pixel_BSS3.dtype == torch.uint8:
        pixel_BSS3 = pixel_BSS3.float().div_(63.75).sub_(2.0)
    draw_BK = draw_BK.to(pixel_BSS3.device)
    image_B3SS = pixel_BSS3.permute(0, 3, 1, 2)
    pixels = pixels or pixel_BSS3.shape[1]
    grid_BSS2 = _grid(_placement(draw_BK, config), pixels)
    view_B3SS = F.grid_sample(
        image_B3SS, grid_BSS2, mode="bilinear", padding_mode=config.outside, align_corners=False
    )
    contrast_B = 1 + config.contrast * (2 * draw_BK[:, 3] - 1)
    brightness_B = 2 * config.brightness * (2 * draw_BK[:, 4] - 1)
    if config.saturation or config.hue_degrees:
        matrix_B33 = contrast_B[:, None, None] * _colour_matrix(draw_BK, config)
        shape = view_B3SS.shape
        view_B3SS = torch.baddbmm(
            brightness_B[:, None, None], matrix_B33, view_B3SS.flatten(2)
        ).view(shape)
    else:
        view_B3SS = view_B3SS * contrast_B[:, None, None, None] + brightness_B[:, None, None, None]
    if config.erase:
        hidden_BSS = _erased(draw_BK, config, pixels)
        view_B3SS = view_B3SS.masked_fill(hidden_BSS[:, None], 0.0)
    return view_B3SS.permute(0, 2, 3, 1)


def _placement(draw_BK: Tensor, config: ViewConfig) -> Tensor:
    """Maps from places in the view to places in the image, (B, 2, 3)."""
    scale_B = config.min_scale + (1 - config.min_scale) * draw_BK[:, 0]
    affine_B23 = torch.zeros(len(draw_BK), 2, 3, device=draw_BK.device)
    affine_B23[:, 0, 0] = affine_B23[:, 1, 1] = scale_B
    if config.draws == ALL_DRAWS:
        stretch_B = torch.exp(0.5 * math.log(config.aspect) * (2 * draw_BK[:, 5] - 1))
        angle_B = math.radians(config.rotation_degrees) * (2 * draw_BK[:, 6] - 1)
        mirror_B = torch.where(draw_BK[:, 7] < config.horizontal_flip, -1.0, 1.0)
        width_B, height_B = scale_B * stretch_B * mirror_B, scale_B / stretch_B
        affine_B23[:, 0, 0] = angle_B.cos() * width_B
        affine_B23[:, 0, 1] = -angle_B.sin() * height_B
        affine_B23[:, 1, 0] = angle_B.sin() * width_B
        affine_B23[:, 1, 1] = angle_B.cos() * height_B
    reach_B = (1 - scale_B) + config.shift
    affine_B23[:, :, 2] = (2 * draw_BK[:, 1:3] - 1) * reach_B[:, None]
    return affine_B23


def _grid(affine_B23: Tensor, pixels: int) -> Tensor:
    """Where each pixel of a view lies in its image, as ``F.affine_grid`` to the bit.

    A sum of a row and a column is eight times as fast as its matrix product, which takes as long
    as the sampling.
    """
    centre_S = torch.linspace(-1, 1, pixels, device=affine_B23.device) * (pixels - 1) / pixels
    grid_BSS2 = affine_B23.new_empty(len(affine_B23), pixels, pixels, 2)
    for axis in (0, 1):
        across_BS = affine_B23[:, axis, 0, None] * centre_S
        down_BS = affine_B23[:, axis, 1, None] * centre_S + affine_B23[:, axis, 2, None]
        grid_BSS2[..., axis] = across_BS[:, None, :] + down_BS[:, :, None]
    return grid_BSS2


def _colour_matrix(draw_BK: Tensor, config: ViewConfig) -> Tensor:
    """Saturation after hue, (B, 3, 3); rows sum to 1, so greys stay."""
    device = draw_BK.device
    angle_B = math.radians(config.hue_degrees) * (2 * draw_BK[:, 9] - 1)
    cos_B11, sin_B11 = angle_B.cos()[:, None, None], angle_B.sin()[:, None, None]
    one_33 = torch.eye(3, device=device)
    cross_33 = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=device) / math.sqrt(3)
    hue_B33 = cos_B11 * one_33 + (1 - cos_B11) / 3 + sin_B11 * cross_33
    luma_33 = torch.tensor(LUMA, device=device).expand(3, 3)
    strength_B11 = (1 + config.saturation * (2 * draw_BK[:, 8] - 1))[:, None, None]
    return (strength_B11 * one_33 + (1 - strength_B11) * luma_33) @ hue_B33


def _erased(draw_BK: Tensor, config: ViewConfig, pixels: int) -> Tensor:
    """Which pixels of each view are hidden, (B, S, S)."""
    area_B = config.erase * draw_BK[:, 10]
    ratio_B = torch.exp(math.log(MOST_ELONGATED) * (2 * draw_BK[:, 11] - 1))
    centre_S = (torch.arange(pixels, device=draw_BK.device) + 0.5) / pixels
    inside = []
    height_B = (area_B * ratio_B).sqrt().clamp(max=1.0)
    # A side that the image cuts short is made up for by the other.
    height_B = torch.maximum(height_B, area_B)
    for side_B, place_B in (
        (height_B, draw_BK[:, 12]),
        (area_B / height_B.clamp(min=1e-9), draw_BK[:, 13]),
    ):
        start_B1 = (place_B * (1 - side_B))[:, None]
        inside.append((centre_S >= start_B1) & (centre_S < start_B1 + side_B[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]
