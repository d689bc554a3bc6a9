from unittest import mock

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.sparse import FEW
from features.stable_hash import hash_numbers, hash_together, hash_values, in_sample

MASK = 2**64 - 1


def plain_mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def plain_hash(text: str | None) -> int:
    if text is None:
        return 0
    data, golden = text.encode(), 0x9E3779B97F4A7C15
    value = plain_mix((len(data) + golden) & MASK)
    for place in range(0, len(data), 8):
        word = int.from_bytes(data[place : place + 8], "little")
        value = plain_mix(((value ^ word) + golden) & MASK)
    return value or 1


@pytest.mark.parametrize("few", [0, FEW])
@given(texts=st.lists(st.none() | st.text(max_size=20), max_size=12))
def test_vectors_of_texts_hash_as_a_loop_over_them_does(few, texts):
    # Few are joined by Python, many by polars.
    with mock.patch("features.stable_hash.FEW", few):
        hashed = hash_values(pl.Series(texts, dtype=pl.String))
    assert hashed.tolist() == [plain_hash(text) for text in texts]


def test_the_hash_never_changes():
    # Stored tables and partitions rest on these numbers.
    hashed = hash_values(pl.Series(["a", "", "abcdefghi"])).tolist()
    assert hashed == [6774081908283191102, 16294208416658607535, 14690935847201975099]


def test_numbers_and_their_texts_are_one_value():
    assert hash_values(pl.Series([3, -1])).tolist() == hash_values(pl.Series(["3", "-1"])).tolist()
    assert hash_values(pl.Series([1.5, 2.5]).cast(pl.Int64))[0] == hash_values(pl.Series(["1"]))[0]
    with pytest.raises(ValueError, match="type Float64"):
        hash_values(pl.Series([1.5]))


def test_row_numbers_hash_without_collision_and_evenly():
    hashed = hash_numbers(np.arange(100_000), seed=3)
    assert len(np.unique(hashed)) == 100_000
    counts = np.bincount((hashed % np.uint64(7)).astype(int))
    assert np.abs(counts / 100_000 - 1 / 7).max() < 0.005
    assert not np.array_equal(hashed, hash_numbers(np.arange(100_000), seed=4))


def test_the_order_of_columns_counts_and_null_has_no_hash():
    a, b = pl.Series(["x", "y", None]), pl.Series(["y", "x", "x"])
    ab, ba = hash_together([a, b]), hash_together([b, a])
    assert ab[0] != ba[0] and ab[0] == ba[1] and ab[2] == ba[2] == 0


def test_a_sample_is_about_as_large_as_asked_and_the_same_whoever_asks():
    row_N = np.arange(100_000)
    drawn_N = in_sample(row_N, rows=20_000, total=len(row_N), seed=1)
    # Five deviations of a binomial draw.
    assert abs(drawn_N.sum() - 20_000) < 5 * np.sqrt(100_000 * 0.2 * 0.8)
    np.testing.assert_array_equal(
        in_sample(row_N[70:90], rows=20_000, total=len(row_N), seed=1), drawn_N[70:90]
    )
    assert (in_sample(row_N, rows=20_000, total=len(row_N), seed=2) != drawn_N).any()
    assert in_sample(row_N[:5], rows=5, total=5, seed=1).all()
