"""Target attention over the history: which earlier products speak for this one.

The mean of a history says what a shopper likes in general; attention weighs each product of it by
how it bears on the candidate.

Shape letters: B batch, L history length, P catalogue rows, D size of the given vectors, E width of
an id embedding, K width of what stands for one product.

Source: Zhou et al. 2018 (DIN), arXiv:1706.06978, section 4.3 and equation 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from features.embedding_join import Vectors
from features.examples import Examples
from ranking.layers import mlp_of


class ActivationUnit(nn.Module):
    """Weighs each product h of a history by a small network over [h, p, h - p, h * p].

    Args:
        width: K.
        mlp: Its hidden layers.
        softmax: Whether weights sum to 1. The paper's do not: many fitting purchases then count
            for more than one.
    """

    def __init__(self, width: int, mlp: Sequence[int], *, softmax: bool) -> None:
        super().__init__()
        self.softmax = softmax
        self.mlp = mlp_of(4 * width, mlp, 0.0)
        self.weight = nn.Linear(mlp[-1] if mlp else 4 * width, 1)

    def forward(self, product_BK: Tensor, history_BLK: Tensor, present_BL: Tensor) -> Tensor:
        """Return the weighted sum of the history, zero where it is empty, shape (B, K)."""
        product_BLK = product_BK[:, None].expand_as(history_BLK)
        crossed = [history_BLK, product_BLK, history_BLK - product_BLK, history_BLK * product_BLK]
        weight_BL = self.weight(self.mlp(torch.cat(crossed, dim=2))).squeeze(2)
        if self.softmax:
            # An all-masked row would be NaN; the mask after the softmax makes it zero instead.
            weight_BL = weight_BL.masked_fill(present_BL == 0, -1e4).softmax(dim=1)
        return torch.einsum("bl,blk->bk", weight_BL * present_BL, history_BLK)


class HistoryAttention(nn.Module):
    """The history as the candidate sees it, from id embeddings or from projected vectors.

    Products come as row numbers, 0 for none, so that a batch holds no vectors. Vectors are handed
    over by ``set_vectors`` and are no part of the weights.

    Args:
        ids: Table of the products' own embeddings; None to use vectors.
        vector_dim: D; None to use ids.
        columns: 1 + L, the integers that it reads.
        width: K (E where there are ids).
        mlp, softmax: Of the ``ActivationUnit``.
    """

    product_PD: Tensor
    present_P: Tensor

    def __init__(
        self,
        ids: nn.Module | None,
        vector_dim: int | None,
        *,
        columns: int,
        width: int,
        mlp: Sequence[int],
        softmax: bool,
    ) -> None:
        super().__init__()
        self.ids = ids
        self.columns = columns
        self.project = None if vector_dim is None else nn.Linear(vector_dim, width, bias=False)
        self.unit = ActivationUnit(width, mlp, softmax=softmax)
        self.out_width = 2 * width
        self.register_buffer("product_PD", torch.zeros(1, vector_dim or 0), persistent=False)
        self.register_buffer("present_P", torch.zeros(1), persistent=False)

    def set_vectors(self, vectors: Vectors) -> None:
        """Look products up in these from now on; row 0 stays "none"."""
        known_PD = np.where(vectors.product_present_P[:, None], vectors.product_PD, 0)
        zero_1D = np.zeros((1, known_PD.shape[1]))
        self.product_PD = torch.from_numpy(np.concatenate([zero_1D, known_PD]).astype("f4"))
        self.present_P = torch.from_numpy(np.append(0, vectors.product_present_P).astype("f4"))

    def forward(self, row_BL: Tensor) -> Tensor:
        """Return the weighted history and its product with the candidate, shape (B, 2K).

        Args:
            row_BL: Rows of the candidate, then of the history; 0 is none.
        """
        batch, length = row_BL.shape
        if self.ids is not None:
            embedded_BLK = self.ids(row_BL.reshape(-1, 1)).view(batch, length, -1)
            present_BL = (row_BL > 0).float()
        else:
            assert self.project is not None
            row_BL = row_BL.long()
            # Unit rows of the vectors as given; so that weights of a common scale learn well,
            # their projections have about unit variance too.
            scale = self.project.in_features**0.5
            embedded_BLK = self.project(self.product_PD[row_BL] * scale)
            present_BL = self.present_P[row_BL]
        product_BK = embedded_BLK[:, 0]
        pooled_BK = self.unit(product_BK, embedded_BLK[:, 1:], present_BL[:, 1:])
        return torch.cat([pooled_BK, product_BK * pooled_BK], dim=1)


def history_rows(train: Examples) -> int:
    """Return how many rows an id table for these products needs, "none" included."""
    newest = max((int(a.max()) for a in (train.product_N, train.history_NL) if a.size), default=-1)
    return newest + 2


def history_columns(examples: Examples, rows: int | None) -> tuple[list[str], NDArray[np.int32]]:
    """Return names and rows of the candidate and its history, 0 for none, shape (N, 1 + L).

    Args:
        examples: N impressions.
        rows: Rows of the id table; products beyond it were not there at training and are none.
            None where vectors are used.
    """
    row_NL = np.concatenate([examples.product_N[:, None], examples.history_NL], axis=1) + 1
    if rows is not None:
        row_NL = np.where(row_NL < rows, row_NL, 0)
    names = ["history.candidate", *(f"history.{n}" for n in range(row_NL.shape[1] - 1))]
    return names, row_NL.astype(np.int32)
