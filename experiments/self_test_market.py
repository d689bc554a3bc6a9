"""A small marketplace for the self-test: the real auction and shoppers, new ones each experiment.

The full world costs minutes a copy, because it draws images. Nothing of that enters an auction, so
here products, queries and pools are drawn directly, and everything after that (users, requests,
bids, auctions, clicks, purchases) is ``experiments.marketplace`` itself.

Shape letters: P products, Q queries, M pool size, R requests, K candidates, U users.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from experiments.ab_counts import Counts, Draws, expected_counts, observed_counts
from experiments.marketplace.clicks import hash_normal, product_logit
from experiments.marketplace.market import hidden_market
from experiments.marketplace.parameters import WorldParameters
from experiments.marketplace.requests import DAY_US, Requests
from experiments.marketplace.shoppers import make_shoppers
from experiments.marketplace.state import WorldState
from experiments.marketplace.world import World

PRODUCTS, QUERIES, POOL = 200, 100, 10
REQUESTS = 12_000
"""Of the experiment, of the pre-period, and of each period that the truth is taken over."""
TRUTH_PERIODS = 4
PARAMETERS = WorldParameters(
    slots=4,
    examination=(1.0, 0.7, 0.5, 0.4),
    candidates=8,
    click_rate_by_class=(0.08, 0.16, 0.28),
    purchase_rate=0.3,
    requests_per_user=6.0,
    activity_sd=0.6,
    eagerness_sd=0.9,
)
"""Clicks and purchases are more frequent than in the default world, so that a small experiment has
enough of them; users differ in how readily they click, so that their past tells of their future."""
CONTROL_NOISE, TREATMENT_NOISE = 1.2, 0.5
"""Standard deviation of each model's error in log-odds; the difference is the planted lift."""
MODEL_SALT = 21


@dataclass(frozen=True)
class SmallMarket:
    """One market with its users, an experiment's requests and a pre-period."""

    world: World
    seed: int

    @classmethod
    def draw(cls, seed: int) -> SmallMarket:
        """Draw products, pools, users and their tastes."""
        rng = np.random.default_rng([seed, 91])
        pool_QM = np.argsort(rng.random((QUERIES, PRODUCTS)), axis=1)[:, :POOL].astype(np.int32)
        class_QM = rng.choice(3, size=pool_QM.shape, p=PARAMETERS.pool_shares).astype(np.int8)
        theme_Q = rng.integers(0, 12, QUERIES)
        popularity_Q = rng.permutation((1 + np.arange(QUERIES)) ** -PARAMETERS.zipf_exponent)
        appeal_PD = rng.normal(size=(PRODUCTS, PARAMETERS.taste_size))
        state = WorldState(
            parameters=PARAMETERS,
            seed=seed,
            start_us=0,
            end_us=14 * DAY_US,
            product_id_P=np.array([f"p{row}" for row in range(PRODUCTS)]),
            appeal_PD=appeal_PD / np.linalg.norm(appeal_PD, axis=1, keepdims=True),
            price_z_P=rng.normal(size=PRODUCTS),
            launched_us_P=np.full(PRODUCTS, -DAY_US),
            query_id_Q=np.array([f"q{row}" for row in range(QUERIES)]),
            popularity_Q=popularity_Q / popularity_Q.sum(),
            theme_Q=theme_Q,
            pool_QM=pool_QM,
            class_QM=class_QM,
            **hidden_market(PRODUCTS, PARAMETERS, seed),
            **vars(make_shoppers(REQUESTS, theme_Q, PARAMETERS, seed)),
        )
        return cls(World(state), seed)

    def score(self, requests: Requests, noise: float) -> NDArray[np.float64]:
        """Return a model's pCTR: the shared log-odds with an error fixed for query and product."""
        state = self.world.state
        product_RK = np.maximum(requests.candidate_RK, 0)
        logit_RK = product_logit(state, requests.query_R, product_RK, requests.class_RK)
        error_RK = hash_normal(requests.query_R[:, None], product_RK, state.seed, MODEL_SALT)
        return expit(logit_RK + noise * error_RK)

    def serve(self, requests: Requests, noise: float, draws: Draws) -> tuple[Counts, Counts]:
        """Return what is expected and what is observed of each request under one model."""
        score_RK = self.score(requests, noise)
        outcome = self.world.run(requests, score_RK)
        return expected_counts(outcome, score_RK), observed_counts(outcome, score_RK, draws)

    def expect(self, requests: Requests, noise: float) -> Counts:
        """Return what is expected of each request under one model."""
        score_RK = self.score(requests, noise)
        return expected_counts(self.world.run(requests, score_RK), score_RK)

    def draws(self, stream: int) -> Draws:
        """Draw the chance of one period."""
        rng = np.random.default_rng([self.seed, 92, stream])
        return Draws.draw((REQUESTS, PARAMETERS.slots), rng)
