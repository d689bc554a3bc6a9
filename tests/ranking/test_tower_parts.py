"""The gate, the position's tower and purchases: by hand, learned, and refused where data lacks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit

from ranking.contract import load_click_model
from ranking.entire_space import entire_space_loss
from ranking.frequency_gate import FrequencyGate
from ranking.metrics import auc
from ranking.position import PositionTower
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig

SMALL = {"use_vectors": False, "batch_size": 128, "max_epochs": 3, "bf16": "off"}


def fit(small_log, vectors=None, *, train=None, validation=None, **options):
    model = TowerRanker(TowerConfig(**{**SMALL, **options}))
    train, validation = train or small_log.train, validation or small_log.validation
    return model.fit(train, validation, vectors, seed=0)


def test_the_gate_mixes_by_frequency_by_hand():
    gate = FrequencyGate(3, 2, 1)
    gate.set_counts(np.array([1, 1, 1, 2, 0, 0, 0, 0]))
    log_count_V = np.array([0, np.log(4), np.log(2)])
    z_V = (log_count_V - log_count_V.mean()) / log_count_V.std()
    np.testing.assert_allclose(gate.z_V, z_V, rtol=1e-6)
    with torch.no_grad():
        gate.slope_E.fill_(2.0)
        gate.bias_E.fill_(-0.5)
        gate.content.weight.copy_(torch.tensor([[1.0, 10.0]]))
    found = gate(torch.tensor([1, 2]), torch.tensor([[7.0], [7.0]]), torch.tensor([[1.0, 2.0]] * 2))
    share = expit(2 * z_V[1:] - 0.5)
    np.testing.assert_allclose(found.detach()[:, 0], share * 7 + (1 - share) * 21, rtol=1e-6)
    assert share[0] > share[1]


def test_slots_start_from_their_log_odds_and_scores_know_none():
    tower = PositionTower(2, dropout=0.0)
    position_N = np.repeat([1, 2], 1000).astype(np.int32)
    label_N = np.r_[np.ones(500), np.zeros(500), np.ones(100), np.zeros(900)].astype("f4")
    tower.set_rates(position_N, label_N)
    rates = [(500 + 20 * 0.3) / 1020, (100 + 20 * 0.3) / 1020]
    expected = [np.log(r / (1 - r)) - np.log(0.3 / 0.7) for r in rates]
    assert tower.logit.weight.detach()[1:, 0].numpy() == pytest.approx(expected, rel=1e-5)
    slots = torch.tensor([0, 1, 2])
    assert tower.train()(slots)[:, 0].tolist() == tower.logit.weight[:, 0].tolist()
    assert tower.eval()(slots)[:, 0].tolist() == [0.0, 0.0, 0.0]


def test_the_shallow_tower_takes_the_slots_share_of_clicks_on_itself(small_log):
    # Good categories always stood in bad slots; what shoppers want is the category alone.
    def log(examples, seed):
        rng = np.random.default_rng(seed)
        category_N = examples.sparse_NF[:, 2]
        position_N = np.clip(category_N + rng.integers(-1, 2, len(examples)), 1, 6)
        logit_N = -1 + 0.4 * category_N - 0.9 * (position_N - 1)
        clicked_N = rng.random(len(examples)) < expit(logit_N)
        return replace(
            examples, position_N=position_N.astype(np.int32), label_N=clicked_N.astype("f4")
        )

    train, validation, test = (
        log(part, seed)
        for seed, part in enumerate((small_log.train, small_log.validation, small_log.test))
    )
    given = {"train": train, "validation": validation, "max_epochs": 6}
    wanted_N = test.sparse_NF[:, 2]
    wanted_N = (wanted_N > np.median(wanted_N)).astype(float)
    biased = fit(small_log, **given).predict_proba(test, None)
    model = fit(small_log, position_slots=6, **given)
    debiased = model.predict_proba(test, None)
    assert auc(wanted_N, biased) < 0.4
    assert auc(wanted_N, debiased) > auc(wanted_N, biased) + 0.2
    unknown = replace(test, position_N=None)
    np.testing.assert_array_equal(model.predict_proba(unknown, None), debiased)


def test_the_loss_over_the_entire_space_by_hand():
    p_click, p_buy = np.array([0.5, 0.8, 0.3]), np.array([0.25, 0.5, 0.9])
    logits = [torch.tensor(np.log(p / (1 - p)), dtype=torch.float32) for p in (p_click, p_buy)]
    found = entire_space_loss(logits[0], logits[1], torch.tensor([0.0, 1.0, 2.0])).mean()
    both = p_click * p_buy
    clicks = -(np.log(0.5) + np.log(0.8) + np.log(0.3)) / 3
    purchases = -(np.log(1 - both[0]) + np.log(1 - both[1]) + np.log(both[2])) / 3
    assert float(found) == pytest.approx(clicks + purchases, rel=1e-5)
    extreme = [torch.tensor([80.0, -80.0]).requires_grad_() for _ in range(2)]
    entire_space_loss(extreme[0], extreme[1], torch.tensor([0.0, 2.0])).sum().backward()
    assert all(torch.isfinite(logit.grad).all() for logit in extreme)


def test_purchases_are_predicted_over_all_impressions(small_log, tmp_path):
    def log(examples, seed):
        rng = np.random.default_rng(seed)
        rate_N = np.where(examples.sparse_NF[:, 2] > 2, 0.1, 0.9)
        bought_N = examples.label_N * (rng.random(len(examples)) < rate_N)
        return replace(examples, purchased_N=bought_N.astype("f4"))

    train, validation, test = (
        log(part, seed)
        for seed, part in enumerate((small_log.train, small_log.validation, small_log.test))
    )
    model = fit(
        small_log, train=train, validation=validation, entire_space=True,
        max_epochs=10, lr=2e-2, checks_per_epoch=1, patience=10, dropout=0.0,
    )  # fmt: skip
    p_N2 = model.predict_purchase(test, None)
    assert (p_N2[:, 1] < p_N2[:, 0]).all()
    np.testing.assert_allclose(p_N2[:, 0], model.predict_proba(test, None), rtol=1e-6)
    assert auc(test.purchased_N, p_N2[:, 1]) > auc(test.purchased_N, p_N2[:, 0]) + 0.05
    model.save_(tmp_path / "model")
    again = load_click_model(tmp_path / "model").predict_purchase(test, None)
    np.testing.assert_array_equal(again, p_N2)
    with pytest.raises(ValueError, match="learned clicks alone"):
        fit(small_log, max_epochs=1).predict_purchase(test, None)


def test_parts_without_what_they_learn_from_are_refused(small_log):
    train = small_log.train
    clicked_N = train.label_N
    with pytest.raises(ValueError, match="carry no purchases, but entire_space=True"):
        fit(small_log, train=replace(train, purchased_N=None), entire_space=True)
    with pytest.raises(ValueError, match=r"0 of \d+ clicks were followed by a purchase"):
        fit(small_log, train=replace(train, purchased_N=0 * clicked_N), entire_space=True)
    with pytest.raises(ValueError, match=r"purchased is 1 in row \d+ where clicked is 0"):
        fit(small_log, train=replace(train, purchased_N=1 - clicked_N), entire_space=True)
    for position_N in (None, np.zeros(len(train), np.int32)):
        with pytest.raises(ValueError, match="position_slots=3, but the training examples carry"):
            fit(small_log, train=replace(train, position_N=position_N), position_slots=3)
    with pytest.raises(ValueError, match="frequency_gate='product_id' is no sparse feature"):
        fit(small_log, small_log.vectors, frequency_gate="product_id")
    with pytest.raises(ValueError, match="vectors=None, but semantic_levels=2 and frequency_gate"):
        fit(small_log, semantic_levels=2, frequency_gate="query_id")
