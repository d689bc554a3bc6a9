"""A job over several worlds: measured exactly, cut off and taken up again."""

import json

import numpy as np
import pytest

from embeddings.stage1_config import Stage1Config
from embeddings.stage2_config import Stage2Config
from experiments import seed_agreement as module
from experiments.agreement_config import AgreementConfig
from experiments.marketplace.world import World, make_world
from experiments.seed_agreement import click_rates, seed_agreement
from ranking.tower_config import TowerConfig

TINY = {
    "products": 120,
    "requests": 600,
    "judged_requests": 300,
    "variants": ("production", "logistic"),
    "stage1": Stage1Config(text_weights="random", image_width=24, image_layers=1, steps=2),
    "stage2": Stage2Config(steps=2),
    "tower": TowerConfig(max_epochs=1, batch_size=256, production_mlp=(8,), cross_layers=1),
}


def test_a_job_goes_on_with_the_next_world_and_gives_the_same_figures(tmp_path, monkeypatch):
    whole = seed_agreement(AgreementConfig(out=tmp_path / "whole", seeds=2, **TINY))
    assert whole.worlds == 2
    assert 0 < whole.standings[0].mean["true_ctr"] < 1
    made = []
    measure = module.measure_world

    def cut_off(config, seed):
        made.append(seed)
        if made == [0, 1]:
            raise KeyboardInterrupt
        return measure(config, seed)

    monkeypatch.setattr(module, "measure_world", cut_off)
    config = AgreementConfig(out=tmp_path / "cut", seeds=2, **TINY)
    with pytest.raises(KeyboardInterrupt):
        seed_agreement(config)
    assert seed_agreement(config).to_metrics() == whole.to_metrics()
    assert made == [0, 1, 1]
    assert json.loads((config.out / "metrics.json").read_text()) == whole.to_metrics()


def test_another_job_or_something_else_in_the_folder_is_refused(tmp_path):
    config = AgreementConfig(out=tmp_path / "job", **TINY)
    module._begin_(config)
    module._begin_(config.model_copy(update={"seeds": 12}))
    with pytest.raises(ValueError, match="holds worlds of other settings"):
        module._begin_(config.model_copy(update={"products": 130}))
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds no job of `adtower agreement`"):
        module._begin_(config.model_copy(update={"out": tmp_path}))
    with pytest.raises(ValueError, match="an order needs production"):
        seed_agreement(config.model_copy(update={"variants": ("logistic", "lightgbm")}))


def test_drawn_clicks_approach_the_truth_and_depend_on_the_ranking_alone(tmp_path):
    world = make_world(tmp_path / "world", products=120, requests=600, seed=0)
    market = World.load(world / "truth")
    requests = market.draw_requests(2000, 3)
    rows = market.candidate_table(requests).height
    constant_N = np.full(rows, 0.05)
    ctr, true_ctr = click_rates(market, requests, constant_N, seed=0)
    assert ctr == pytest.approx(true_ctr, rel=0.2)
    assert click_rates(market, requests, constant_N, seed=0) == (ctr, true_ctr)
    # Another ranking shows others.
    noise_N = np.random.default_rng(0).random(rows)
    assert click_rates(market, requests, 0.05 * noise_N, seed=0) != (ctr, true_ctr)
