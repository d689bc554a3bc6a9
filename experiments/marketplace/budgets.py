"""Advertisers' budgets, and how they are paced over a period.

Requests are served in blocks of time. Before each block an advertiser whose money is spent drops
out, and pacing slows those who spend faster than time passes: by letting them take part in fewer
auctions (throttling) or by scaling their bids (multiplicative). Each product is its own advertiser.
What a click costs is charged in expectation, price times click probability, as when clicks are
many; so spend, and with it who is shown, is known exactly.

Sources: Karande, Mehta and Srikant 2013, "Optimizing Budget Constrained Spend in Search
Advertising" (throttling); Balseiro and Gur 2019, "Learning in Repeated Auctions with Budgets"
(multiplicative).

Shape letters: R requests, K candidates, S slots, P products, A accounts, B requests of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.marketplace.requests import Requests
from experiments.marketplace.world import Outcome, World

Pacing = Literal["none", "throttle", "multiplicative"]

BLOCKS = 96
"""Quarter hours of a day, as it were: how often spend is looked at."""
STEP = 0.1
"""By how much a share or a multiplier changes from block to block. Stated choice."""
SLOWEST = 0.01


@dataclass(frozen=True, kw_only=True)
class Served:
    """A period under budgets."""

    outcome: Outcome
    spent_micros_AP: NDArray[np.float64]
    """Expected spend of each account and product."""
    stopped_share: float
    """Share of the advertisers with a budget that ran out of money before the end."""


def serve_with_budgets(
    world: World,
    requests: Requests,
    score_RK: NDArray[np.float64],
    budget_micros_AP: NDArray[np.float64],
    *,
    account_R: NDArray[np.integer] | None = None,
    pacing: Pacing = "throttle",
    seed: int = 0,
) -> Served:
    """Hold the auctions of a period in order of time while budgets last.

    Args:
        world: Holds auctions and knows the truth.
        requests: In order of time.
        score_RK: Predicted click probabilities, shape (R, K).
        budget_micros_AP: Money of each product in each account, infinite where unlimited.
        account_R: Which account each request draws on; the first by default. Two accounts are an
            experiment whose arms have budgets of their own.
        pacing: How advertisers avoid running out early; "none" lets them.
        seed: Of the throttling; the same candidates drop out for the same seed.

    Raises:
        ValueError: If a budget is negative or not a number, all are zero, or shapes disagree.
    """
    check_budgets(budget_micros_AP, products=len(world.state.product_id_P))
    account_R = np.zeros(len(requests), np.int64) if account_R is None else account_R
    spent_AP = np.zeros(budget_micros_AP.shape)
    rate_AP = np.ones(budget_micros_AP.shape)
    throttle_RK = np.random.default_rng([seed, 83]).random(requests.candidate_RK.shape)
    parts, done_A = [], np.zeros(len(budget_micros_AP))
    total_A = np.maximum(np.bincount(account_R, minlength=len(done_A)), 1)
    for rows in np.array_split(np.arange(len(requests)), min(BLOCKS, len(requests))):
        block = requests.take(rows)
        account_B = account_R[rows]
        product_BK = np.maximum(block.candidate_RK, 0)
        at_BK = (account_B[:, None], product_BK)
        bid_BK = np.where(spent_AP[at_BK] < budget_micros_AP[at_BK], block.bid_micros_RK, -1)
        if pacing == "throttle":
            bid_BK = np.where(throttle_RK[rows] < rate_AP[at_BK], bid_BK, -1)
        elif pacing == "multiplicative":
            scaled_BK = np.floor(bid_BK * rate_AP[at_BK]).astype(np.int64)
            bid_BK = np.where(bid_BK >= 0, scaled_BK, -1)
        outcome = world.run(replace(block, bid_micros_RK=bid_BK), score_RK[rows])
        parts.append(_with_true_values(outcome, block))
        _charge(spent_AP, outcome, block, account_B)
        done_A += np.bincount(account_B, minlength=len(done_A))
        ahead_AP = spent_AP > budget_micros_AP * (done_A / total_A)[:, None]
        rate_AP = np.clip(rate_AP * np.where(ahead_AP, 1 - STEP, 1 + STEP), SLOWEST, 1.0)
    limited_AP = np.isfinite(budget_micros_AP)
    stopped = (spent_AP >= budget_micros_AP)[limited_AP]
    return Served(
        outcome=_join(parts),
        spent_micros_AP=spent_AP,
        stopped_share=float(stopped.mean()) if stopped.size else 0.0,
    )


def unlimited_spend(world: World, requests: Requests, score_RK: NDArray) -> NDArray[np.float64]:
    """Return what each product would spend if money never ended, micros, shape (P,)."""
    spent_1P = np.zeros((1, len(world.state.product_id_P)))
    _charge(spent_1P, world.run(requests, score_RK), requests, np.zeros(len(requests), np.int64))
    return spent_1P[0]


def read_budgets(file: Path, world: World) -> NDArray[np.float64]:
    """Read advertisers' budgets: product_id, budget (currency units) and, if given, currency.

    Returns:
        Micros of each product, infinite for those the file does not name, shape (P,).

    Raises:
        ValueError: If a column is missing, a product is unknown or named twice, the currency is
            not the world's, or a budget is nonsense.
    """
    table = pl.read_csv(file) if file.suffix == ".csv" else pl.read_parquet(file)
    missing = [name for name in ("product_id", "budget") if name not in table.columns]
    if missing:
        raise ValueError(f"{file} lacks {' and '.join(missing)}; it has {', '.join(table.columns)}")
    if "currency" in table.columns:
        others = sorted(set(table["currency"].to_list()) - {world.currency}, key=str)
        if others:
            raise ValueError(
                f"{file} has budgets in {', '.join(map(str, others))}, but bids and prices of this "
                f"world are in {world.currency}; convert them first"
            )
    row_of = {name: row for row, name in enumerate(world.state.product_id_P.tolist())}
    names = table["product_id"].cast(pl.String).to_list()
    unknown = [name for name in names if name not in row_of]
    twice = table.filter(table["product_id"].is_duplicated())["product_id"].to_list()
    if unknown or twice:
        what = f"unknown product {unknown[0]!r}" if unknown else f"{twice[0]!r} more than once"
        raise ValueError(f"{file} names {what}; one row a product of the world is needed")
    budget_P = np.full(len(row_of), np.inf)
    budget_P[[row_of[name] for name in names]] = 1e6 * table["budget"].cast(pl.Float64).to_numpy()
    check_budgets(budget_P[None], products=len(row_of))
    return budget_P


def check_budgets(budget_micros_AP: NDArray[np.float64], *, products: int) -> None:
    """Refuse budgets that mean nothing.

    Raises:
        ValueError: If one is negative or not a number, all are zero, or there is not one a product.
    """
    if budget_micros_AP.ndim != 2 or budget_micros_AP.shape[1] != products:
        raise ValueError(
            f"budgets have shape {budget_micros_AP.shape}; one a product is needed in each account,"
            f" {products} products"
        )
    wrong_AP = ~(budget_micros_AP >= 0)
    if wrong_AP.any():
        account, product = np.argwhere(wrong_AP)[0]
        raise ValueError(
            f"the budget of product row {product} is {budget_micros_AP[account, product]:g} micros;"
            " it must be 0 or more (infinite is no limit)"
        )
    if not budget_micros_AP.any():
        raise ValueError("all budgets are zero, so nothing is ever shown; are they in other units?")


def _charge(
    spent_AP: NDArray[np.float64],
    outcome: Outcome,
    requests: Requests,
    account_B: NDArray[np.integer],
) -> None:
    """Add the expected cost of what was shown, in place."""
    filled_BS = outcome.shown_RS >= 0
    product_BS = np.take_along_axis(requests.candidate_RK, np.maximum(outcome.shown_RS, 0), axis=1)
    cost_BS = np.where(filled_BS, outcome.price_micros_RS * outcome.p_click_RS, 0.0)
    products = spent_AP.shape[1]
    cell_BS = account_B[:, None] * products + np.maximum(product_BS, 0)
    spent_AP += np.bincount(cell_BS.ravel(), cost_BS.ravel(), spent_AP.size).reshape(spent_AP.shape)


def _with_true_values(outcome: Outcome, requests: Requests) -> Outcome:
    """A scaled bid is not what a click is worth; the bid itself is."""
    value_RS = np.take_along_axis(requests.bid_micros_RK, np.maximum(outcome.shown_RS, 0), axis=1)
    return replace(outcome, value_micros_RS=np.where(outcome.shown_RS >= 0, value_RS, 0))


def _join(parts: list[Outcome]) -> Outcome:
    arrays = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Outcome)
        if field.name.endswith("_RS")
    }
    return replace(parts[0], **arrays)
