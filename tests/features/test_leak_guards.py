import numpy as np
import polars as pl
import pytest

from features.leak_guards import (
    SplitPart,
    refuse_mixed_times,
    refuse_outcomes_before_their_cause,
    statistic_that_saw_its_row,
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
    key = pl.Series(rng.integers(0, 20, ROWS)).cast(pl.String)
    return key, (rng.random(ROWS) < 0.3).astype(int), np.arange(ROWS) < 400


def rate_of(key, clicked, rows):
    frame = pl.DataFrame({"key": key, "clicked": clicked})
    rates = frame.filter(pl.Series(rows)).group_by("key").agg(rate=pl.col("clicked").mean())
    return frame.join(rates, on="key", how="left", maintain_order="left")["rate"]


def test_a_rate_of_the_whole_log_has_seen_its_row(log):
    key, clicked, train = log
    for rows in (np.ones(ROWS, bool), train):
        rate = rate_of(key, clicked, rows)
        assert statistic_that_saw_its_row(rate, {"product_id": key}, clicked, train) == "product_id"


def test_a_rate_of_earlier_rows_has_not(log):
    key, clicked, train = log
    earlier = earlier_counts(key, np.arange(ROWS), {"clicks": clicked})
    rate = pl.Series(earlier["clicks"] / np.maximum(earlier["shown"], 1))
    assert statistic_that_saw_its_row(rate, {"product_id": key}, clicked, train) is None
    price = pl.Series(hash_values(key) % np.uint64(7)).cast(pl.Float64)
    assert statistic_that_saw_its_row(price, {"product_id": key}, clicked, train) is None


def test_keys_of_one_row_each_say_nothing(log):
    _, clicked, train = log
    alone = pl.Series(np.arange(ROWS)).cast(pl.String)
    column = pl.Series(clicked).cast(pl.Float64)
    assert statistic_that_saw_its_row(column, {"request_id": alone}, clicked, train) is None
