"""Dropout that costs little on processors.

There torch draws its masks one number an element, in one thread: a fifth of a step of the default
network. Here 64 random bits decide about four elements, and which they are is a function of torch's
generator alone, whatever the machine, the threads and the precision.

Shape letters: N elements.

Source: Srivastava et al. 2014, "Dropout", JMLR 15, scaled while training; numpy's SFC64.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

_LEVELS = 2**16
"""Of a share: it is rounded to a multiple of one over this, and the scale follows."""


class Dropout(nn.Dropout):
    """Zeros a share ``p`` of the elements while training and scales the others by ``1 / (1 - p)``.

    On other devices it is torch's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return as many elements, some of them zero."""
        if not self.training or self.p == 0.0 or input.device.type != "cpu":
            return super().forward(input)
        return (input * scale_of(self.p)).masked_fill(drawn(input.shape, self.p), 0.0)


def drawn(shape: Sequence[int], share: float) -> Tensor:
    """Return which elements are dropped, drawn from torch's generator."""
    count = prod(shape)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    bits_N = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16)[:count]
    lowest = -(_LEVELS // 2)
    return (torch.from_numpy(bits_N) < lowest + _dropped_levels(share)).view(tuple(shape))


def scale_of(share: float) -> float:
    """Return what the elements that are kept are multiplied by."""
    return _LEVELS / (_LEVELS - _dropped_levels(share))


def _dropped_levels(share: float) -> int:
    return min(round(share * _LEVELS), _LEVELS - 1)
