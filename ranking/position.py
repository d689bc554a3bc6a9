"""What of a click is the slot's: a shallow tower that is there at training and absent at scoring.

Logged clicks mix what shoppers want with where it stood. A tower of its own for the position takes
the second part on itself while the network learns; scores are then made without it, for the
slot is not known before the ranking.

Shape letters: N rows, B batch, S slots.

Source: Zhao et al. 2019, "Recommending What Video to Watch Next" (RecSys), section 4.4, the
shallow tower and its dropout; Guo et al. 2019, "PAL" (RecSys), on why the position as an ordinary
feature with a made-up value at scoring does worse.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

POSITION_COLUMN = "position"
"""Name of the column that the tower adds to the network's integers."""

# Pulls the rates of slots with few impressions to the mean, in impressions.
_SMOOTHING = 20.0


class PositionTower(nn.Module):
    """Adds one number a slot to the logit while training, and slot 0's, "unknown", at scoring.

    Args:
        slots: The largest position that has a number of its own; those beyond share it.
        dropout: Share of training rows whose position is hidden, from which the number of
            "unknown" is learned, so that scores without position stay calibrated.
    """

    def __init__(self, slots: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.logit = nn.Embedding(slots + 1, 1)
        nn.init.zeros_(self.logit.weight)

    def set_rates(self, position_N: NDArray[np.int32], label_N: NDArray[np.float32]) -> None:
        """Start from the log odds of each slot's click rate against the mean of all."""
        slots = self.logit.num_embeddings
        shown_S = np.bincount(position_N, minlength=slots)
        clicks_S = np.bincount(position_N, label_N, minlength=slots)
        mean = float(label_N.mean())
        rate_S = (clicks_S + _SMOOTHING * mean) / (shown_S + _SMOOTHING)
        shift_S = np.log(rate_S / (1 - rate_S)) - np.log(mean / (1 - mean))
        shift_S[0] = 0.0
        with torch.no_grad():
            self.logit.weight[:, 0] = torch.from_numpy(shift_S)

    def forward(self, position_B: Tensor) -> Tensor:
        """Return what is added to the logit, shape (B, 1)."""
        if self.training:
            hidden_B = torch.rand(len(position_B)) < self.dropout
            position_B = torch.where(hidden_B, 0, position_B)
        else:
            position_B = torch.zeros_like(position_B)
        return self.logit(position_B)


def position_column(position_N: NDArray[np.int32] | None, rows: int, slots: int) -> NDArray:
    """Return the positions as the tower takes them, shape (N, 1): 0 unknown, at most ``slots``."""
    if position_N is None:
        return np.zeros((rows, 1), np.int32)
    return np.clip(position_N, 0, slots).astype(np.int32)[:, None]
