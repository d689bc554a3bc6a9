"""The world is not rigged: knowing relevance pays exactly as far as shoppers care for it."""

import numpy as np
import polars as pl
import pytest

from experiments.marketplace.parameters import WorldParameters
from experiments.marketplace.world import World, make_world
from ranking.metrics import auc

CLASS_RATE = np.array(WorldParameters().click_rate_by_class)


def true_ctr_lift(folder) -> float:
    """Exact CTR lift of ranking by true relevance over ranking by the bid alone."""
    world = World.load(folder / "truth")
    requests = world.draw_requests(4000, seed=3)
    blind = world.run(requests, np.full(requests.class_RK.shape, 0.05)).p_click_RS.sum()
    knowing = world.run(requests, CLASS_RATE[requests.class_RK]).p_click_RS.sum()
    return float(knowing / blind - 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_without_an_effect_of_relevance_its_lift_vanishes(tmp_path, seed):
    lift = {}
    for effect in (0.0, 0.5, 1.0):
        parameters = WorldParameters(relevance_effect=effect)
        folder = tmp_path / str(effect)
        made = make_world(folder, products=300, requests=800, seed=seed, parameters=parameters)
        lift[effect] = true_ctr_lift(made)
    assert abs(lift[0.0]) < 0.02
    assert lift[1.0] > lift[0.5] > 0.05


def auc_gain_of_relevance(folder) -> float:
    """What the true class adds to the click rate that each query-product pair has earned so far.

    Both predictors smooth the pair's clicks over its examined impressions; one towards the base
    rate, the other towards the rate of the pair's class. Nothing is trained.
    """
    log = pl.read_parquet(folder / "impressions.parquet")
    truth = pl.read_parquet(folder / "truth" / "impressions.parquet")
    examined_N = np.array(WorldParameters().examination)[log["position"].to_numpy() - 1]
    log = log.with_columns(examined=examined_N, relevance=truth["relevance"])
    train, test = log[: int(0.8 * log.height)], log[int(0.8 * log.height) :]
    pair = ["query_id", "product_id"]
    earned = train.group_by(pair).agg(
        clicks=pl.col("clicked").sum(), shown=pl.col("examined").sum()
    )
    test = test.join(earned, on=pair, how="left", maintain_order="left").fill_null(0)
    clicks_N, shown_N = test["clicks"].to_numpy(), test["shown"].to_numpy()
    base_rate = train["clicked"].sum() / train["examined"].sum()
    by_prior = [
        auc(
            test["clicked"].to_numpy(),
            (clicks_N + 20 * prior_N) / (shown_N + 20) * test["examined"],
        )
        for prior_N in (base_rate, CLASS_RATE[test["relevance"].to_numpy()])
    ]
    return by_prior[1] - by_prior[0]


def test_relevance_adds_less_where_every_product_is_shown_often(tmp_path):
    often = WorldParameters(queries_per_product=0.34)
    gain = {"rarely": 0.0, "often": 0.0}
    for seed in (0, 1):
        rare = make_world(tmp_path / f"r{seed}", products=600, requests=5000, seed=seed)
        full = make_world(
            tmp_path / f"o{seed}", products=120, requests=5000, seed=seed, parameters=often
        )
        gain["rarely"] += auc_gain_of_relevance(rare) / 2
        gain["often"] += auc_gain_of_relevance(full) / 2
    assert 0 < gain["often"] < 0.6 * gain["rarely"]
