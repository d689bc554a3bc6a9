"""Product vectors of earlier batches, kept as further negatives of later ones.

Shape letters: Q places of the bank, K those that are filled, M products of a batch, E embedding
size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProductBank(nn.Module):
    """A ring of product vectors with the catalogue row of each.

    It begins empty, and what is not filled is never handed out. Rows are kept because a product in
    the bank may be a known positive of a later query, and is then no negative of it.
    """

    vector_QE: Tensor
    row_Q: Tensor
    filled_Q: Tensor
    next: Tensor

    def __init__(self, places: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("vector_QE", torch.zeros(places, dim))
        self.register_buffer("row_Q", torch.zeros(places, dtype=torch.int64))
        self.register_buffer("filled_Q", torch.zeros(places, dtype=torch.bool))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.row_Q)

    def keys(self) -> tuple[Tensor, Tensor]:
        """The vectors that are there, (K, E), without gradient, and their rows, (K,)."""
        return self.vector_QE[self.filled_Q], self.row_Q[self.filled_Q]

    @torch.no_grad()
    def push_(self, vector_ME: Tensor, row_M: Tensor) -> None:
        """Keep a batch's products in the place of the oldest; of a large batch, its end."""
        places = len(self)
        if not places:
            return
        kept = slice(max(0, len(row_M) - places), len(row_M))
        count = kept.stop - kept.start
        at = (self.next + torch.arange(count, device=self.next.device)) % places
        self.vector_QE[at] = F.normalize(vector_ME[kept].float(), dim=1)
        self.row_Q[at] = row_M[kept].to(self.row_Q.device)
        self.filled_Q[at] = True
        self.next.copy_((self.next + count) % places)
