"""The click log of the incumbent system, and the purchases that feed the histories.

The incumbent ranks by bid times a noisy quality score that knows no shopper and no vector, and now
and then at random. What it shows is clicked and bought by ``clicks``.

Shape letters: R requests, K candidates, S slots, N impressions, E events, M pool size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.marketplace.auction import run_auction
from experiments.marketplace.clicks import respond
from experiments.marketplace.examination import click_probability, draw_clicks
from experiments.marketplace.incumbent import expected_examination, incumbent_score
from experiments.marketplace.market import HISTORY_DAYS
from experiments.marketplace.requests import BLOCK, DAY_US, Requests, draw_queries
from experiments.marketplace.state import WorldState

MINUTE_US = 60_000_000


@dataclass(frozen=True, kw_only=True)
class Log:
    """A log with its truth, row for row."""

    impressions: pl.DataFrame
    """As the dataset contract says, sorted by time, request and position."""
    events: pl.DataFrame
    """All purchases, sorted by time."""
    truth: pl.DataFrame
    """For each impression: p_click (knowing the position), p_click_blind (knowing all but the
    position: the best that a model without it could say), attraction (if examined for certain),
    p_purchase (given a click), relevance (true class)."""


def write_log(state: WorldState, requests: Requests, rng: np.random.Generator) -> Log:
    """Let the incumbent serve the requests and shoppers respond; nothing is put on disk.

    Args:
        state: The hidden side of the world.
        requests: What was asked, in order of time.
        rng: Draws exploration, clicks, purchases and the organic purchases.
    """
    look_QM = expected_examination(state, rng)
    blocks = [
        _serve(state, requests.take(slice(first, first + BLOCK)), look_QM, rng)
        for first in range(0, len(requests), BLOCK)
    ]
    everything = pl.concat(blocks)
    bought = everything.filter(pl.col("purchased") == 1)
    # A purchase follows its click by minutes: it is never part of its own impression's past.
    delay_us = rng.integers(MINUTE_US, 30 * MINUTE_US, len(bought))
    from_ads = bought.select(
        "user_id", "product_id", time=pl.col("time") + pl.Series(delay_us).cast(pl.Duration("us"))
    )
    events = pl.concat([from_ads, _organic_purchases(state, rng)]).with_columns(
        kind=pl.lit("purchase")
    )
    hidden = ["p_click", "p_click_blind", "attraction", "p_purchase", "relevance"]
    return Log(
        impressions=everything.drop(hidden),
        events=events.sort("time", "user_id", "product_id"),
        truth=everything.select("request_id", "product_id", *hidden),
    )


def _serve(
    state: WorldState, requests: Requests, look_QM: NDArray[np.float64], rng: np.random.Generator
) -> pl.DataFrame:
    """One block of requests: impressions with their hidden columns."""
    parameters = state.parameters
    score_RK = incumbent_score(state, requests.query_R, requests.candidate_RK, requests.class_RK)
    shown_RS, _ = run_auction(
        score_RK,
        requests.bid_micros_RK,
        slots=parameters.slots,
        reserve_micros=parameters.reserve_micros,
        squashing=parameters.squashing,
    )
    explored_R = rng.random(len(requests)) < parameters.exploration
    shuffled_RS, _ = run_auction(
        rng.random(score_RK.shape) / np.maximum(requests.bid_micros_RK, 1),
        requests.bid_micros_RK,
        slots=parameters.slots,
        reserve_micros=parameters.reserve_micros,
    )
    shown_RS = np.where(explored_R[:, None], shuffled_RS, shown_RS)
    column_RS = np.maximum(shown_RS, 0)
    product_RS, class_RS, bid_RS = (
        np.take_along_axis(values_RK, column_RS, axis=1)
        for values_RK in (requests.candidate_RK, requests.class_RK, requests.bid_micros_RK)
    )
    product_RS = np.where(shown_RS >= 0, product_RS, -1)
    response = respond(state, requests.user_R, requests.query_R, product_RS, class_RS)
    p_click_RS = click_probability(parameters, response.attraction_RS)
    cascade = parameters.examination_model == "cascade"
    look_draw_RS = rng.random(p_click_RS.shape) if cascade else None
    clicked_RS = draw_clicks(
        parameters, response.attraction_RS, rng.random(p_click_RS.shape), look_draw_RS
    )
    purchased_RS = clicked_RS & (rng.random(p_click_RS.shape) < response.purchase_RS)
    row_N, slot_N = np.nonzero(product_RS >= 0)
    query_N, product_N = requests.query_R[row_N], product_RS[row_N, slot_N]
    place_N = (state.pool_QM[query_N] == product_N[:, None]).argmax(axis=1)
    attraction_N = response.attraction_RS[row_N, slot_N]
    return pl.DataFrame(
        {
            "request_id": requests.request_id_R[row_N],
            "time": pl.Series(requests.time_us_R[row_N]).cast(pl.Datetime("us", "UTC")),
            "user_id": state.user_id_U[requests.user_R[row_N]],
            "query_id": state.query_id_Q[query_N],
            "product_id": state.product_id_P[product_N],
            "position": (slot_N + 1).astype(np.int16),
            "clicked": clicked_RS[row_N, slot_N].astype(np.int8),
            "purchased": purchased_RS[row_N, slot_N].astype(np.int8),
            "bid_micros": bid_RS[row_N, slot_N],
            "p_click": p_click_RS[row_N, slot_N],
            "p_click_blind": attraction_N * look_QM[query_N, place_N],
            "attraction": attraction_N,
            "p_purchase": response.purchase_RS[row_N, slot_N],
            "relevance": class_RS[row_N, slot_N],
        }
    )


def _organic_purchases(state: WorldState, rng: np.random.Generator) -> pl.DataFrame:
    """What users buy without advertisements, from 84 days before the log to its end.

    A user thinks of something by habit and buys one product of that query's pool, by the same
    attraction that rules clicks.
    """
    mean = state.parameters.organic_purchases_per_user * len(state.user_id_U)
    count = int(rng.poisson(mean))
    user_E = rng.choice(len(state.user_id_U), size=count, p=state.activity_U)
    query_E = draw_queries(state, user_E, rng)
    time_E = rng.integers(state.start_us - HISTORY_DAYS * DAY_US, state.end_us, count)
    product_E = np.full(count, -1, dtype=np.int64)
    for first in range(0, count, BLOCK):
        rows = slice(first, first + BLOCK)
        pool_BM, class_BM = state.pool_QM[query_E[rows]], state.class_QM[query_E[rows]]
        response = respond(state, user_E[rows], query_E[rows], pool_BM, class_BM)
        on_sale_BM = (pool_BM >= 0) & (state.launched_us_P[pool_BM] <= time_E[rows, None])
        with np.errstate(divide="ignore"):
            wish_BM = np.log(np.where(on_sale_BM, response.attraction_RS, 0.0))
        wish_BM += rng.gumbel(size=wish_BM.shape)
        best_B = wish_BM.argmax(axis=1)
        chosen_B = np.take_along_axis(pool_BM, best_B[:, None], axis=1)[:, 0]
        product_E[rows] = np.where(on_sale_BM.any(axis=1), chosen_B, -1)
    bought_E = product_E >= 0
    return pl.DataFrame(
        {
            "user_id": state.user_id_U[user_E[bought_E]],
            "product_id": state.product_id_P[product_E[bought_E]],
            "time": pl.Series(time_E[bought_E]).cast(pl.Datetime("us", "UTC")),
        }
    )
