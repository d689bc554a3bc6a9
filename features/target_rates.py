"""Target statistics as dense columns: how often what shares a row's key was clicked before.

For every key there is ``ctr.KEY`` (smoothed click rate) and ``shown.KEY`` (rows), and, where
purchases are known, ``purchase_rate.KEY``. Fitted on training rows. A row sees buckets of time
before its own; a row after the last bucket sees all, and so does every row at scoring time: the
same tables answer both.

Shape letters: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.feature_spec import STATISTICS_GRAINS_US, FeatureNames
from features.stable_hash import combine_hashes
from features.target_statistics import (
    SHOWN,
    CountsOverTime,
    count_by_bucket,
    merge_counts,
    smoothed_rate,
    time_buckets,
)

FIRST_RATES = {"clicked": 0.03, "purchased": 0.003}
"""Rates before anything was shown: usual ones of ads. Not learned, or the first rows would know
of the later ones."""

RATE_NAMES = {"clicked": "ctr", "purchased": "purchase_rate"}

Key = tuple[str, ...]
EVERYTHING: Key = ()
"""The key that all rows share: the log's own rate, prior of all others."""

COUNTS_STEM = "target_statistics_{place}"


def with_parents(keys: Sequence[Key]) -> tuple[Key, ...]:
    """Return keys and the keys that their priors come from, parents first.

    The parent of a key of several columns lacks the first of them, so the prior of (query,
    product) is the product's rate; the parent of one column is the whole log.
    """
    if not keys:
        return ()
    wanted = {key[start:] for key in keys for start in range(len(key) + 1)}
    return tuple(sorted(wanted, key=lambda key: (len(key), key)))


def key_name(key: Key) -> str:
    """Return how a key is written in column names: ``query_id*product_id``."""
    return "*".join(key)


class TargetRates:
    """Click and purchase rates of the keys that a dataset names.

    Args:
        names: Says the keys, the grain and the smoothing.
    """

    def __init__(self, names: FeatureNames) -> None:
        self.keys = names.statistics_keys
        self.tables = with_parents(self.keys)
        self.grain_us = STATISTICS_GRAINS_US[names.statistics_grain]
        self.smoothing = names.statistics_smoothing

    def count(
        self,
        hashes: Mapping[str, NDArray[np.uint64]],
        time_us_N: NDArray[np.int64],
        outcomes: Mapping[str, NDArray],
    ) -> list[pl.DataFrame]:
        """Count one part of the training rows, one table a key of ``tables``.

        Args:
            hashes: Of every column in a key, as ``hash_values`` gives them, each shape (N,).
            time_us_N: Microseconds UTC, shape (N,).
            outcomes: ``clicked`` and, where known, ``purchased``: 0 or 1, each shape (N,).
        """
        bucket_N = time_buckets(time_us_N, self.grain_us)
        return [
            count_by_bucket(self._key(key, hashes, len(time_us_N)), bucket_N, outcomes)
            for key in self.tables
        ]

    def fit_counts(self, parts: Sequence[Sequence[pl.DataFrame]]) -> Self:
        """Learn from what ``count`` returned for every part; their order does not matter."""
        merged = [merge_counts(tables) for tables in zip(*parts, strict=True)]
        return self.fit_tables(merged)

    def fit_tables(self, merged: Sequence[pl.DataFrame]) -> Self:
        """Learn from one merged table of counts a key of ``tables``."""
        self.counts_ = {
            key: CountsOverTime(counts) for key, counts in zip(self.tables, merged, strict=True)
        }
        return self

    @property
    def outcome_names(self) -> tuple[str, ...]:
        """``clicked`` and, if training knew them, ``purchased``."""
        return self.counts_[EVERYTHING].outcome_names if self.keys else ()

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns of ``columns``, in order."""
        kinds = [RATE_NAMES[name] for name in self.outcome_names]
        return tuple(f"{kind}.{key_name(key)}" for key in self.keys for kind in (*kinds, SHOWN))

    def columns(
        self, hashes: Mapping[str, NDArray[np.uint64]], time_us_N: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        """Return rates and counts from strictly earlier buckets, by column name, shape (N,)."""
        bucket_N = time_buckets(time_us_N, self.grain_us)
        rates: dict[tuple[Key, str], NDArray[np.float64]] = {}
        out = {}
        for key in self.tables:
            if not key:
                # Few buckets and one key: answered once a bucket.
                once, of_N = np.unique(bucket_N, return_inverse=True)
                earlier = self.counts_[key].before(self._key(key, hashes, len(once)), once)
                earlier = {name: value[of_N] for name, value in earlier.items()}
            else:
                earlier = self.counts_[key].before(self._key(key, hashes, len(bucket_N)), bucket_N)
            for name in self.outcome_names:
                prior = rates[key[1:], name] if key else FIRST_RATES[name]
                rates[key, name] = smoothed_rate(
                    earlier[name], earlier[SHOWN], prior, strength=self.smoothing
                )
                out[f"{RATE_NAMES[name]}.{key_name(key)}"] = rates[key, name]
            out[f"{SHOWN}.{key_name(key)}"] = earlier[SHOWN].astype(np.float64)
        return {name: out[name] for name in self.column_names}

    def save_(self, folder: Path) -> None:
        """Write the counts, some files a key of ``tables``."""
        for place, key in enumerate(self.tables):
            self.counts_[key].save_(folder / COUNTS_STEM.format(place=place))

    @classmethod
    def load(cls, names: FeatureNames, folder: Path, outcome_names: Sequence[str]) -> Self:
        """Return what ``save_`` wrote, mapped into memory.

        Args:
            names: As the constructor's.
            folder: Where it lies.
            outcome_names: The ``outcome_names`` of what was saved.

        Raises:
            ValueError: If a file is missing.
        """
        rates = cls(names)
        rates.counts_ = {
            key: CountsOverTime.load(folder / COUNTS_STEM.format(place=place), outcome_names)
            for place, key in enumerate(rates.tables)
        }
        return rates

    def _key(
        self, key: Key, hashes: Mapping[str, NDArray[np.uint64]], rows: int
    ) -> NDArray[np.uint64]:
        if not key:
            return np.ones(rows, np.uint64)
        return combine_hashes([hashes[column] for column in key])
