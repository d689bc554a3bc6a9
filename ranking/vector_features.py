"""The embedding tower's features: the given vectors projected, normalised and crossed.

Shape letters: B batch, D size of the given vectors, K width of the projected vectors, W any width.

Source: Gurjar et al. 2025, arXiv:2504.07110, Figure 3 and its derived features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ranking.dropout import Dropout


class VectorFeatures(nn.Module):
    """Product, query and history vectors made into features: projected, normalised, crossed.

    The cosines are taken between the vectors as given, so what the encoder knew about relevance
    arrives undiluted, and scaled by their own training statistics. One projection serves all
    three vectors, because they live in one space; products of its outputs are a learned cosine.

    Args:
        vector_dim: D.
        projected: K.
        derived: Whether cosines, the history and its products are among the features.
        presence: Whether the masks of missing vectors are.
        dropout: Of the projected features, which could otherwise name a product like an id.
    """

    cosine_mean_2: Tensor
    cosine_deviation_2: Tensor

    def __init__(
        self, vector_dim: int, *, projected: int, derived: bool, presence: bool, dropout: float
    ) -> None:
        super().__init__()
        self.derived = derived
        self.presence = presence
        self.project = nn.Linear(vector_dim, projected, bias=False)
        self.dropout = Dropout(dropout)
        self.register_buffer("cosine_mean_2", torch.zeros(2))
        self.register_buffer("cosine_deviation_2", torch.ones(2))
        self.crossed_width, self.plain_width = vector_widths(
            projected, derived=derived, presence=presence
        )

    def set_cosine_statistics(self, mean_2: Tensor, deviation_2: Tensor) -> None:
        """Fix the scale of the cosines, from training rows that have both vectors."""
        self.cosine_mean_2.copy_(mean_2)
        self.cosine_deviation_2.copy_(deviation_2)

    def cosines(
        self, product_BD: Tensor, query_BD: Tensor, history_BD: Tensor, present_B3: Tensor
    ) -> Tensor:
        """Return scaled cos(p, q) and cos(p, h), 0 (the mean) where absent, shape (B, 2)."""
        cosine_B2 = torch.stack(
            [_cosine(product_BD, query_BD), _cosine(product_BD, history_BD)], dim=1
        )
        scaled_B2 = (cosine_B2 - self.cosine_mean_2) / self.cosine_deviation_2
        return scaled_B2 * present_B3[:, :1] * present_B3[:, 1:]

    def forward(
        self, product_BD: Tensor, query_BD: Tensor, history_BD: Tensor, present_B3: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the crossed features, (B, crossed_width), and the plain ones, (B, plain_width)."""
        product_BK = _unit_variance(self.project(product_BD))
        query_BK = _unit_variance(self.project(query_BD))
        crossed = [product_BK, query_BK, product_BK * query_BK]
        plain = []
        if self.derived:
            history_BK = _unit_variance(self.project(history_BD))
            crossed += [history_BK, product_BK * history_BK]
            plain.append(self.cosines(product_BD, query_BD, history_BD, present_B3))
        if self.presence:
            plain.append(present_B3)
        plain_BW = torch.cat(plain, dim=1) if plain else product_BD[:, :0]
        return self.dropout(torch.cat(crossed, dim=1)), plain_BW


def vector_widths(projected: int, *, derived: bool, presence: bool) -> tuple[int, int]:
    """Return the widths of the crossed and the plain features of ``VectorFeatures``."""
    return (5 if derived else 3) * projected, (2 if derived else 0) + (3 if presence else 0)


def _cosine(a_BD: Tensor, b_BD: Tensor) -> Tensor:
    """Cosine of each pair of rows, 0 where either is zero, shape (B,)."""
    return (functional.normalize(a_BD.float()) * functional.normalize(b_BD.float())).sum(1)


def _unit_variance(x_BK: Tensor) -> Tensor:
    """Rows of root mean square 1 (or zero), shape (B, K)."""
    return functional.normalize(x_BK.float()) * x_BK.shape[1] ** 0.5
