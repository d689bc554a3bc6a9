"""What frozen encoders say of products, and the projection of it that stage 2 trains.

Shape letters: P products, B some of them, D width of [ENC], T width of a text's vector, C image
width, X = D + T + C, E embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ProductFeatures:
    """What the frozen encoders say of products, before any projection."""

    enc_PD: Tensor
    """Multimodal encoder at [ENC]."""
    text_PT: Tensor
    """Text encoder, as it is read; zeros without text."""
    image_PC: Tensor
    """Image encoder, as it is read; zeros without image."""
    has_text_P: Tensor
    has_image_P: Tensor

    def take(self, row_B: Tensor) -> ProductFeatures:
        """The products ``row_B``, in that order."""
        return ProductFeatures(**{name: part[row_B] for name, part in vars(self).items()})

    def parts(self) -> tuple[Tensor, Tensor]:
        """Layer-normalised blocks side by side, absent ones zero, and a mask of what is present.

        Returns:
            Both of shape (P, D + T + C).
        """
        blocks: list[Tensor] = []
        masks: list[Tensor] = []
        for part, present in (
            (self.enc_PD, self.has_text_P | self.has_image_P),
            (self.text_PT, self.has_text_P),
            (self.image_PC, self.has_image_P),
        ):
            mask = present[:, None].to(part.dtype).expand_as(part)
            blocks.append(F.layer_norm(part, part.shape[-1:]) * mask)
            masks.append(mask)
        return torch.cat(blocks, dim=1), torch.cat(masks, dim=1)


class ProductProjection(nn.Module):
    """Frozen product features to the space shared with queries.

    Every feature is standardised over the catalogue first. Frozen encoders give all products much
    the same vector plus a little; only the little tells them apart.
    """

    centre_X: Tensor
    scale_X: Tensor

    def __init__(self, inputs: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("centre_X", torch.zeros(inputs))
        self.register_buffer("scale_X", torch.ones(inputs))
        self.linear = nn.Linear(inputs, dim)
        self.up = nn.Linear(inputs, hidden) if hidden else None
        self.down = nn.Linear(hidden, dim) if hidden else None

    @torch.no_grad()
    def fit_(self, features: ProductFeatures) -> None:
        """Take centre and scale of each feature over the products that have it."""
        part_PX, present_PX = features.parts()
        count_X = present_PX.sum(0).clamp_min(1)
        centre_X = part_PX.sum(0) / count_X
        spread_X = ((part_PX - centre_X).square() * present_PX).sum(0) / count_X
        self.centre_X.copy_(centre_X)
        self.scale_X.copy_(spread_X.sqrt().clamp_min(1e-4))

    def standardise(self, features: ProductFeatures) -> Tensor:
        """What ``forward`` takes: standardised features, zeros where absent, (P, X)."""
        part_PX, present_PX = features.parts()
        return (part_PX - self.centre_X) / self.scale_X * present_PX

    def forward(self, input_PX: Tensor) -> Tensor:
        """Standardised features to vectors, (P, E)."""
        out_PE = self.linear(input_PX)
        if self.up is not None and self.down is not None:
            out_PE = out_PE + self.down(F.gelu(self.up(input_PX)))
        return out_PE
