"""What each user bought before each impression.

Strictly before: a purchase at the very moment of the impression is not known yet, and one that
the impression led to must never describe it.

Shape letters: N impressions, E purchases, P products of the catalogue, L history length.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.feature_spec import DAY_US, HistoryWindow
from features.sparse import ValueIndex


def purchases_of(events: pl.DataFrame | None, impressions: pl.DataFrame | None) -> pl.DataFrame:
    """Return the purchases that a dataset knows of: user_id, product_id, time.

    They come from the events of kind "purchase"; without an events table, from the impressions
    marked purchased (at the time of the impression). Without either there are none.
    """
    columns = ["user_id", "product_id", "time"]
    if events is not None:
        return events.filter(pl.col("kind") == "purchase").select(columns)
    if impressions is not None and "purchased" in impressions.columns:
        return impressions.filter(pl.col("purchased") == 1).select(columns).drop_nulls(["user_id"])
    return pl.DataFrame(
        schema={"user_id": pl.String, "product_id": pl.String, "time": pl.Datetime("us", "UTC")}
    )


class PurchaseHistory:
    """Purchases in an order that answers "what came last, before t?" by two binary searches.

    Args:
        window: How far back purchases count and how many are kept.
    """

    def __init__(self, window: HistoryWindow) -> None:
        self.window = window

    def fit(self, purchases: pl.DataFrame, products: ValueIndex) -> Self:
        """Sort the purchases; those of products outside the catalogue are left out.

        Args:
            purchases: user_id, product_id, time (UTC, microseconds), one row a purchase.
            products: The catalogue's product ids.
        """
        product_E = products.rows_of(purchases["product_id"])
        known_E = product_E >= 0
        bought = purchases.filter(pl.Series(known_E))
        self._users = ValueIndex(bought["user_id"].unique().sort().to_list())
        user_E = self._users.rows_of(bought["user_id"]).astype(np.int64)
        time_us_E = bought["time"].cast(pl.Int64).to_numpy()
        product_E = product_E[known_E]
        # Product last: purchases of one moment keep one order, however the table was sorted.
        order_E = np.lexsort((product_E, time_us_E, user_E))
        self._product_E = product_E[order_E].astype(np.int32)
        self._times_us = np.unique(time_us_E)
        self._key_E = self._key(user_E, np.searchsorted(self._times_us, time_us_E))[order_E]
        return self

    def transform(self, user_id: pl.Series, time_us_N: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the catalogue rows each user bought in the window strictly before each time.

        Args:
            user_id: Users, text, shape (N,); null or unknown users have no history.
            time_us_N: Microseconds since the epoch, UTC, shape (N,).

        Returns:
            Newest first, padded with -1, shape (N, L). A purchase exactly ``window_days`` old
            still counts.
        """
        user_N = self._users.rows_of(user_id).astype(np.int64)
        window_us = self.window.window_days * DAY_US
        # Purchases before t are those whose moment ranks below the first moment not before t.
        end_N = np.searchsorted(
            self._key_E, self._key(user_N, np.searchsorted(self._times_us, time_us_N))
        )
        start_N = np.searchsorted(
            self._key_E, self._key(user_N, np.searchsorted(self._times_us, time_us_N - window_us))
        )
        history_NL = np.full((len(user_N), self.window.max_length), -1, np.int32)
        some_N = np.flatnonzero((user_N >= 0) & (end_N > start_N))
        for place in range(self.window.max_length):
            some_N = some_N[end_N[some_N] - place > start_N[some_N]]
            if not len(some_N):
                break
            history_NL[some_N, place] = self._product_E[end_N[some_N] - 1 - place]
        return history_NL

    def _key(self, user: NDArray[np.int64], rank: NDArray[np.int64]) -> NDArray[np.int64]:
        """One sortable number for (user, rank of the moment)."""
        return user * (len(self._times_us) + 1) + rank
