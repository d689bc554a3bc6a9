"""Click and purchase rates of a key (a product, a query, a pair) from strictly earlier time.

Counts are whole numbers by key and time bucket, so they add up over any parts of a log in any
order to the same table. A row is answered from buckets before its own: never from itself, never
from another row of its bucket (its page, its day).

Shape letters: N rows, E entries (a key in a bucket), V distinct keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.stable_hash import NULL_HASH, hash_together

SHOWN = "shown"
"""The column that counts rows."""

_ARRAYS = ("key", "start", "bucket", "place")


def earlier_counts(
    keys: pl.Series | Sequence[pl.Series],
    time_N: NDArray[np.integer],
    outcomes: Mapping[str, NDArray],
    *,
    grain: int = 1,
) -> dict[str, NDArray]:
    """Count, for every row, the rows of the same key at strictly earlier times.

    Args:
        keys: One column, or several that together are the key; text, whole numbers or booleans,
            each shape (N,). A row with a null among them has no key and counts nothing.
        time_N: Any whole number that grows with time: microseconds, or the place of a page in a
            file. Rows of equal time do not see each other. Shape (N,), in any order.
        outcomes: What to sum beside the rows, by name: clicks, purchases, expected clicks; finite
            numbers, each shape (N,).
        grain: Times are taken in buckets this wide, from 0; 1 takes them as they are.

    Returns:
        ``shown``, the earlier rows, and each outcome's sum over them, shape (N,). All are 0 for
        the first rows of a key. Sums of whole numbers are exact.

    Raises:
        ValueError: If lengths differ, ``grain`` is below 1 or an outcome is not finite.
    """
    columns = [keys] if isinstance(keys, pl.Series) else list(keys)
    key_N = hash_together(columns)
    bucket_N = time_buckets(time_N, grain)
    return CountsOverTime(count_by_bucket(key_N, bucket_N, outcomes)).before(key_N, bucket_N)


def smoothed_rate(
    outcome_N: NDArray, shown_N: NDArray, prior_N: NDArray | float, *, strength: float
) -> NDArray[np.float64]:
    """Return (outcomes + strength * prior) / (shown + strength), shape (N,).

    Args:
        outcome_N: Clicks or purchases, shape (N,).
        shown_N: Rows they came from, shape (N,).
        prior_N: The rate where nothing was shown yet: the parent's or the whole log's.
        strength: Rows that the prior is worth; greater than 0.

    Raises:
        ValueError: If ``strength`` is not positive.
    """
    if not strength > 0:
        raise ValueError(f"strength is {strength}; it must be greater than 0")
    return (outcome_N + strength * prior_N) / (shown_N + strength)


def time_buckets(time_N: NDArray[np.integer], grain: int) -> NDArray[np.int64]:
    """Return the bucket that each time falls into, shape (N,).

    Raises:
        ValueError: If ``grain`` is below 1 or times are no whole numbers.
    """
    if grain < 1:
        raise ValueError(f"grain is {grain}; it must be 1 or more units of time")
    if not np.issubdtype(np.asarray(time_N).dtype, np.integer):
        raise ValueError(
            f"time has type {np.asarray(time_N).dtype}; it must be whole numbers "
            "(microseconds, or places in a file)"
        )
    return np.floor_divide(time_N, grain).astype(np.int64)


def count_by_bucket(
    key_N: NDArray[np.uint64], bucket_N: NDArray[np.int64], outcomes: Mapping[str, NDArray]
) -> pl.DataFrame:
    """Count rows and sum outcomes by key and bucket: one part of a log.

    Args:
        key_N: Hashes as ``hash_together`` makes them; 0 is left out.
        bucket_N: As ``time_buckets`` makes them.
        outcomes: By name, each shape (N,).

    Returns:
        Columns key, bucket, shown and the outcomes, one row an entry, ordered by key and bucket.

    Raises:
        ValueError: If lengths differ or an outcome is not finite.
    """
    columns = {"key": key_N, "bucket": bucket_N}
    for name, value_N in outcomes.items():
        value_N = np.asarray(value_N)
        if not np.isfinite(value_N).all():
            row = int(np.argmin(np.isfinite(value_N)))
            raise ValueError(f"outcome {name!r} is {value_N[row]} in row {row}; must be finite")
        whole = value_N.dtype == bool or np.issubdtype(value_N.dtype, np.integer)
        columns[name] = value_N.astype(np.int64 if whole else np.float64)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns have unequal numbers of rows: {lengths}")
    rows = pl.DataFrame(columns).filter(pl.col("key") != int(NULL_HASH))
    return _added_up(rows.with_columns(pl.lit(1, pl.Int64).alias(SHOWN)), tuple(outcomes))


def merge_counts(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Add up the counts of parts of a log; the order of the parts does not matter.

    Raises:
        ValueError: If there are no parts, or they count different outcomes.
    """
    frames = list(parts)
    if not frames:
        raise ValueError("there are no counts to merge")
    different = [frame.columns for frame in frames if frame.columns != frames[0].columns]
    if different:
        raise ValueError(f"parts count {frames[0].columns} and {different[0]}; must be the same")
    if len(frames) == 1:
        return frames[0]
    return _added_up(pl.concat(frames), tuple(frames[0].columns[3:]))


class CountsOverTime:
    """Counts by key that answer "how many before this bucket?" by two binary searches.

    Args:
        counts: As ``count_by_bucket`` or ``merge_counts`` returns them.
    """

    def __init__(self, counts: pl.DataFrame) -> None:
        self.outcome_names = tuple(counts.columns[3:])
        key_E = counts["key"].to_numpy()
        bucket_E = counts["bucket"].to_numpy()
        first_E = np.ones(len(key_E), bool)
        first_E[1:] = key_E[1:] != key_E[:-1]
        self._key_V = key_E[first_E]
        self._start_V = np.append(np.flatnonzero(first_E), len(key_E))
        self._buckets = np.unique(bucket_E)
        rank_E = np.searchsorted(self._buckets, bucket_E)
        self._place_E = self._place(np.cumsum(first_E) - 1, rank_E)
        # Sums up to each entry over all keys; the difference of two is a sum within one key.
        self._sums = {name: _running_sum(counts[name]) for name in (SHOWN, *self.outcome_names)}

    def save_(self, stem: Path) -> None:
        """Write the searchable arrays beside each other: ``STEM.key.npy`` and so on."""
        arrays = dict(zip(_ARRAYS, self._arrays(), strict=True)) | self._sums
        for name, array in arrays.items():
            np.save(f"{stem}.{name}.npy", array)

    @classmethod
    def load(cls, stem: Path, outcome_names: Sequence[str]) -> Self:
        """Map what ``save_`` wrote into memory: processes share it, and nothing is read yet.

        Raises:
            ValueError: If a file is missing.
        """
        names = (*_ARRAYS, SHOWN, *outcome_names)
        files = {name: Path(f"{stem}.{name}.npy") for name in names}
        missing = [file.name for file in files.values() if not file.is_file()]
        if missing:
            raise ValueError(f"{stem.parent} lacks target statistics: {', '.join(missing)}")
        arrays = {
            name: np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
            for name, file in files.items()
        }
        counts = cls.__new__(cls)
        counts.outcome_names = tuple(outcome_names)
        counts._key_V, counts._start_V, counts._buckets, counts._place_E = (
            arrays.pop(name) for name in _ARRAYS
        )
        counts._sums = arrays
        return counts

    def _arrays(self) -> tuple[NDArray, ...]:
        return self._key_V, self._start_V, self._buckets, self._place_E

    def before(self, key_N: NDArray[np.uint64], bucket_N: NDArray[np.int64]) -> dict[str, NDArray]:
        """Return ``shown`` and the outcomes' sums of each key in strictly earlier buckets.

        Args:
            key_N: Hashes, shape (N,); 0 and keys never seen count nothing.
            bucket_N: Buckets, shape (N,); one after all that were counted gets the totals.
        """
        if not len(self._key_V):
            return {name: np.zeros(len(key_N), np.int64) for name in self._sums}
        # In the order of the keys the searches walk through memory instead of jumping in it.
        order_N = np.argsort(key_N) if len(key_N) > 1 else np.zeros(len(key_N), np.int64)
        sorted_N = key_N[order_N]
        found_N = np.minimum(np.searchsorted(self._key_V, sorted_N), len(self._key_V) - 1)
        known_N = self._key_V[found_N] == sorted_N
        rank_N = np.searchsorted(self._buckets, bucket_N[order_N])
        end_N = np.searchsorted(self._place_E, self._place(found_N, rank_N))
        start_N = self._start_V[found_N]
        out = {}
        for name, sums in self._sums.items():
            sorted_value_N = np.where(known_N, sums[end_N] - sums[start_N], 0)
            value_N = np.empty_like(sorted_value_N)
            value_N[order_N] = sorted_value_N
            out[name] = _wide(value_N)
        return out

    def _place(self, key: NDArray[np.int64], rank: NDArray[np.int64]) -> NDArray[np.int64]:
        """One sortable number for (place of the key, rank of the bucket)."""
        return key * (len(self._buckets) + 1) + rank


def _running_sum(values: pl.Series) -> NDArray:
    """0 and the sums up to each value; in 32 bits where whole numbers fit, to spare memory."""
    sums = np.concatenate([[0], np.cumsum(values.to_numpy())])
    small = values.dtype.is_integer() and sums[-1] < 2**31
    return sums.astype(np.int32) if small else sums


def _wide(values: NDArray) -> NDArray:
    return values.astype(np.int64) if values.dtype == np.int32 else values


def _added_up(rows: pl.DataFrame, outcomes: tuple[str, ...]) -> pl.DataFrame:
    sums = [pl.col(name).sum() for name in (SHOWN, *outcomes)]
    return rows.group_by("key", "bucket").agg(sums).sort("key", "bucket")
