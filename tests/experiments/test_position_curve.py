"""The position curve of a log: planted looks come back, whatever the ranker put where."""

import json

import numpy as np
import polars as pl
import pytest

from experiments.cli_data import data_fit_market, data_make
from experiments.marketplace.fit_market import fit_market
from experiments.marketplace.market_file import read_market, with_market
from experiments.marketplace.parameters import WorldParameters
from experiments.marketplace.position_curve import fit_position_curve
from experiments.marketplace.world import World

LOOK_S = np.array([1.0, 0.6, 0.35, 0.2])


def ranked_log(rows: int = 60_000, seed: int = 0):
    """Good items mostly on top, so that the plain click rate falls faster than the looks."""
    rng = np.random.default_rng(seed)
    attraction_I = rng.beta(1.5, 4, 400)
    item_N = rng.integers(0, 400, rows)
    place_N = -np.log(attraction_I[item_N]) + rng.normal(0, 0.8, rows)
    slot_N = np.digitize(place_N, np.quantile(place_N, [0.25, 0.5, 0.75]))
    clicked_N = rng.random(rows) < LOOK_S[slot_N] * attraction_I[item_N]
    return item_N, slot_N + 1, clicked_N.astype(int)


def test_planted_looks_come_back_where_plain_click_rates_mislead():
    curve = fit_position_curve(*ranked_log())
    assert curve.examination_S == pytest.approx(LOOK_S, abs=0.03)
    plain_S = curve.click_rate_S / curve.click_rate_S[0]
    assert (plain_S[1:] < LOOK_S[1:] - 0.05).all()


def test_two_items_by_hand():
    # Item a: 10 of 100 in slot 1, 5 of 100 in slot 2; item b stays in slot 2 and says nothing.
    item_N = ["a"] * 200 + ["b"] * 100
    position_N = [1] * 100 + [2] * 200
    clicked_N = [1] * 10 + [0] * 90 + [1] * 5 + [0] * 95 + [1] * 60 + [0] * 40
    curve = fit_position_curve(item_N, position_N, clicked_N)
    assert curve.examination_S == pytest.approx([1.0, 0.5])
    assert curve.click_rate_S == pytest.approx([0.1, 65 / 200])
    assert (curve.impressions, curve.informative_impressions) == (300, 200)


def test_a_log_whose_order_never_varies_tells_no_curve():
    with pytest.raises(ValueError, match="slot 1 of 2 has no click on any item that was shown in"):
        fit_position_curve([1, 2, 1, 2], [1, 2, 1, 2], [1, 1, 0, 1])
    # Slots 1 and 2 share item 1, slots 3 and 4 item 2: nothing joins the two halves.
    with pytest.raises(ValueError, match="slot 3 shares no item with slot 1"):
        fit_position_curve([1, 1, 2, 2], [1, 2, 3, 4], [1, 1, 1, 1])
    with pytest.raises(ValueError, match="the first position is 0; slots are counted from 1"):
        fit_position_curve([1, 1], [0, 1], [1, 1])


def as_table(log) -> pl.DataFrame:
    item_N, position_N, clicked_N = log
    rng = np.random.default_rng(1)
    rows = len(item_N)
    return pl.DataFrame(
        {
            "query": item_N % 20,
            "url": item_N,
            "rank": position_N,
            "click": clicked_N,
            "request_id": np.arange(rows) // 4,
            "user_id": np.arange(rows) // 12,
            "bid_micros": np.exp(13 + 0.5 * rng.normal(size=400))[item_N].astype(int),
            "purchased": clicked_N * (rng.random(rows) < 0.25),
        }
    )


COLUMNS = {"query_id": "query", "product_id": "url", "position": "rank", "clicked": "click"}


def test_a_fitted_market_makes_worlds_and_says_what_it_saw(tmp_path):
    table = as_table(ranked_log())
    fitted = fit_market(table, columns=COLUMNS, share=0.5)
    file = tmp_path / "market.json"
    fitted.write_(file)
    parameters = with_market(WorldParameters(), file)
    assert parameters.examination == pytest.approx(tuple(LOOK_S), abs=0.05)
    assert parameters.slots == 4
    assert parameters.purchase_rate == pytest.approx(0.25, abs=0.02)
    assert parameters.requests_per_user == pytest.approx(3.0, abs=0.01)
    assert parameters.bid_sd == pytest.approx(0.5, abs=0.05)
    assert parameters.bid_jitter_sd == pytest.approx(0, abs=1e-6)
    assert json.loads(file.read_text())["fitted_on"]["impressions"] == 30_000
    # The second half is left for models: changing it changes nothing.
    spoiled = table.with_columns(
        click=pl.when(pl.int_range(pl.len()) < 30_000).then("click").otherwise(0)
    )
    assert fit_market(spoiled, columns=COLUMNS, share=0.5).parameters == fitted.parameters
    assert with_market(WorldParameters(), None) == WorldParameters()
    with pytest.raises(ValueError, match="exists already; nothing was written"):
        fitted.write_(file)


def test_the_command_fits_prints_and_writes(tmp_path, capsys):
    as_table(ranked_log(20_000)).write_parquet(tmp_path / "log.parquet")
    out = tmp_path / "market.json"
    data_fit_market(
        tmp_path / "log.parquet", out, columns=COLUMNS, share=1.0, json=tmp_path / "figures.json"
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["examination.2"] == pytest.approx(LOOK_S[1], abs=0.06)
    assert figures["click_rate.2"] < figures["click_rate.1"]
    assert "looked at" in capsys.readouterr().out
    data_make(tmp_path / "world", products=200, requests=50, market=out)
    world = World.load(tmp_path / "world" / "truth")
    assert world.parameters.examination[1] == pytest.approx(figures["examination.2"], abs=1e-6)


def test_what_is_no_log_and_no_parameters_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no column query_id, product_id, position, clicked"):
        fit_market(as_table(ranked_log(100)))
    with pytest.raises(ValueError, match="share is 0"):
        fit_market(as_table(ranked_log(100)), columns=COLUMNS, share=0)
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match="is no parameters file"):
        read_market(tmp_path / "x.json")
    (tmp_path / "y.json").write_text('{"parameters": {"slotz": 3}}')
    with pytest.raises(ValueError, match="sets slotz, which no marketplace has"):
        read_market(tmp_path / "y.json")
