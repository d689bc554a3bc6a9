import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.stable_hash import hash_values
from features.target_statistics import (
    CountsOverTime,
    count_by_bucket,
    earlier_counts,
    merge_counts,
    smoothed_rate,
    time_buckets,
)

LOGS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", None]),
        st.integers(0, 2),
        st.integers(-7, 7),
        st.booleans(),
    ),
    max_size=30,
)


def counted_by_hand(rows, grain):
    """For each row, earlier rows and clicks of its pair, by a loop over all rows."""
    out = []
    for query, url, time, _ in rows:
        before = [
            clicked
            for q, u, t, clicked in rows
            if query is not None and (q, u) == (query, url) and t // grain < time // grain
        ]
        out.append((len(before), sum(before)))
    return out


@given(LOGS, st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_each_row_sees_what_a_loop_finds_strictly_earlier(rows, grain):
    keys = [
        pl.Series([row[0] for row in rows], dtype=pl.String),
        pl.Series([row[1] for row in rows], dtype=pl.Int64),
    ]
    time_N = np.array([row[2] for row in rows], np.int64)
    clicked_N = np.array([row[3] for row in rows], bool)
    counts = earlier_counts(keys, time_N, {"clicks": clicked_N}, grain=grain)
    got = list(zip(counts["shown"].tolist(), counts["clicks"].tolist(), strict=True))
    assert got == counted_by_hand(rows, grain)


def test_rows_of_one_page_do_not_see_each_other():
    # Two pages of three rows in file order; the second has the same url twice.
    url = pl.Series(["x", "y", "z", "x", "x", "y"])
    page_N, clicked_N = np.array([0, 0, 0, 1, 1, 1]), np.array([1, 0, 0, 1, 0, 0])
    counts = earlier_counts(url, page_N, {"clicks": clicked_N})
    assert counts["shown"].tolist() == [0, 0, 0, 1, 1, 1]
    assert counts["clicks"].tolist() == [0, 0, 0, 1, 1, 0]


@given(LOGS, st.integers(0, 30), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_order_of_rows_and_later_rows_change_nothing(rows, later, random):
    def by_row(log):
        keys = pl.Series([f"{row[0]}{row[1]}" for row in log], dtype=pl.String)
        time_N = np.array([row[2] for row in log], np.int64)
        clicked_N = np.array([row[3] for row in log], np.int64)
        counts = earlier_counts(keys, time_N, {"clicks": clicked_N})
        return list(zip(counts["shown"], counts["clicks"], strict=True))

    first = by_row(rows)
    assert by_row(rows + [("a", 1, 8, True)] * later)[: len(rows)] == first
    order = list(range(len(rows)))
    random.shuffle(order)
    assert by_row([rows[place] for place in order]) == [first[place] for place in order]


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_parts_of_a_log_add_up_to_the_same_table(parts):
    rng = np.random.default_rng(0)
    key_N = hash_values(pl.Series(rng.integers(0, 9, 500)))
    bucket_N, clicked_N = rng.integers(0, 20, 500), rng.random(500) < 0.3
    whole = count_by_bucket(key_N, bucket_N, {"clicks": clicked_N})
    part_N = rng.integers(0, parts, 500)
    pieces = [
        count_by_bucket(key_N[p_N], bucket_N[p_N], {"clicks": clicked_N[p_N]})
        for p_N in (part_N == p for p in range(parts))
    ]
    assert merge_counts(pieces[::-1]).equals(whole)


def test_after_the_end_all_that_was_counted_is_seen():
    key_N = hash_values(pl.Series(["a", "a", "b"]))
    table = CountsOverTime(count_by_bucket(key_N, np.array([4, 9, 4]), {"clicks": np.ones(3)}))
    strangers = hash_values(pl.Series(["a", "b", "c", None]))
    assert table.before(strangers, np.full(4, 10))["shown"].tolist() == [2, 1, 0, 0]
    assert table.before(strangers, np.full(4, 9))["shown"].tolist() == [1, 1, 0, 0]
    empty = CountsOverTime(count_by_bucket(key_N[:0], np.zeros(0, np.int64), {}))
    assert empty.before(key_N, np.zeros(3, np.int64))["shown"].tolist() == [0, 0, 0]


def test_a_table_that_is_mapped_from_disk_answers_alike(tmp_path):
    rng = np.random.default_rng(0)
    key_N, bucket_N = hash_values(pl.Series(rng.integers(0, 9, 300))), rng.integers(-5, 9, 300)
    outcomes = {"clicked": rng.random(300) < 0.3, "large": rng.integers(0, 2**40, 300)}
    table = CountsOverTime(count_by_bucket(key_N, bucket_N, outcomes))
    table.save_(tmp_path / "table")
    mapped = CountsOverTime.load(tmp_path / "table", ("clicked", "large"))
    for name, expected in table.before(key_N, bucket_N).items():
        np.testing.assert_array_equal(mapped.before(key_N, bucket_N)[name], expected)
    (tmp_path / "table.large.npy").unlink()
    with pytest.raises(ValueError, match=r"lacks target statistics: table\.large\.npy"):
        CountsOverTime.load(tmp_path / "table", ("clicked", "large"))


def test_expected_clicks_are_summed_as_numbers():
    key = pl.Series(["a"] * 3)
    counts = earlier_counts(key, np.arange(3), {"expected": np.array([0.5, 0.25, 9.0])})
    assert counts["expected"].tolist() == [0.0, 0.5, 0.75]


def test_smoothed_rate_by_hand():
    # Two clicks in ten rows, with a prior of 0.1 worth ten rows: (2 + 1) / 20.
    assert smoothed_rate(np.array([2]), np.array([10]), 0.1, strength=10).tolist() == [0.15]
    assert smoothed_rate(np.array([0]), np.array([0]), 0.1, strength=10).tolist() == [0.1]
    with pytest.raises(ValueError, match="strength is 0"):
        smoothed_rate(np.array([0]), np.array([0]), 0.1, strength=0)


def test_what_cannot_be_counted_is_refused():
    key = pl.Series(["a", "b"])
    with pytest.raises(ValueError, match="grain is 0"):
        earlier_counts(key, np.arange(2), {}, grain=0)
    with pytest.raises(ValueError, match="time has type float64"):
        time_buckets(np.array([0.5]), 1)
    with pytest.raises(ValueError, match="'clicks' is nan in row 1"):
        earlier_counts(key, np.arange(2), {"clicks": np.array([0, np.nan])})
    with pytest.raises(ValueError, match="unequal numbers of rows"):
        earlier_counts(key, np.arange(2), {"clicks": np.zeros(3)})
    with pytest.raises(ValueError, match="must be the same"):
        merge_counts([pl.DataFrame({"key": [1]}), pl.DataFrame({"bucket": [1]})])
