"""Statistics of earlier pages: by hand, blind to their own page, and without the position."""

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from experiments.clara2_features import search_features, without_position


def log_of(pages, rows=3, seed=0):
    """A log of so many pages of three results, in a few sessions."""
    rng = np.random.default_rng(seed)
    size = pages * rows
    return pl.DataFrame(
        {
            "page": np.repeat(np.arange(pages), rows),
            "session": np.repeat(np.sort(rng.integers(0, pages // 2 + 1, pages)), rows).astype(str),
            "query": np.repeat(rng.integers(0, 4, pages), rows).astype(str),
            "url": np.concatenate([rng.permutation(6)[:rows] for _ in range(pages)]).astype(str),
            "rank": np.tile(np.arange(1, rows + 1), pages),
            "clicked": (rng.random(size) < 0.4).astype(int),
        }
    )


def test_counts_by_hand():
    log = pl.DataFrame(
        {
            "page": [0, 0, 1, 1, 2, 2],
            "session": ["a", "a", "a", "a", "b", "b"],
            "query": ["q", "q", "q", "q", "q", "q"],
            "url": ["x", "y", "y", "x", "x", "z"],
            "rank": [1, 2, 1, 2, 1, 2],
            "clicked": [1, 0, 0, 1, 0, 0],
        }
    )
    found = search_features(log)
    assert found["pair_c"].to_list() == [0, 0, 0, 1, 2, 0]
    assert found["pair_n"].to_list() == [0, 0, 1, 1, 2, 0]
    assert found["query_n"].to_list() == [0, 0, 2, 2, 4, 4]
    assert found["session_url_c"].to_list() == [0, 0, 0, 1, 0, 0]
    assert found["session_url_clicked_last"].to_list() == [None, None, 0, 1, None, None]
    assert found["pair_rank_change"].to_list() == [None, None, -1, 1, -1, None]
    # Expected clicks are the rank's rate until then: 0.03 of 33 pretended impressions at first.
    first = 1 / (1 / 0.03)
    assert found["rank_rate"].to_list()[:2] == pytest.approx([first, first])
    assert found["rank_rate"][2] == pytest.approx((1 + 1) / (1 + 1 / 0.03))
    pull = 3 * 0.03
    assert found["pair_coec"][3] == pytest.approx((1 + pull) / (first + pull))
    assert found["pair_rate_above"].to_list()[0] is None
    assert found["pair_rate_above"][3] == found["pair_rate"][2]
    assert found["session_clicks_last"].to_list() == [None, None, 1, 1, None, None]
    assert found["session_last_click_rank"].to_list() == [None, None, 1, 1, None, None]


@pytest.mark.parametrize("page", [0, 7, 29])
def test_clicks_of_a_page_and_of_later_ones_change_nothing_about_it(page):
    log = log_of(30)
    turned = log.with_columns(
        clicked=pl.when(pl.col("page") >= page).then(1 - pl.col("clicked")).otherwise("clicked")
    )
    until = log["page"] <= page
    before, after = (search_features(one).filter(until) for one in (log, turned))
    assert before.equals(after)
    if page < 29:
        later = ~until
        assert not search_features(log).filter(later).equals(search_features(turned).filter(later))


def test_later_pages_need_not_exist():
    log = log_of(30)
    whole, part = search_features(log), search_features(log.filter(pl.col("page") < 20))
    assert whole.head(len(part)).equals(part)


def test_without_position_the_order_on_the_page_tells_nothing():
    # The last page is turned upside down; what is known of each result stays with it.
    log = log_of(30)
    turned = log.with_columns(
        rank=pl.when(pl.col("page") == 29).then(4 - pl.col("rank")).otherwise("rank")
    ).sort("page", "rank")
    names = without_position(search_features(log).columns)
    assert {"rank", "rank_rate", "pair_rate_above", "query_rank_rate"}.isdisjoint(names)
    assert {"pair_coec", "url_rate", "session_clicks_last", "pair_coec_to_best"} <= set(names)
    keyed = [
        search_features(one)
        .select(names)
        .with_columns(one["page", "url"])
        .filter(pl.col("page") == 29)
        .sort("url")
        for one in (log, turned)
    ]
    # Means over the page add up in another order.
    assert_frame_equal(keyed[0], keyed[1], abs_tol=1e-12)
