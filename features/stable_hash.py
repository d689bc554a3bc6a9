"""A 64-bit hash of values that is the same on every machine, in every process and version.

It places users in partitions, values in buckets, rows in samples, and names the keys of target
statistics. Python's and polars' own hashes change between runs or versions.

Shape letters: N values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.sparse import FEW, as_text

NULL_HASH = np.uint64(0)
"""Stands for null; no value hashes to it."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(word_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words one to one, shape (N,).

    Source:
        The finaliser of SplitMix64: Steele, Lea and Flood 2014, doi:10.1145/2714064.2660195.
    """
    word_N = (word_N ^ (word_N >> np.uint64(30))) * _FIRST
    word_N = (word_N ^ (word_N >> np.uint64(27))) * _SECOND
    return word_N ^ (word_N >> np.uint64(31))


def hash_numbers(number_N: NDArray[np.integer], *, seed: int = 0) -> NDArray[np.uint64]:
    """Hash whole numbers, such as row numbers; distinct numbers never collide, shape (N,)."""
    start = mix(np.array([seed], np.uint64) + _GOLDEN)
    return mix(number_N.astype(np.uint64) * _GOLDEN + start)


def in_sample(row_N: NDArray[np.integer], *, rows: int, total: int, seed: int) -> NDArray[np.bool_]:
    """Say which rows a sample holds: a row is in it or not whoever asks, shape (N,).

    Args:
        row_N: Numbers of the rows.
        rows: Size of the sample, about; all rows are in it if there are no more than that.
        total: Rows that it is drawn from.
        seed: Of the draw.
    """
    if total <= rows:
        return np.ones(len(row_N), bool)
    return hash_numbers(row_N, seed=seed) < np.uint64(rows / total * 2.0**64)


def hash_values(values: pl.Series) -> NDArray[np.uint64]:
    """Hash categorical values by their text: 3 and "3" are one value, null is 0, shape (N,).

    Among n distinct values two collide with probability n^2 / 2^65: three in a million for ten
    million values.

    Raises:
        ValueError: If the type is not text, a whole number or a boolean.
    """
    text = as_text(values).cast(pl.String)
    if len(text) < FEW:
        own = [(value or "").encode() for value in text.to_list()]
        length_N, content = np.array([len(each) for each in own], np.int64), b"".join(own)
    else:
        length_N = text.str.len_bytes().fill_null(0).to_numpy().astype(np.int64)
        content = str(text.str.join("").item() or "").encode()
    # Eight bytes beyond the end, so that a whole word can be read at any place.
    joined = content + bytes(8)
    word_at = np.ndarray((len(joined) - 7,), "<u8", joined, strides=(1,))
    start_N = np.cumsum(length_N) - length_N
    hash_N = mix(length_N.astype(np.uint64) + _GOLDEN)
    for done in range(0, int(length_N.max(initial=0)), 8):
        left_N = length_N - done
        row_N: NDArray[np.intp] | slice = slice(None)
        if left_N.min() <= 0:
            row_N = np.flatnonzero(left_N > 0)
            left_N = left_N[row_N]
        word_N = word_at[start_N[row_N] + done]
        unused_bits_N = (64 - 8 * np.minimum(left_N, 8)).astype(np.uint64)
        word_N = word_N & (np.uint64(2**64 - 1) >> unused_bits_N)
        hash_N[row_N] = mix((hash_N[row_N] ^ word_N) + _GOLDEN)
    hash_N[hash_N == NULL_HASH] = np.uint64(1)
    if text.null_count():
        hash_N[text.is_null().to_numpy()] = NULL_HASH
    return hash_N


def hash_together(columns: Sequence[pl.Series]) -> NDArray[np.uint64]:
    """Hash rows of one or more columns; a row with a null among them is 0, shape (N,).

    The order of the columns counts: ("a", "b") is another key than ("b", "a").
    """
    return combine_hashes([hash_values(column) for column in columns])


def combine_hashes(hashes: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Return one hash for each row of several columns of hashes, as ``hash_together`` does."""
    together_N = hashes[0]
    for hash_N in hashes[1:]:
        either_null_N = (together_N == NULL_HASH) | (hash_N == NULL_HASH)
        together_N = mix(together_N * _GOLDEN + hash_N)
        together_N[together_N == NULL_HASH] = np.uint64(1)
        together_N[either_null_N] = NULL_HASH
    return together_N
