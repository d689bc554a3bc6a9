"""Which rows an epoch reads, and the correction for those it left out."""

import numpy as np
import pytest
import torch

from ranking.epoch_order import corrected, order_of_epoch, rows_of_epoch, sampled_shift
from ranking.plateau import Plateau
from ranking.tower import TowerConfig, TowerRanker

LABELS = torch.tensor([1.0] * 10 + [0.0] * 90)


def order(epoch=0, seed=0, rate=1.0):
    return order_of_epoch(LABELS, negative_rate=rate, seed=seed, epoch=epoch)


def test_every_row_is_read_once():
    assert order().sort().values.tolist() == list(range(100))


def test_the_order_depends_on_seed_and_epoch_alone():
    assert torch.equal(order(3, 5, 0.5), order(3, 5, 0.5))
    assert not torch.equal(order(3, 5), order(4, 5))
    assert not torch.equal(order(3, 5), order(3, 6))


def test_all_clicks_and_a_share_of_the_rest_are_read():
    row_M = order(rate=0.2)
    assert (row_M < 10).sum() == 10
    assert len(row_M) == 10 + 18
    assert len(row_M.unique()) == len(row_M)
    other_M = order(epoch=1, rate=0.2)
    assert set(row_M.tolist()) != set(other_M.tolist()), "drawn anew each epoch"


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.33, 1e-9])
def test_the_rows_of_an_epoch_are_known_without_drawing_them(rate):
    assert rows_of_epoch(LABELS, negative_rate=rate) == len(order(rate=rate))
    assert rows_of_epoch(LABELS[:0], negative_rate=1.0) == 0


def test_the_correction_by_hand():
    # A tenth of the non-clicks: p' = .5 of the sample is odds of 1 to 10 over all rows.
    assert corrected(0.5, 0.1) == pytest.approx(1 / 11)
    assert corrected(0.3, 1.0) == 0.3


def test_a_shift_of_the_logit_is_the_correction():
    logit = 0.7
    p_sampled = 1 / (1 + np.exp(-(logit + sampled_shift(0.05))))
    assert corrected(p_sampled, 0.05) == pytest.approx(1 / (1 + np.exp(-logit)))


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ValueError, match="negative_rate is"):
        corrected(0.5, rate)
    with pytest.raises(ValueError, match="negative_rate"):
        TowerConfig(negative_rate=rate)


def test_purchases_are_not_learned_from_sampled_rows():
    with pytest.raises(ValueError, match=r"negative_rate=0\.5 with entire_space=True"):
        TowerConfig(negative_rate=0.5, entire_space=True)


def test_a_down_sampled_model_stays_calibrated(small_log, monkeypatch):
    # The last weights are kept, for the best ones may be those that have hardly moved yet.
    monkeypatch.setattr(Plateau, "observe", lambda self, loss: "better")
    config = TowerConfig(
        batch_size=100, projected_dim=8, bf16="off", max_epochs=4, patience=9, negative_rate=0.25
    )
    model = TowerRanker(config).fit(
        small_log.train, small_log.validation, small_log.vectors, seed=0
    )
    p_click_N = model.predict_proba(small_log.train, small_log.vectors)
    assert p_click_N.mean() == pytest.approx(small_log.train.label_N.mean(), rel=0.1)


def test_a_plateau_waits_drops_and_stops():
    plateau = Plateau(patience=2, lr_drop=0.1, lr_drops=1)
    seen = [plateau.observe(loss) for loss in (5.0, 4.0, 4.0, 4.5, 3.9, 3.9, 4.0)]
    assert seen == ["better", "better", "wait", "drop", "better", "wait", "stop"]
    assert plateau.scale == 0.1
