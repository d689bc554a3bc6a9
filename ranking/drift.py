"""Calibration that follows a click rate that drifts, by the newest outcomes that are known.

A calibrator fitted once is right for the weeks it was fitted on. Where clicks come back while the
model serves, its odds can be scaled by how many clicks there were of late against how many it
expected.

Shape letters: N impressions, T moments.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ranking.metrics import check_probabilities


def follow_drift(
    label_N: ArrayLike,
    p_click_N: ArrayLike,
    moment_N: ArrayLike,
    *,
    window: int,
    prior_clicks: float = 20.0,
) -> NDArray[np.float64]:
    """Scale the odds of each prediction by clicks over expected clicks of the moments before it.

    The factor at moment t is ``(clicks + a) / (expected + a)`` over the moments t - window to
    t - 1, with ``a = prior_clicks``; the first moments are so left as they are. Labels of a moment
    never touch its own predictions. Odds stay odds whatever the factor, but move a rate by a little
    less than it: right for corrections of some percent.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        p_click_N: Calibrated predictions, shape (N,), within [0, 1].
        moment_N: When each was served: 0, 1, ... (a page, an hour), shape (N,), in any order.
        window: Moments that count; short ones follow fast and add noise.
        prior_clicks: How many clicks must have been seen for half of a change to be believed.

    Returns:
        Predictions whose sum follows that of the clicks, shape (N,).

    Raises:
        ValueError: If labels or predictions are invalid, moments are not whole numbers from 0,
            ``window`` is below 1 or ``prior_clicks`` is not positive.
    """
    label_N, p_click_N = check_probabilities(label_N, p_click_N)
    moment_N = np.asarray(moment_N)
    if not np.issubdtype(moment_N.dtype, np.integer) or (len(moment_N) and moment_N.min() < 0):
        raise ValueError("moment_N must hold whole numbers from 0: 0 is served first, 1 next")
    if window < 1 or not prior_clicks > 0:
        raise ValueError(
            f"window is {window} and prior_clicks {prior_clicks}; the window must be at least 1 "
            "and prior_clicks positive"
        )
    moments = int(moment_N.max()) + 1 if len(moment_N) else 0
    clicks_T, expected_T = (
        np.append(0.0, np.cumsum(np.bincount(moment_N, value_N, minlength=moments)))
        for value_N in (label_N, p_click_N)
    )
    now_T = np.arange(moments)
    from_T = np.maximum(now_T - window, 0)
    clicked_T = clicks_T[now_T] - clicks_T[from_T]
    factor_T = (clicked_T + prior_clicks) / (expected_T[now_T] - expected_T[from_T] + prior_clicks)
    odds_N = p_click_N * factor_T[moment_N]
    return odds_N / (odds_N + 1 - p_click_N)
