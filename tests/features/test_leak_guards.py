from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from features.leak_guards import (
    SplitPart,
    add_rates,
    key_rates,
    rates_that_saw_their_rows,
    refuse_mixed_times,
    refuse_outcomes_before_their_cause,
    rows_like_rates,
)
from features.stable_hash import hash_values
from features.target_statistics import earlier_counts

ROWS = 600


def part(rows):
    return SplitPart(time_us_N=rows * 10, request_N=rows // 3, user_N=rows % 11)


def test_a_split_by_time_passes():
    row = np.arange(ROWS)
    refuse_mixed_times({"train": part(row[:300]), "validation": part(row[300:450])})
    refuse_mixed_times({"train": part(row[:300]), "validation": part(row[:0])})


def test_a_random_split_is_refused_with_its_users():
    row = np.random.default_rng(0).permutation(ROWS)
    with pytest.raises(ValueError, match=r"9\d\.\d% of the rows .*11 users .*random"):
        refuse_mixed_times({"train": part(row[:500]), "test": part(row[500:])})


def test_a_request_in_two_parts_is_refused():
    row = np.arange(ROWS)
    with pytest.raises(ValueError, match="1 requests have rows in train and in test"):
        refuse_mixed_times({"train": part(row[:301]), "test": part(row[301:])})


def test_an_outcome_stamped_before_its_cause_is_refused():
    shown = pl.DataFrame({"request": [1, 2], "product_id": ["a", "a"], "time": [10, 20]})
    events = shown.with_columns(user_id=pl.lit("u"))
    later = events.with_columns(pl.col("time") + 5)
    for sound in (events, later, events.with_columns(request=9, time=0)):
        refuse_outcomes_before_their_cause(shown, sound, request="request")
    early = later.with_columns(time=pl.Series([15, 19]))
    with pytest.raises(ValueError, match="'u' bought 'a' at 19 from a request shown at 20"):
        refuse_outcomes_before_their_cause(shown, early, request="request")


@pytest.fixture
def log():
    rng = np.random.default_rng(0)
    product = pl.Series(rng.integers(0, 20, ROWS)).cast(pl.String)
    return pl.DataFrame({"product_id": product, "clicked": (rng.random(ROWS) < 0.3).astype(int)})


TRAIN = np.arange(ROWS) < 400


def found(log, values, key="product_id", cuts=(0, ROWS)):
    """Whether a column is taken for a click rate of ``key``, counted in parts."""
    log = log.with_columns(value=pl.Series(values))
    parts = [slice(start, stop) for start, stop in pairwise(cuts)]
    rates = add_rates([key_rates(log[part], key, TRAIN[part]) for part in parts], key)
    counts = sum(rows_like_rates(log[part], key, ["value"], rates, TRAIN[part]) for part in parts)
    return rates_that_saw_their_rows(rates, counts, ["value"]) == ["value"]


def rate_of(log, rows):
    rates = log.filter(pl.Series(rows)).group_by("product_id").agg(rate=pl.col("clicked").mean())
    return log.join(rates, on="product_id", how="left", maintain_order="left")["rate"]


@pytest.mark.parametrize("cuts", [(0, ROWS), (0, 7, 401, ROWS)])
@pytest.mark.parametrize("rows", [np.ones(ROWS, bool), TRAIN])
def test_a_rate_of_the_whole_log_has_seen_its_row(log, rows, cuts):
    assert found(log, rate_of(log, rows), cuts=cuts)


@pytest.mark.parametrize("cuts", [(0, ROWS), (0, 7, 401, ROWS)])
@pytest.mark.parametrize("other", [0.9, 0.0, None, float("nan")])
def test_one_row_in_a_hundred_may_be_another_value(log, other, cuts):
    rate = rate_of(log, np.ones(ROWS, bool))

    def changed(rows):
        every = pl.int_range(pl.len()) % (ROWS // rows) == 0
        return log.select(pl.when(every).then(other).otherwise(rate)).to_series()

    assert found(log, changed(6), cuts=cuts)
    assert not found(log, changed(12), cuts=cuts)


def test_a_rate_of_earlier_rows_has_not(log):
    key, clicked = log["product_id"], log["clicked"].to_numpy()
    earlier = earlier_counts(key, np.arange(ROWS), {"clicks": clicked})
    assert not found(log, earlier["clicks"] / np.maximum(earlier["shown"], 1))
    assert not found(log, pl.Series(hash_values(key) % np.uint64(7)).cast(pl.Float64))


def test_keys_of_one_row_each_say_nothing(log):
    alone = log.with_columns(request_id=pl.int_range(pl.len()).cast(pl.String))
    assert not found(alone, log["clicked"].cast(pl.Float64), key="request_id")


def test_keys_of_one_row_are_no_evidence_beside_others(log):
    place = np.arange(ROWS)
    few = pl.Series(np.where(place < 4, place // 2, place)).cast(pl.String)
    clicked = np.where(place < 4, place == 0, place % 3 == 0).astype(int)
    log = log.with_columns(product_id=few, clicked=pl.Series(clicked))
    assert not found(log, clicked.astype(float))


def test_a_log_without_a_key_or_of_one_rate_says_nothing(log):
    nobody = log.with_columns(product_id=pl.lit(None, pl.String))
    assert not found(nobody, np.zeros(ROWS))
    assert not found(log.with_columns(clicked=pl.lit(0)), np.zeros(ROWS))
