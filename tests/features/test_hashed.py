import numpy as np
import polars as pl
import pytest

from features.hashed import HashedValues
from features.sparse import value_counts


def test_values_fall_into_their_buckets_and_null_into_row_zero():
    hashed = HashedValues(buckets=10)
    row_N = hashed.transform(pl.Series([*map(str, range(1000)), None]))
    assert row_N[-1] == 0 and row_N[:-1].min() == 1 and row_N.max() == 10 == hashed.size - 1
    assert np.array_equal(row_N[:1000], hashed.transform(pl.Series(range(1000))))


def test_collisions_are_measured_as_chance_predicts():
    values = pl.Series(range(1000))
    hashed = HashedValues(buckets=1000).fit_counts(value_counts(values))
    # A value is alone with probability (1 - 1/1000)^999 = 0.368.
    assert hashed.distinct_ == 1000 and hashed.collision_share_ == pytest.approx(0.632, abs=0.04)
    by_hand = pl.Series(hashed.transform(values)).is_duplicated().mean()
    assert hashed.collision_share_ == pytest.approx(by_hand)
    alone = HashedValues(buckets=3).fit_counts(value_counts(pl.Series(["x", "x"])))
    assert alone.collision_share_ == 0 and alone.distinct_ == 1


def test_saved_is_fitted():
    hashed = HashedValues(buckets=7).fit_counts(value_counts(pl.Series(["a", "b"])))
    assert HashedValues.from_dict(hashed.to_dict()).to_dict() == hashed.to_dict()
    with pytest.raises(ValueError, match="buckets is 0"):
        HashedValues(buckets=0)
