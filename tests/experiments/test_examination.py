"""Looks and clicks: marginal probabilities are exact for what is drawn, in both models."""

import numpy as np
import polars as pl
import pytest

from experiments.marketplace.examination import (
    cascade_examination,
    click_probability,
    draw_clicks,
    examination,
)
from experiments.marketplace.parameters import WorldParameters
from experiments.marketplace.world import World, make_world

CASCADE = WorldParameters(examination_model="cascade", slots=3)


def test_a_cascade_by_hand():
    parameters = WorldParameters(
        examination_model="cascade", slots=3, continue_after_skip=0.5, continue_after_click=0.25
    )
    # After slot 1: 0.2 x 0.25 + 0.8 x 0.5 = 0.45; after slot 2: x (1 x 0.25).
    look_RS = cascade_examination(parameters, np.array([[0.2, 1.0, 0.6]]))
    assert look_RS[0] == pytest.approx([1.0, 0.45, 0.1125])
    p_RS = click_probability(parameters, np.array([[0.2, 1.0, 0.6]]))
    assert p_RS[0] == pytest.approx([0.2, 0.45, 0.0675])


@pytest.mark.parametrize("parameters", [CASCADE, WorldParameters(slots=3)])
def test_drawn_clicks_have_the_stated_probability(parameters):
    rng, draws = np.random.default_rng(0), 60_000
    attraction_S = np.array([0.5, 0.3, 0.8])
    attraction_RS = np.tile(attraction_S, (draws, 1))
    clicked_RS = draw_clicks(parameters, attraction_RS, rng.random((draws, 3)),
                             rng.random((draws, 3)))  # fmt: skip
    p_S = click_probability(parameters, attraction_S[None])[0]
    assert clicked_RS.mean(axis=0) == pytest.approx(p_S, abs=4 * 0.5 / np.sqrt(draws))


def test_in_a_cascade_a_good_first_product_takes_looks_from_the_rest():
    good, bad = cascade_examination(CASCADE, np.array([[0.9, 0.1, 0.1], [0.1, 0.1, 0.1]]))
    assert good[1] < bad[1]
    assert good[0] == bad[0] == 1.0
    assert len(examination(CASCADE, 3)) == 3
    assert (np.diff(examination(CASCADE, 3)) < 0).all()


def test_a_cascade_without_the_draw_that_goes_on_is_refused():
    with pytest.raises(ValueError, match="look_draw_RS is missing"):
        draw_clicks(CASCADE, np.full((2, 3), 0.5), np.zeros((2, 3)))


def test_a_cascade_world_logs_and_tells_the_same_truth(tmp_path):
    parameters = WorldParameters(examination_model="cascade", click_rate_by_class=(0.2, 0.4, 0.6))
    folder = make_world(tmp_path / "w", products=200, requests=3000, parameters=parameters)
    clicked = pl.read_parquet(folder / "impressions.parquet")["clicked"].to_numpy()
    p_click = pl.read_parquet(folder / "truth" / "impressions.parquet")["p_click"].to_numpy()
    assert clicked.mean() == pytest.approx(p_click.mean(), rel=0.03)
    world = World.load(folder / "truth")
    requests = world.draw_requests(200, 1)
    outcome = world.run(requests, world.click_probability(requests))
    look_RS = cascade_examination(parameters, outcome.attraction_RS)
    assert np.array_equal(outcome.p_click_RS, outcome.attraction_RS * look_RS)


def test_rules_can_change_after_the_log_and_the_catalogue_cannot(tmp_path):
    world = World.load(make_world(tmp_path / "w", products=200, requests=200) / "truth")
    requests = world.draw_requests(300, 1)
    p_RK = world.click_probability(requests)
    first = world.with_parameters(pricing="first_price")
    assert (first.run(requests, p_RK).price_micros_RS >= world.run(requests, p_RK).price_micros_RS
            ).all()  # fmt: skip
    assert world.parameters.pricing == "gsp"
    with pytest.raises(ValueError, match="late_share cannot change after a world is made"):
        world.with_parameters(late_share=0.1)
    with pytest.raises(ValueError, match="slots=20"):
        world.with_parameters(slots=20)
