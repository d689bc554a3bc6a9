from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from features.schema import SplitRule
from features.split import split_by_time

START = datetime(2024, 1, 1, 12, tzinfo=UTC)


def log(request, day, clicked=None):
    rows = len(request)
    return pl.DataFrame(
        {
            "request_id": [str(r) for r in request],
            "time": [START + timedelta(days=d) for d in day],
            "clicked": clicked or [i % 2 for i in range(rows)],
        },
        schema_overrides={"time": pl.Datetime("us", "UTC"), "clicked": pl.Int8},
    )


def test_fractions_by_hand():
    frame = log([i // 2 for i in range(40)], [i // 2 for i in range(40)])
    split = split_by_time(frame, SplitRule(validation_fraction=0.1, test_fraction=0.2))
    assert [len(split.train), len(split.validation), len(split.test)] == [28, 4, 8]
    assert split.boundaries == (START + timedelta(days=14), START + timedelta(days=16))


def test_rows_are_told_by_number_and_keep_their_order(tables):
    frame = tables["impressions"].sample(fraction=1, shuffle=True, seed=3)
    split = split_by_time(frame, SplitRule())
    for part, row_N in (
        (split.train, split.train_row_N),
        (split.validation, split.validation_row_N),
        (split.test, split.test_row_N),
    ):
        assert part.equals(frame[row_N]) and (np.diff(row_N) > 0).all()
    together = np.concatenate([split.train_row_N, split.validation_row_N, split.test_row_N])
    assert sorted(together) == list(range(len(frame)))
    assert split.train["time"].max() < split.boundaries[0] <= split.validation["time"].min()
    assert split.validation["time"].max() < split.boundaries[1] <= split.test["time"].min()


def test_a_request_over_the_boundary_stays_whole_on_the_earlier_side():
    days = [0, 0, 1, 1, 2, 5, 5, 5, 9, 9]
    frame = log(["a", "a", "b", "b", "c", "c", "d", "d", "e", "e"], days)
    rule = SplitRule(
        validation_start=START + timedelta(days=4), test_start=START + timedelta(days=8)
    )
    split = split_by_time(frame, rule)
    assert split.train["request_id"].to_list() == ["a", "a", "b", "b", "c", "c"]
    assert split.validation["request_id"].to_list() == ["d", "d"]
    assert split.test["request_id"].to_list() == ["e", "e"]


def test_given_moments_are_inclusive_to_the_microsecond(tables):
    moment = START + timedelta(days=20)
    rule = SplitRule(validation_start=moment, test_start=moment + timedelta(days=5))
    assert split_by_time(tables["impressions"], rule).validation["time"].min() == moment
    later = SplitRule(
        validation_start=moment + timedelta(microseconds=1), test_start=moment + timedelta(days=5)
    )
    assert split_by_time(tables["impressions"], later).validation["time"].min() > moment


@pytest.mark.parametrize(("value", "part"), [(0, "training"), (1, "training")])
def test_clicks_of_one_class_are_refused(value, part):
    frame = log(range(40), range(40), [value] * 40)
    with pytest.raises(ValueError, match=f"clicked is {value} in all 28 rows of the {part} part"):
        split_by_time(frame, SplitRule())


def test_one_class_in_the_test_part_is_refused_too():
    frame = log(range(40), range(40), [i % 2 if i < 30 else 0 for i in range(40)])
    with pytest.raises(ValueError, match=r"in all 8 rows of the test part"):
        split_by_time(frame, SplitRule())


def test_a_part_without_rows_is_refused_with_the_times():
    frame = log(range(40), [0] * 40)
    with pytest.raises(ValueError, match=r"training part .* is empty: impressions run from 2024"):
        split_by_time(frame, SplitRule())
    late = SplitRule(
        validation_start=datetime(2030, 1, 1, tzinfo=UTC), test_start=datetime(2031, 1, 1)
    )
    with pytest.raises(ValueError, match=r"validation part .* is empty"):
        split_by_time(log(range(40), range(40)), late)
