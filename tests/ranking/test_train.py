"""The training loop: when it drops the rate, when it stops, what it leaves behind."""

import numpy as np
import pytest
import torch

from ranking.metrics import log_loss_nats
from ranking.model import ClickNetwork
from ranking.tower import TowerConfig, TowerRanker
from ranking.train import use_bf16

SMALL = {"batch_size": 100, "projected_dim": 8, "bf16": "off"}


def fitted(log, **options):
    model = TowerRanker(TowerConfig(**{**SMALL, **options}))
    return model.fit(log.train, log.validation, log.vectors, seed=0)


def validation_loss(model, log):
    p_click_N = model.predict_proba(log.validation, log.vectors)
    return log_loss_nats(log.validation.label_N, p_click_N)


def test_checks_come_as_often_as_asked(small_log):
    # 16 steps an epoch, 4 checks: after steps 4, 8, 12, 16.
    model = fitted(small_log, max_epochs=1, checks_per_epoch=4, patience=9)
    assert [check.epoch for check in model.checks_] == [0.25, 0.5, 0.75, 1.0]


def test_the_best_weights_are_kept(small_log):
    model = fitted(small_log, lr=0.02, sparse_lr=0.5, max_epochs=6, patience=100)
    losses = [check.validation_log_loss_nats for check in model.checks_]
    assert np.argmin(losses) < len(losses) - 1, "the test needs a run that overfits"
    assert validation_loss(model, small_log) == pytest.approx(min(losses), abs=1e-9)


def test_the_rate_drops_tenfold_on_a_plateau_and_training_stops_at_the_next(small_log):
    model = fitted(small_log, lr=0.02, sparse_lr=0.5, max_epochs=50, patience=2, lr_drops=2)
    rates = [check.learning_rate for check in model.checks_]
    assert sorted(set(rates), reverse=True) == pytest.approx([0.02, 0.002, 0.0002])
    assert len(rates) < 50 * 4
    losses = np.array([check.validation_log_loss_nats for check in model.checks_])
    best_before_N = np.minimum.accumulate(losses)
    for drop in np.flatnonzero(np.diff(rates)):
        assert (losses[drop - 1 : drop + 1] > best_before_N[drop - 2]).all()
    assert validation_loss(model, small_log) == pytest.approx(losses.min(), abs=1e-9)


def test_a_drop_slows_the_tables_too(small_log, monkeypatch):
    rates = []
    from ranking.fused_tables import FusedTables

    set_rate = FusedTables.set_learning_rate
    monkeypatch.setattr(
        FusedTables, "set_learning_rate", lambda self, rate: (rates.append(rate),
                                                              set_rate(self, rate))[1]
    )  # fmt: skip
    fitted(small_log, lr=0.02, sparse_lr=0.5, max_epochs=50, lr_drops=1, lr_drop=0.2)
    assert rates == pytest.approx([0.5, 0.1])


def test_training_lowers_the_loss(small_log):
    model = fitted(small_log, lr=3e-3, max_epochs=8, patience=3)
    rate = small_log.train.label_N.mean()
    base = log_loss_nats(small_log.validation.label_N, np.full(len(small_log.validation), rate))
    assert validation_loss(model, small_log) < base - 0.02


def test_another_seed_gives_another_model(small_log):
    models = [TowerRanker(TowerConfig(**SMALL, max_epochs=1)) for _ in range(2)]
    first_N, second_N = (
        model.fit(small_log.train, small_log.validation, small_log.vectors, seed=seed)
        .predict_proba(small_log.test, small_log.vectors)
        for seed, model in enumerate(models)
    )  # fmt: skip
    assert np.abs(first_N - second_N).max() > 1e-4


def test_bfloat16_computes_hidden_layers_but_never_logits(small_log, monkeypatch):
    seen = set()
    logit_of, linear = ClickNetwork.logit_of, torch.nn.functional.linear

    def spy_logit(self, hidden_BW):
        seen.add(("logit", self.training, logit_of(self, hidden_BW).dtype))
        return logit_of(self, hidden_BW)

    def spy_linear(*args):
        out_BW = linear(*args)
        seen.add((out_BW.shape[1], out_BW.dtype))
        return out_BW

    monkeypatch.setattr(ClickNetwork, "logit_of", spy_logit)
    monkeypatch.setattr(torch.nn.functional, "linear", spy_linear)
    fitted(small_log, bf16="on", max_epochs=1, head=(17,))
    # Hidden layers (17 wide) compute in bfloat16 while training and in float32 while scoring.
    assert {entry[1] for entry in seen if entry[0] == 17} == {torch.bfloat16, torch.float32}
    assert {entry[1] for entry in seen if entry[0] == 1} == {torch.float32}
    assert {entry[2] for entry in seen if entry[0] == "logit"} == {torch.float32}


def test_bfloat16_is_chosen_by_the_processor(monkeypatch):
    for has_it in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has_it: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert use_bf16("auto") is has_it
        assert use_bf16("on") is True
        assert use_bf16("off") is False


@pytest.mark.parametrize(
    "wrong", [{"lr": 0}, {"lr_drop": 1.0}, {"batch_size": 0}, {"embedding_dim": 6}, {"layers": 3}]
)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TowerConfig(**wrong)
