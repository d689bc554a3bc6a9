"""States of frozen text layers, computed once and looked up at every step.

Shape letters: T tokens of all texts end to end, B rows of a batch, L tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embeddings.model import EMBED_BATCH, DashClip
from embeddings.text import TokenTable

CACHE_LIMIT_BYTES = 2 * 2**30
"""Above this the states are computed again at every step instead of being kept."""


class CachedStates:
    """What the layers from ``depth`` on are given, for each text of a table.

    Args:
        model: Its text encoder's first ``depth`` layers must stay as they are.
        tokens: The texts.
        depth: Layers whose outcome is kept.
        token_budget: Compute in batches of so many tokens, see ``TokenTable.by_budget``; None
            takes ``EMBED_BATCH`` texts whatever their length.
    """

    def __init__(
        self,
        model: DashClip,
        tokens: TokenTable,
        depth: int,
        *,
        token_budget: int | None = None,
    ) -> None:
        self.model, self.tokens, self.depth = model, tokens, depth
        self._token_budget = token_budget
        self.state_TD: Tensor | None = None
        size = len(tokens.id_T) * model.architecture.text.width * model.precision.dtype.itemsize
        if size <= CACHE_LIMIT_BYTES:
            self.state_TD = self._compute_all()

    def batch(self, row_B: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, L, D) and mask (B, L) of some texts, padded to the longest of them."""
        if self.state_TD is None:
            id_BL, attend_BL = self.tokens.padded(row_B)
            return self._compute(id_BL, attend_BL), attend_BL.to(self.model.device)
        position_BL, attend_BL = self.tokens.positions(row_B)
        state_BLD = self.state_TD.index_select(0, position_BL.flatten()).unflatten(
            0, position_BL.shape
        )
        return state_BLD.to(self.model.device), attend_BL.to(self.model.device)

    def _compute_all(self) -> Tensor:
        width = self.model.architecture.text.width
        state_TD = torch.empty(len(self.tokens.id_T), width, dtype=self.model.precision.dtype)
        for row_B in self.tokens.batches(EMBED_BATCH, self._token_budget):
            id_BL, attend_BL = self.tokens.padded(row_B)
            position_BL, _ = self.tokens.positions(row_B)
            state_BLD = self._compute(id_BL, attend_BL).cpu()
            state_TD[position_BL[attend_BL]] = state_BLD[attend_BL].to(state_TD.dtype)
        return state_TD

    @torch.no_grad()
    def _compute(self, id_BL: Tensor, attend_BL: Tensor) -> Tensor:
        model = self.model
        id_BL, attend_BL = id_BL.to(model.device), attend_BL.to(model.device)
        with model.precision.autocast(model.device):
            return model.text.run(model.text.embed(id_BL), attend_BL, first=0, last=self.depth)
