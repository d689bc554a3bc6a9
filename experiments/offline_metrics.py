"""How good a variant is offline, on the test rows.

Shape letters: N impressions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from experiments.slices import test_slices
from experiments.training import Parts, Trained
from ranking.intervals import delong_interval
from ranking.scorecard import click_metrics, sliced_metrics


def mean_over_seeds(trained: list[Trained]) -> NDArray[np.float64]:
    """Return the mean of the seeds' test predictions, shape (N,)."""
    return np.mean([one.p_test_N for one in trained], axis=0)


def offline_metrics(
    parts: Parts, p_test_N: NDArray[np.float64], confidence: float
) -> dict[str, float]:
    """Return every offline measure of one variant's test predictions, slices included.

    Args:
        parts: The impressions; slices are defined by what training rows hold.
        p_test_N: pCTR of the test rows, shape (N,).
        confidence: Of the DeLong interval of the AUC.

    Returns:
        ``auc``, ``auc_low``, ``auc_high``, ``log_loss`` (nats), ``normalized_entropy`` and the rest
        of ``ranking.scorecard``, and the same by slice, such as ``slice.cold_products.auc``.
    """
    test = parts.test
    assert test.label_N is not None
    _, low, high = delong_interval(
        test.label_N, p_test_N, confidence=confidence, cluster_N=test.user_N
    )
    measures = click_metrics(test.label_N, p_test_N, test.user_N)
    measures |= {"auc_low": low, "auc_high": high}
    slices = sliced_metrics(test.label_N, p_test_N, test_slices(parts.train, test), test.user_N)
    return measures | {f"slice.{key}": value for key, value in slices.items()}
