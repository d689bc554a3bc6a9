"""Parameters of a marketplace from a real log, on rows that no judged model is judged on.

Only what a log of impressions tells is fitted: looks by slot, bids, purchases, requests a user.
Shoppers' hidden tastes stay as stated in ``parameters``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from experiments.marketplace.parameters import WorldParameters
from experiments.marketplace.position_curve import PositionCurve, fit_position_curve

NEEDED = ("query_id", "product_id", "position", "clicked")
OPTIONAL = ("request_id", "user_id", "time", "bid_micros", "purchased")
FEWEST_PURCHASES = 30


@dataclass(frozen=True, kw_only=True)
class FittedMarket:
    """What a log says of its marketplace."""

    parameters: dict[str, Any]
    """Fields of ``WorldParameters``."""
    fitted_on: dict[str, Any]
    """Which rows: how many, the share of the log, its first and last moment."""
    curve: PositionCurve

    def write_(self, file: Path) -> None:
        """Write the parameters file that ``market_file`` reads.

        Raises:
            ValueError: If the file is there already.
        """
        if file.exists():
            raise ValueError(f"{file} exists already; nothing was written. Choose another --out")
        content = {"parameters": self.parameters, "fitted_on": self.fitted_on}
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.partial")
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        draft.rename(file)


def fit_market(
    impressions: pl.DataFrame,
    *,
    columns: Mapping[str, str] | None = None,
    slots: int | None = None,
    share: float = 0.3,
) -> FittedMarket:
    """Fit a marketplace to the earliest part of a log.

    Args:
        impressions: One row an impression, in order of time unless there is a time column.
        columns: Our names to the log's, where they differ; ``NEEDED`` must be there.
        slots: Fit the first so many positions; by default all that occur.
        share: Of the rows, the earliest; judge models on later ones alone, or the simulator has
            seen what it is to judge.

    Raises:
        ValueError: If a column is missing, the share is not in (0, 1], or the log cannot tell the
            curve.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must be above 0 and at most 1")
    names = {ours: (columns or {}).get(ours, ours) for ours in (*NEEDED, *OPTIONAL)}
    missing = [theirs for ours, theirs in names.items() if ours in NEEDED
               and theirs not in impressions.columns]  # fmt: skip
    if missing:
        raise ValueError(
            f"the log has no column {', '.join(missing)}; it has {', '.join(impressions.columns)}. "
            "Name yours: --columns query_id query product_id url ..."
        )
    log = impressions.select(
        pl.col(theirs).alias(ours)
        for ours, theirs in names.items()
        if theirs in impressions.columns
    )
    if "time" in log.columns:
        log = log.sort("time", maintain_order=True)
    log = log.head(max(1, round(share * log.height)))
    item_N = log.select(pl.struct("query_id", "product_id").rank("dense")).to_series().to_numpy()
    curve = fit_position_curve(
        item_N, log["position"].to_numpy(), log["clicked"].to_numpy(), slots=slots
    )
    parameters: dict[str, Any] = {
        "examination": [round(float(look), 6) for look in curve.examination_S],
        "slots": len(curve.examination_S),
        **_bids(log),
        **_purchases(log),
        **_requests(log),
    }
    WorldParameters.model_validate(parameters)
    moments = [str(log["time"][0]), str(log["time"][-1])] if "time" in log.columns else None
    return FittedMarket(
        parameters=parameters,
        fitted_on={
            "impressions": log.height,
            "informative_impressions": curve.informative_impressions,
            "share": share,
            "time": moments,
        },
        curve=curve,
    )


def _bids(log: pl.DataFrame) -> dict[str, float]:
    if "bid_micros" not in log.columns:
        return {}
    bids = log.filter(pl.col("bid_micros") > 0)
    if bids.is_empty():
        return {}
    log_N = np.log(bids["bid_micros"].to_numpy().astype(float))
    by_product = bids.with_columns(log_bid=pl.Series(log_N)).group_by("product_id").agg(
        mean=pl.col("log_bid").mean(), spread=pl.col("log_bid").std()
    )  # fmt: skip
    jitter = by_product["spread"].drop_nulls().mean()
    between = by_product["mean"].std() if by_product.height > 1 else None
    fitted = {"bid_median_micros": round(float(np.exp(np.median(log_N))), 2)}
    if isinstance(jitter, float):
        fitted["bid_jitter_sd"] = round(jitter, 6)
    if isinstance(between, float):
        fitted["bid_sd"] = round(between, 6)
    return fitted


def _purchases(log: pl.DataFrame) -> dict[str, float]:
    if "purchased" not in log.columns:
        return {}
    bought, clicks = int(log["purchased"].sum()), int(log["clicked"].sum())
    if not FEWEST_PURCHASES <= bought < clicks:
        return {}
    return {"purchase_rate": round(bought / clicks, 6)}


def _requests(log: pl.DataFrame) -> dict[str, float]:
    if not {"user_id", "request_id"} <= set(log.columns):
        return {}
    per_user = log.group_by("user_id").agg(pl.col("request_id").n_unique())["request_id"].mean()
    return {"requests_per_user": round(float(per_user), 6)} if isinstance(per_user, float) else {}
