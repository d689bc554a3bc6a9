"""What the earlier pages of a search log say of a result, and where its session stands.

The log has one row a result and ten results a page, pages in the order in which they were served. A
statistic of a page counts the pages strictly before it, so no row sees a click of its own page; the
statistics of later pages count the pages before them, those of the test among them, as they do in
a system that learns of clicks as they happen.

``c`` counts clicks, ``n`` impressions, ``coec`` is clicks over expected clicks: those that the
rank alone lets one expect, from the click rates that the ranks had until then.

Source of clicks over expected clicks: Zhang and Jones 2007, "Comparing Click Logs and Editorial
Labels for Training Query Rewriting"; of features relative to the page: Ling et al. 2017, "Model
Ensemble for Click Prediction in Bing Search Ads".
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

KEYS = {
    "query": (("query",), 10.0),
    "url": (("url",), 5.0),
    "pair": (("query", "url"), 3.0),
    "session": (("session",), 5.0),
    "session_url": (("session", "url"), 1.0),
    "session_query": (("session", "query"), 3.0),
}
"""What is counted, and by how many impressions it is pulled to the mean."""

POSITION_FEATURES = (
    "rank",
    "rank_rate",
    "query_rank_rate",
    "query_rank_coec",
    "pair_rank_change",
    "session_url_rank_change",
    "session_last_click_rank",
)
"""Features that tell where a result stands, beside those of ``NEIGHBOURS``."""

NEIGHBOURS = ("_above", "_best_above", "_below")
"""Endings of features that compare with the results above and below."""

_RELATIVE = ("pair_coec", "pair_rate", "url_coec", "url_rate", "pair_share", "attraction")
"""Compared with the best and the mean of the page."""

_BESIDE = ("pair_coec", "pair_rate", "url_coec", "pair_share")
"""Compared with the results above and below."""

_CTR = 0.03
_RECENT_PAGES = 2000
_DECAY = 0.7
"""What a pair's click counts for after one more page of its query."""


def search_features(log: pl.DataFrame) -> pl.DataFrame:
    """Return the features of every result.

    Args:
        log: page (0, 1, ... in time), session, query, url, rank (from 1), clicked; sorted by page,
            then rank.

    Returns:
        One row a result, in the same order; numbers, null where there is nothing to count.
    """
    log = log.with_columns(c=pl.col("clicked").cast(pl.Float64), n=pl.lit(1.0))
    by_rank = _earlier(log, ("rank",), ("c", "n"))
    log = log.with_columns(e=(by_rank["c"] + 1) / (by_rank["n"] + 1 / _CTR))
    features = log.select("page", "rank", rank_rate="e")
    for name, (keys, pull) in KEYS.items():
        features = features.with_columns(_rates(log, keys, pull, name))
    by_query_rank = _rates(log, ("query", "rank"), 3.0, "query_rank")
    features = features.with_columns(
        c for c in by_query_rank if c.name in ("query_rank_rate", "query_rank_coec")
    )
    features = features.with_columns(
        pair_share=(pl.col("pair_c") + 0.1) / (pl.col("query_c") + 1),
        attraction=(pl.col("pair_c") + 2 * _CTR * pl.col("url_coec").clip(0, 10))
        / (pl.col("pair_n") + 2),
        pair_new=(pl.col("pair_n") == 0).cast(pl.Float64),
        session_url_seen=(pl.col("session_url_n") > 0).cast(pl.Float64),
        **{column.name: column for column in (*_last_time(log), *_recent(log))},
    )
    features = features.with_columns(_session_state(log).get_columns())
    return _beside_the_page(log, features).drop("page")


def without_position(names: Sequence[str]) -> list[str]:
    """Return the features that are known before the page is ranked."""
    return [n for n in names if n not in POSITION_FEATURES and not n.endswith(NEIGHBOURS)]


def _earlier(log: pl.DataFrame, keys: Sequence[str], values: Sequence[str]) -> pl.DataFrame:
    """Sums of ``values`` over the rows of the same keys on strictly earlier pages."""
    by_page = [*keys, "page"]
    sums = log.group_by(by_page).agg(pl.col(v).sum() for v in values).sort(by_page)
    sums = sums.with_columns(pl.col(v).cum_sum().shift(1, fill_value=0).over(keys) for v in values)
    return log.select(by_page).join(sums, on=by_page, how="left", maintain_order="left")


def _rates(log: pl.DataFrame, keys: Sequence[str], pull: float, name: str) -> list[pl.Series]:
    """Clicks, impressions, smoothed click rate and clicks over expected clicks of some keys."""
    past = _earlier(log, keys, ("c", "n", "e"))
    rate = (past["c"] + pull * _CTR) / (past["n"] + pull)
    # The pull is worth the clicks that so many impressions have on average, in both sums.
    coec = (past["c"] + pull * _CTR) / (past["e"] + pull * _CTR)
    return [
        past["c"].alias(f"{name}_c"),
        past["n"].alias(f"{name}_n"),
        rate.alias(f"{name}_rate"),
        coec.alias(f"{name}_coec"),
    ]


def _last_time(log: pl.DataFrame) -> list[pl.Series]:
    """What became of the result when it was last shown: to this query, and in this session."""
    found = []
    for name, keys in (("pair", ["query", "url"]), ("session_url", ["session", "url"])):
        by_page = [*keys, "page"]
        last = log.group_by(by_page).agg(pl.col("rank").min(), pl.col("c").max()).sort(by_page)
        last = last.with_columns(pl.col("rank", "c").shift(1).over(keys).name.suffix("_before"))
        shown = log.select(*by_page, "rank").join(
            last.drop("rank", "c"), on=by_page, how="left", maintain_order="left"
        )
        found.append((shown["rank"] - shown["rank_before"]).alias(f"{name}_rank_change"))
        found.append(shown["c_before"].alias(f"{name}_clicked_last"))
    return found


def _recent(log: pl.DataFrame) -> list[pl.Series]:
    """The pair's clicks and expected clicks, older ones counting less; the log's rate of late."""
    sums = log.group_by("query", "url", "page").agg(pl.col("c", "e").sum())
    sums = sums.sort("query", "url", "page").with_columns(
        pl.col("c", "e")
        .ewm_mean(alpha=1 - _DECAY, adjust=True)
        .shift(1)
        .over("query", "url")
        .name.suffix("_recent")
    )
    late = log.select("query", "url", "page").join(
        sums, on=["query", "url", "page"], how="left", maintain_order="left"
    )
    pages = log.group_by("page").agg(pl.col("c").sum()).sort("page")
    rate = pages["c"].rolling_mean(_RECENT_PAGES, min_samples=1).shift(1)[log["page"]]
    return [
        ((late["c_recent"] + _CTR) / (late["e_recent"] + _CTR)).alias("pair_recent_coec"),
        rate.alias("log_recent_clicks"),
    ]


def _session_state(log: pl.DataFrame) -> pl.DataFrame:
    """Where the session stands as the page is served, one row a result."""
    pages = log.group_by("page").agg(
        pl.col("session", "query").first(),
        pl.col("c").sum(),
        clicked_rank=pl.col("rank").filter(pl.col("c") > 0).max(),
    )
    pages = pages.sort("page").with_columns(
        session_pages=pl.int_range(pl.len()).over("session"),
        session_query_pages=pl.int_range(pl.len()).over("session", "query"),
        session_clicks_last=pl.col("c").shift(1).over("session"),
        session_query_clicks_last=pl.col("c").shift(1).over("session", "query"),
        session_same_query=(pl.col("query") == pl.col("query").shift(1)).over("session"),
        session_last_click_rank=pl.col("clicked_rank").shift(1).forward_fill().over("session"),
        any=(pl.col("c") > 0).cast(pl.Float64),
        one=pl.lit(1.0),
    )
    clicked_at = pl.when(pl.col("c") > 0).then(pl.col("session_pages"))
    since = pl.col("session_pages") - clicked_at.shift(1).forward_fill().over("session")
    of_query = _earlier(pages, ("query",), ("any", "one"))
    pages = pages.with_columns(
        pl.col("session_same_query").cast(pl.Float64),
        session_pages_since_click=since,
        query_pages=of_query["one"],
        query_clicked_pages=(of_query["any"] + 0.75) / (of_query["one"] + 3),
    )
    kept = [name for name in pages.columns if name.startswith(("session_", "query_"))]
    return pages.select(kept)[log["page"]]


def _beside_the_page(log: pl.DataFrame, features: pl.DataFrame) -> pl.DataFrame:
    """The same numbers beside those of the other results of the page."""
    relative = []
    for name in _RELATIVE:
        value = pl.col(name)
        relative += [
            (value - value.max().over("page")).alias(f"{name}_to_best"),
            (value - value.mean().over("page")).alias(f"{name}_to_mean"),
            value.rank("average", descending=True).over("page").alias(f"{name}_order"),
        ]
    for name in _BESIDE:
        above = pl.col(name).shift(1)
        relative += [
            above.over("page").alias(f"{name}_above"),
            above.cum_max().over("page").alias(f"{name}_best_above"),
            pl.col(name).shift(-1).over("page").alias(f"{name}_below"),
        ]
    return features.with_columns(
        *relative,
        page_seen=pl.col("session_url_seen").mean().over("page"),
        page_new=pl.col("pair_new").mean().over("page"),
        page_clicks=pl.col("url_c").sum().over("page"),
        page_attraction=pl.col("attraction").sum().over("page"),
        page_copies=log.select(pl.len().over("page", "url")).to_series(),
    )
