"""Which rows an epoch reads, and the correction for those it left out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ranking.epoch_order import corrected, order_of_epoch, rows_of_epoch, sampled_shift
from ranking.inputs import ExampleTensors
from ranking.plateau import Plateau
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig

LABELS = torch.tensor([1.0] * 10 + [0.0] * 90)


def order(epoch=0, seed=0, rate=1.0, run_rows=1):
    return order_of_epoch(LABELS, negative_rate=rate, seed=seed, epoch=epoch, run_rows=run_rows)


@pytest.mark.parametrize("run_rows", [1, 7, 64, 200])
def test_every_row_is_read_once(run_rows):
    assert order(run_rows=run_rows).sort().values.tolist() == list(range(100))
    assert order_of_epoch(LABELS[:0], negative_rate=1, seed=0, epoch=0, run_rows=64).tolist() == []


@pytest.mark.parametrize("run_rows", [1, 7])
def test_the_order_depends_on_seed_and_epoch_alone(run_rows):
    assert torch.equal(order(3, 5, 0.5, run_rows), order(3, 5, 0.5, run_rows))
    assert not torch.equal(order(3, 5, 1, run_rows), order(4, 5, 1, run_rows))
    assert not torch.equal(order(3, 5, 1, run_rows), order(3, 6, 1, run_rows))


def test_rows_of_a_run_stay_together_and_the_rest_comes_last():
    row_N = order(run_rows=7).numpy()
    runs_K7 = row_N[:98].reshape(14, 7)
    assert (runs_K7 % 7 == np.arange(7)).all() and (np.diff(runs_K7) == 1).all()
    assert (np.diff(runs_K7[:, 0]) < 0).any()
    assert row_N[98:].tolist() == [98, 99]


@pytest.mark.parametrize("run_rows", [1, 7])
def test_all_clicks_and_a_share_of_the_rest_are_read(run_rows):
    row_M = order(rate=0.2, run_rows=run_rows)
    assert (row_M < 10).sum() == 10
    assert len(row_M) == 10 + 18
    assert len(row_M.unique()) == len(row_M)
    whole_N = order(run_rows=run_rows)
    if run_rows > 1:
        assert torch.equal(row_M, whole_N[torch.isin(whole_N, row_M)])
    other_M = order(epoch=1, rate=0.2, run_rows=run_rows)
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


def test_a_training_reads_shuffled_rows_in_runs(small_log, monkeypatch):
    read, batch = [], ExampleTensors.batch

    def reading(self, row_B):
        if isinstance(row_B, torch.Tensor):
            read.append(row_B.numpy())
        return batch(self, row_B)

    monkeypatch.setattr(ExampleTensors, "batch", reading)
    config = TowerConfig(batch_size=100, projected_dim=8, bf16="off", max_epochs=2, patience=9)
    train = replace(small_log.train, run_rows=32)
    TowerRanker(config).fit(train, small_log.validation, small_log.vectors, seed=3)
    label_N = torch.tensor(train.label_N)
    for epoch in (0, 1):
        expected_N = order_of_epoch(label_N, negative_rate=1, seed=3, epoch=epoch, run_rows=32)
        np.testing.assert_array_equal(
            np.concatenate(read[16 * epoch : 16 * (epoch + 1)]), expected_N
        )
