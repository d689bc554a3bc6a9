"""What bending a model's scores does to an auction, with the model's order and AUC untouched.

Rank and price read the size of a score. A model that overbids its own probabilities can show a
lift in clicks, revenue or welfare that has nothing to do with knowing more; the panel shows how
large such lifts are, for each arm against itself.

Shape letters: R requests, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

DISTORTIONS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "pCTR^1.5": lambda p: p**1.5,
    "pCTR^0.5": lambda p: p**0.5,
    "pCTR x 2": lambda p: p * 2.0,
    "pCTR x 0.5": lambda p: p * 0.5,
    "logit x 1.5 + 0.5": lambda p: expit(1.5 * logit(np.clip(p, 1e-12, 1 - 1e-12)) + 0.5),
}
"""Strictly increasing functions of a probability; twice a probability may pass 1."""


@dataclass(frozen=True, kw_only=True)
class DistortionRow:
    """One arm's scores bent in one way, against the same arm's scores as they are."""

    arm: str
    """control or treatment."""
    distortion: str
    """Name in ``DISTORTIONS``."""
    raw: dict[str, float]
    """True lift of each metric over the undistorted model: of miscalibration alone."""
    gated: dict[str, float]
    """The same behind the calibration gate: nothing, if the gate holds."""
