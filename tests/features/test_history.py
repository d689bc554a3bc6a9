from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from features.feature_spec import HistoryWindow
from features.history import PurchaseHistory, purchases_of
from features.sparse import ValueIndex

NOON = datetime(2024, 6, 1, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
CATALOGUE = ValueIndex(["p0", "p1", "p2", "p3"])


def purchases(*rows):
    return pl.DataFrame(
        [(user, product, time) for user, product, time in rows],
        schema={"user_id": pl.String, "product_id": pl.String, "time": pl.Datetime("us", "UTC")},
        orient="row",
    )


def microseconds(*times):
    return pl.Series(times, dtype=pl.Datetime("us", "UTC")).cast(pl.Int64).to_numpy()


def history_of(bought, user, time, **window):
    fitted = PurchaseHistory(HistoryWindow(**window)).fit(bought, CATALOGUE)
    row_L = fitted.transform(pl.Series([user], dtype=pl.String), microseconds(time))[0]
    return row_L[row_L >= 0].tolist()


def test_newest_first_by_hand():
    bought = purchases(
        ("u", "p2", NOON - timedelta(days=3)),
        ("u", "p0", NOON - timedelta(days=1)),
        ("v", "p3", NOON - timedelta(days=1)),
        ("u", "p1", NOON - timedelta(days=2)),
    )
    assert history_of(bought, "u", NOON) == [0, 1, 2]
    assert history_of(bought, "u", NOON, max_length=2) == [0, 1]


def test_only_strictly_before_the_impression():
    bought = purchases(("u", "p0", NOON))
    assert history_of(bought, "u", NOON - MICROSECOND) == []
    assert history_of(bought, "u", NOON) == []
    assert history_of(bought, "u", NOON + MICROSECOND) == [0]


def test_only_within_the_window():
    bought = purchases(("u", "p0", NOON - timedelta(days=84)))
    assert history_of(bought, "u", NOON) == [0]
    assert history_of(bought, "u", NOON + MICROSECOND) == []
    assert history_of(bought, "u", NOON + MICROSECOND, window_days=85) == [0]


def test_strangers_and_nobody_have_no_history():
    bought = purchases(("u", "p0", NOON - timedelta(days=1)))
    assert history_of(bought, "w", NOON) == []
    assert history_of(bought, None, NOON) == []


def test_products_outside_the_catalogue_are_left_out():
    bought = purchases(
        ("u", "p0", NOON - timedelta(days=2)), ("u", "gone", NOON - timedelta(days=1))
    )
    assert history_of(bought, "u", NOON) == [0]


def test_no_purchases_at_all():
    assert history_of(purchases(), "u", NOON) == []


def test_agrees_with_the_plain_loop():
    rng = np.random.default_rng(0)
    times = [NOON + timedelta(hours=int(h)) for h in rng.integers(0, 60 * 24, 300)]
    bought = purchases(*((f"u{rng.integers(8)}", f"p{rng.integers(5)}", time) for time in times))
    window = HistoryWindow(window_days=20, max_length=4)
    fitted = PurchaseHistory(window).fit(bought, CATALOGUE)
    users = pl.Series([f"u{i}" for i in rng.integers(0, 10, 400)])
    # Half of the impressions fall on the very moment of some purchase.
    moments = [times[i] for i in rng.integers(0, 300, 200)] + times[:200]
    got_NL = fitted.transform(users, microseconds(*moments))
    for row, (user, moment) in enumerate(zip(users, moments, strict=True)):
        known = sorted(
            (
                (time, CATALOGUE.values.index(product))
                for who, product, time in bought.iter_rows()
                if who == user
                and product in CATALOGUE.values
                and moment - timedelta(days=20) <= time < moment
            ),
            reverse=True,
        )
        expected = [product for _, product in known][:4]
        assert got_NL[row].tolist() == expected + [-1] * (4 - len(expected))


def test_order_of_the_table_does_not_matter():
    rows = [("u", f"p{i % 4}", NOON - timedelta(days=1 + i // 3)) for i in range(10)]
    forwards, backwards = purchases(*rows), purchases(*reversed(rows))
    assert history_of(forwards, "u", NOON) == history_of(backwards, "u", NOON)


def test_purchases_come_from_events_of_that_kind(tables):
    found = purchases_of(tables["events"], tables["impressions"])
    assert found["product_id"].to_list() == ["p1", "p3"]


def test_without_events_purchased_impressions_serve(tables):
    log = tables["impressions"].with_columns(purchased=pl.Series([1] + [0] * 119))
    found = purchases_of(None, log)
    assert found.rows() == [log.select("user_id", "product_id", "time").row(0)]
    assert len(purchases_of(None, tables["impressions"])) == 0


@pytest.mark.parametrize("setting", [{"window_days": 0}, {"max_length": 0}])
def test_an_empty_window_is_refused(setting):
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        HistoryWindow(**setting)
