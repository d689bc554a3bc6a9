"""How much each row counts in training.

Shape letters: N rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.examples import Examples


def sample_weights(train: Examples) -> NDArray[np.float32] | None:
    """Return the weights of training rows scaled to a mean of 1, shape (N,); None for all alike.

    The scale is fixed, so that the rates of a training mean the same with and without weights. A
    row of weight 2 counts like two rows.

    Raises:
        ValueError: If a weight is negative or not finite, or all are zero.
    """
    weight_N = train.weight_N
    if weight_N is None:
        return None
    bad_N = ~np.isfinite(weight_N) | (weight_N < 0)
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise ValueError(
            f"sample weight in row {row} is {weight_N[row]}; must be finite and 0 or more "
            f"({int(bad_N.sum())} such rows)"
        )
    mean = float(weight_N.mean(dtype=np.float64))
    if mean == 0:
        raise ValueError("all sample weights are 0; is the column 'sample_weight' filled?")
    return (weight_N / mean).astype(np.float32)
