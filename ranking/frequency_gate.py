"""A gate between what an id has learned and what its content says, by how often it was seen.

The embedding of a product that training showed ten thousand times knows more than any vector; that
of a new one knows nothing. The gate learns where between them to trust which.

Shape letters: B batch, N rows, V vocabulary rows, D size of the given vectors, E width of an id
embedding.

Source: Singh et al. 2023, arXiv:2306.08121, on content alone losing what ids memorise; gating the
one against the other as in SID-Coord, arXiv:2604.10471. The form of the gate is ours.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class FrequencyGate(nn.Module):
    """Mixes ``g * id + (1 - g) * W v`` with ``g = sigmoid(slope * z + bias)``.

    ``z`` is the standardised log count of the id on training rows, and ``v`` the product's
    vector; one slope and bias for each of the E numbers. Without a vector the content is zero.

    Args:
        rows: V.
        vector_dim: D.
        width: E.
    """

    z_V: Tensor

    def __init__(self, rows: int, vector_dim: int, width: int) -> None:
        super().__init__()
        self.content = nn.Linear(vector_dim, width, bias=False)
        self.slope_E = nn.Parameter(torch.ones(width))
        self.bias_E = nn.Parameter(torch.zeros(width))
        self.register_buffer("z_V", torch.zeros(rows))

    def set_counts(self, id_N: NDArray[np.int32]) -> None:
        """Count the ids of the training rows, once."""
        log_count_V = np.log1p(np.bincount(id_N, minlength=len(self.z_V)))
        # The out-of-vocabulary row stands for many products; none of them was seen.
        log_count_V[0] = 0.0
        deviation = float(log_count_V.std()) or 1.0
        self.z_V.copy_(torch.from_numpy((log_count_V - log_count_V.mean()) / deviation))

    def share_of_id(self, id_B: Tensor) -> Tensor:
        """Return g, the weight of the id's own embedding, shape (B, E)."""
        return torch.sigmoid(self.z_V[id_B.long()][:, None] * self.slope_E + self.bias_E)

    def forward(self, id_B: Tensor, embedded_BE: Tensor, product_BD: Tensor) -> Tensor:
        """Return the mixture, shape (B, E)."""
        share_BE = self.share_of_id(id_B)
        return share_BE * embedded_BE + (1 - share_BE) * self.content(product_BD)
