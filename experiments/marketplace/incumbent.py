"""The system that served the logged requests: a rough click model, and where it puts products.

Shape letters: R requests, K candidates, Q queries, M pool size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from experiments.marketplace.clicks import (
    INCUMBENT_SALT,
    class_intercepts,
    hash_normal,
    product_logit,
)
from experiments.marketplace.examination import examination
from experiments.marketplace.state import WorldState

# Auctions imagined per query for the expected examination.
AUCTIONS = 48


def incumbent_score(
    state: WorldState,
    query_R: NDArray[np.integer],
    candidate_RK: NDArray[np.integer],
    class_RK: NDArray[np.integer],
) -> NDArray[np.float64]:
    """Return the incumbent's predicted click probability, shape (R, K).

    Its log-odds correlate with the true ones (of the average shopper) by
    ``incumbent_correlation`` and are as wide; the rest is noise fixed for query and product.
    """
    parameters = state.parameters
    product = np.maximum(candidate_RK, 0)
    true_RK = product_logit(state, query_R, product, class_RK)
    intercept_3, shares = class_intercepts(parameters), np.array(parameters.pool_shares)
    centre = float(shares @ intercept_3)
    between = float(shares @ (intercept_3 - centre) ** 2)
    spread = np.sqrt(between + parameters.quality_sd**2 + parameters.fit_sd**2)
    known = parameters.incumbent_correlation
    noise_RK = hash_normal(query_R[:, None], product, state.seed, INCUMBENT_SALT)
    guess_RK = known * (true_RK - centre) + np.sqrt(1 - known**2) * spread * noise_RK
    return expit(centre + guess_RK)


def expected_examination(state: WorldState, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return how likely a shown product is examined, averaged over the slots it might get.

    This is what query and product tell about the position, and so the most that a position-blind
    model can know of it. Each query's auction is imagined ``AUCTIONS`` times with all products of
    its pool launched, as they are by the end of the log.

    Returns:
        Probabilities for every query and place in its pool, shape (Q, M).
    """
    parameters = state.parameters
    look_S = examination(parameters, parameters.slots)
    mean_QM = np.empty(state.pool_QM.shape)
    # A bounded number of queries at once bounds memory.
    for first in range(0, len(mean_QM), 512):
        rows = np.arange(first, min(first + 512, len(mean_QM)))
        mean_QM[rows] = _imagine(state, rows, look_S, rng)
    explored = parameters.exploration
    return (1 - explored) * mean_QM + explored * look_S.mean()


def _imagine(
    state: WorldState,
    query_R: NDArray[np.int64],
    look_S: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Mean examination given being shown, shape (R, M), for the queries of these rows."""
    parameters = state.parameters
    pool_RM, slots = state.pool_QM[query_R], len(look_S)
    absent_RM = pool_RM < 0
    score_RM = incumbent_score(state, query_R, pool_RM, state.class_QM[query_R])
    log_rank_RM = np.log(score_RM * state.bid_micros_P[pool_RM])
    wide = min(parameters.candidates, pool_RM.shape[1])
    seen_RM, shown_RM = np.zeros(pool_RM.shape), np.zeros(pool_RM.shape)
    look_J = np.concatenate([look_S, np.zeros(wide + 1)])
    for _ in range(AUCTIONS):
        wish_RM = state.exposure_P[pool_RM] + rng.gumbel(size=pool_RM.shape)
        wish_RM[absent_RM] = -np.inf
        rival_RK = np.argpartition(-wish_RM, wide - 1, axis=1)[:, :wide]
        rank_RM = log_rank_RM + parameters.bid_jitter_sd * rng.normal(size=pool_RM.shape)
        rank_RM[absent_RM] = -np.inf
        rival_rank_RK = np.take_along_axis(rank_RM, rival_RK, axis=1)
        ahead_RM = (rival_rank_RK[:, None, :] > rank_RM[:, :, None]).sum(axis=2)
        seen_RM += look_J[ahead_RM]
        shown_RM += ahead_RM < slots
    # Never shown in any: if it ever is, it is most likely last.
    return np.where(shown_RM > 0, seen_RM / np.maximum(shown_RM, 1), look_S[-1])
