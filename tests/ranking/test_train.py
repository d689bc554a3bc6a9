"""The training loop: when it drops the rate, when it stops, what it leaves behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.bench_data import criteo_shaped
from ranking import hidden_layers
from ranking.contract import InputSignature
from ranking.fused_tables import FusedTables
from ranking.inputs import ExampleTensors
from ranking.metrics import auc, log_loss_nats
from ranking.model import ClickNetwork, Hidden
from ranking.network import build_network
from ranking.plateau import Plateau
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig
from ranking.train import Training, train_network
from ranking.train_config import use_bf16

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


def test_the_best_weights_are_copied_over_those_before(small_log, monkeypatch):
    """Tables that fill a third of a machine leave no room for two copies."""
    keep_best_, at = Training._keep_best_, []

    def note(self):
        keep_best_(self)
        at.append(self.best["table.0"].data_ptr())
        assert torch.equal(self.best["table.0"], self.tables.weights()[0])
        assert self.best["table.0"].data_ptr() != self.tables.weights()[0].data_ptr()

    monkeypatch.setattr(Training, "_keep_best_", note)
    fitted(small_log, max_epochs=3)
    assert len(at) > 1 and len(set(at)) == 1


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
    by_hand = hidden_layers.linear

    def spy_logit(self, hidden):
        seen.add(("logit", self.training, logit_of(self, hidden).dtype))
        return logit_of(self, hidden)

    def spy_linear(*args):
        out_BW = linear(*args)
        seen.add((out_BW.shape[1], out_BW.dtype))
        return out_BW

    def spy_by_hand(*args, **options):
        out_BW = by_hand(*args, **options)
        seen.add((out_BW.shape[1], out_BW.dtype))
        return out_BW

    monkeypatch.setattr(ClickNetwork, "logit_of", spy_logit)
    monkeypatch.setattr(torch.nn.functional, "linear", spy_linear)
    monkeypatch.setattr(hidden_layers, "linear", spy_by_hand)
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


def test_the_rates_rise_evenly_while_warming_up(small_log, monkeypatch):
    rates = []
    set_rate = FusedTables.set_learning_rate
    monkeypatch.setattr(
        FusedTables, "set_learning_rate", lambda self, rate: (rates.append(rate),
                                                              set_rate(self, rate))[1]
    )  # fmt: skip
    fitted(small_log, sparse_lr=0.4, max_epochs=1, warm_up_steps=4)
    # Once before the first step, then at each step of the warm-up.
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.4])


def test_an_average_of_the_weights_is_scored_and_kept(small_log):
    plain = fitted(small_log, lr=0.02, max_epochs=2, patience=9)
    averaged = fitted(small_log, lr=0.02, max_epochs=2, patience=9, ema_decay=0.99)
    # The same steps are taken; only what is scored differs.
    assert [c.train_log_loss_nats for c in averaged.checks_] == [
        c.train_log_loss_nats for c in plain.checks_
    ]
    losses = [c.validation_log_loss_nats for c in averaged.checks_]
    assert losses != [c.validation_log_loss_nats for c in plain.checks_]
    assert validation_loss(averaged, small_log) == pytest.approx(min(losses), abs=1e-9)


def tables_after(log, epochs, **options):
    """Each feature's table after some epochs, whatever the validation rows say of them."""
    steps = {"checks_per_epoch": 1, "patience": 99, "large_table_rows": 20, **options}
    network = fitted(log, max_epochs=epochs, sparse_lr=0.5, **steps).network_
    return [weight.detach().clone() for weight in network.production.tables.weights()]


@pytest.fixture
def last_check_is_best(monkeypatch):
    monkeypatch.setattr(Plateau, "observe", lambda self, loss: "better")


def test_frozen_large_tables_learn_one_epoch_and_small_ones_on(small_log, last_check_is_best):
    sizes = small_log.train.vocabulary_sizes
    assert max(sizes) >= 20 > min(sizes)
    once, thrice = (tables_after(small_log, n, large_tables="freeze") for n in (1, 3))
    for size, once_VE, thrice_VE in zip(sizes, once, thrice, strict=True):
        assert torch.equal(once_VE, thrice_VE) == (size >= 20)


def test_checks_count_at_the_end_of_an_epoch_that_began_anew(small_log, monkeypatch):
    seen = []
    observe = Plateau.observe
    monkeypatch.setattr(
        Plateau, "observe", lambda self, loss: (seen.append(loss), observe(self, loss))[1]
    )
    model = fitted(small_log, max_epochs=2, patience=99, large_table_rows=20)
    losses = [check.validation_log_loss_nats for check in model.checks_]
    assert seen == [*losses[:4], losses[7]]


def test_large_tables_can_begin_anew_each_epoch(small_log, last_check_is_best):
    anew = tables_after(small_log, 2, large_tables="draw_again")
    on = tables_after(small_log, 2, large_tables="train")
    for size, anew_VE, on_VE in zip(small_log.train.vocabulary_sizes, anew, on, strict=True):
        if size >= 20:
            assert anew_VE.norm() < on_VE.norm(), "one epoch's way instead of two"


def test_a_large_table_overfits_in_its_second_epoch_unless_it_is_guarded():
    # Most ids are seen a few times and say nothing: what a table learns of them is noise.
    log = criteo_shaped(6000, table_rows=2000, seed=0)

    def losses(guard):
        config = TowerConfig(
            **{**SMALL, "use_vectors": False, "max_epochs": 2, "checks_per_epoch": 1},
            patience=9, large_table_rows=1000, large_tables=guard,
        )  # fmt: skip
        train, validation = log.take(slice(0, 4000)), log.take(slice(4000, None))
        torch.manual_seed(0)
        network, tables = build_network(config, InputSignature.of(train, None))
        checks = train_network(
            network, tables, ExampleTensors(train, None), train.label_N,
            ExampleTensors(validation, None), validation.label_N, config, seed=0,
        )  # fmt: skip
        return [check.validation_log_loss_nats for check in checks]

    on, anew = losses("train"), losses("draw_again")
    assert on[1] > on[0] + 0.2, "the second epoch is far worse"
    assert anew[1] < anew[0], "the dense layers learn on"


def test_a_weight_of_two_counts_like_two_rows(small_log):
    torch.manual_seed(0)
    network, _ = build_network(
        TowerConfig(**SMALL, use_vectors=False), InputSignature.of(small_log.train, None)
    )
    hidden_BW = torch.randn(6, network.logit.in_features)
    hidden, hidden_twice = (
        Hidden([rows_BW[:, :5], rows_BW[:, 5:]], None, None)
        for rows_BW in (hidden_BW, hidden_BW[[0, 0, 1, 2, 3, 4, 4, 5]])
    )
    label_B = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    weight_B = torch.tensor([2.0, 1.0, 1.0, 1.0, 2.0, 1.0])
    twice_B = torch.tensor([0, 0, 1, 2, 3, 4, 4, 5])
    torch.testing.assert_close(
        network.loss(hidden, label_B, weight_B=weight_B / weight_B.mean()),
        network.loss(hidden_twice, label_B[twice_B]),
    )


def test_rows_of_weight_zero_teach_nothing(small_log):
    train = small_log.train
    wrong_N = np.arange(len(train)) % 2 == 0
    spoiled = replace(train, label_N=np.where(wrong_N, 1 - train.label_N, train.label_N))
    aucs = []
    for weight_N in (np.where(wrong_N, 0, 3), np.full(len(train), 3)):
        model = TowerRanker(TowerConfig(**SMALL, max_epochs=4, patience=99))
        rows = replace(spoiled, weight_N=weight_N.astype("f4"))
        model.fit(rows, small_log.validation, small_log.vectors, seed=0)
        p_click_N = model.predict_proba(small_log.validation, small_log.vectors)
        aucs.append(auc(small_log.validation.label_N, p_click_N))
    assert aucs[0] > 0.6 > aucs[1]


@pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf])
def test_weights_that_cannot_be_are_refused(small_log, wrong):
    weight_N = np.ones(len(small_log.train), "f4")
    weight_N[7] = wrong
    with pytest.raises(ValueError, match="sample weight in row 7 is"):
        TowerRanker(TowerConfig(**SMALL)).fit(
            replace(small_log.train, weight_N=weight_N),
            small_log.validation,
            small_log.vectors,
            seed=0,
        )


def test_a_loss_that_is_not_finite_names_its_step(small_log):
    with pytest.raises(ValueError, match=r"the loss of step \d+ is nan.* lower lr=1e\+30"):
        fitted(small_log, lr=1e30, max_epochs=1)
