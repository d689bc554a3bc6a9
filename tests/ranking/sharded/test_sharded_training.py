"""Training as ranks do it: as one process does, check by check, with all that training can do."""

import dataclasses

import numpy as np
import pytest
import torch

from embeddings.ranks import Ranks
from ranking.fit_job import FitJob
from ranking.fused_tables import FusedTables, TableGroup
from ranking.metrics import log_loss_nats
from ranking.model import ClickNetwork
from ranking.sample_weights import sample_weights
from ranking.sharded_fit import sharded_tables, train_together
from ranking.sharded_training import ShardedTraining
from ranking.sharded_weights import ShardedWeights
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig
from ranking.train import LabelledRows, predict_network, train_network


def losses_together(job, job_folder, ranks):
    """Validation log loss at the checks of a training for ranks, and at its end."""
    network = job.network(job_folder)
    checks = train_together(job, network, ranks)
    end = log_loss_nats(job.label_N, predict_network(network, job.tensors()[1]))
    return [check.validation_log_loss_nats for check in checks], end


def losses_alone(job, job_folder):
    """The same of a training in one process."""
    network = job.network(job_folder)
    train, validation = job.tensors()
    held = [each for each in network.modules() if isinstance(each, FusedTables)]
    checks = train_network(
        network,
        TableGroup(*held),
        train,
        job.outcome_N,
        validation,
        job.label_N,
        job.config,
        seed=job.seed,
        train_weight_N=sample_weights(job.train),
    )
    end = log_loss_nats(job.label_N, predict_network(network, validation))
    return [check.validation_log_loss_nats for check in checks], end


@pytest.mark.parametrize("left_out", [None, "ema_decay", "negative_rate", "weight_N"])
def test_ranks_train_as_one_process_does(job_folder, group_of_one, left_out):
    """Averages, down-sampling, weights of rows, drops at plateaus: the same losses at each check,
    and others when one of them is left out."""
    job = FitJob.read(job_folder)
    config = job.config.model_copy(update={"max_epochs": 4})
    job = dataclasses.replace(job, config=config)
    checks, end = losses_together(job, job_folder, group_of_one)
    if left_out == "weight_N":
        job = dataclasses.replace(job, train=dataclasses.replace(job.train, weight_N=None))
    elif left_out is not None:
        plain = {left_out: TowerConfig().model_dump()[left_out]}
        job = dataclasses.replace(job, config=config.model_copy(update=plain))
    own_checks, own_end = losses_alone(job, job_folder)
    same = len(checks) == len(own_checks) and np.allclose(
        [*checks, end], [*own_checks, own_end], rtol=0, atol=2e-5
    )
    assert same == (left_out is None)
    assert end == pytest.approx(min(checks), abs=1e-6)


def test_the_best_weights_are_copied_over_those_before(
    dropping, job_folder, group_of_one, monkeypatch
):
    """Shards that fill a third of a machine leave no room for two copies."""
    keep_best_, at = ShardedWeights.keep_best_, []

    def note(self):
        keep_best_(self)
        (kept_SD, *_), (shard, *_) = self.best.shards, self.shards()
        at.append(kept_SD.data_ptr())
        assert torch.equal(kept_SD, shard.weight_SD)
        assert kept_SD.data_ptr() != shard.weight_SD.data_ptr()
        dense = self.scoring_state()
        assert all(torch.equal(kept, dense[name]) for name, kept in self.best.dense.items())

    monkeypatch.setattr(ShardedWeights, "keep_best_", note)
    train_together(dropping, dropping.network(job_folder), group_of_one)
    assert len(at) > 1 and len(set(at)) == 1


def test_a_network_without_id_tables_keeps_its_best_weights(
    shop, fit_config, group_of_one, tmp_path
):
    rows = dataclasses.replace(
        shop.examples,
        sparse_names=(),
        sparse_NF=shop.examples.sparse_NF[:, :0],
        vocabulary_sizes=(),
    )
    changes = {"attention": "none", "max_epochs": 9, "lr": 0.05, "lr_drops": 0}
    job, network, _ = TowerRanker(fit_config.model_copy(update=changes)).begin_fit_(
        rows.take(slice(0, 480)), rows.take(slice(480, 600)), shop.vectors, seed=3
    )
    job.write_(tmp_path / "job", network)
    networks = [job.network(tmp_path / "job") for _ in range(2)]
    first, again = (
        train_together(job, each, group_of_one, checkpoint=tmp_path / "state") for each in networks
    )
    losses = [check.validation_log_loss_nats for check in first]
    assert first == again and losses.index(min(losses)) < len(losses) - 1
    one, two = (predict_network(each, job.tensors()[1]) for each in networks)
    assert np.array_equal(one, two)


def test_a_training_that_stopped_does_not_go_on(job_folder, group_of_one, tmp_path):
    job = FitJob.read(job_folder)
    config = job.config.model_copy(update={"max_epochs": 9, "lr": 0.05, "lr_drops": 0})
    job = dataclasses.replace(job, config=config)
    networks = [job.network(job_folder) for _ in range(2)]
    first, again = (
        train_together(job, network, group_of_one, checkpoint=tmp_path / "state")
        for network in networks
    )
    assert first == again
    assert len(first) < 9 * config.checks_per_epoch
    one, two = (predict_network(network, job.tensors()[1]) for network in networks)
    assert np.array_equal(one, two)


def test_masks_differ_by_step_and_by_rank(dropping, job_folder, group_of_one):
    def masks(rank, seed, steps):
        network = dropping.network(job_folder)
        with sharded_tables(network, dropping.config, group_of_one):
            training = ShardedTraining(network, dropping.config, seed=seed, ranks=group_of_one)
            training.ranks = Ranks(rank=rank, world=4)
            drawn = []
            for training.step in range(steps):
                training._seed_dropout_()
                drawn.append(torch.rand(4).tolist())
            return drawn

    first, again = masks(0, 3, 3), masks(0, 3, 3)
    assert first == again
    others = [first, masks(1, 3, 3), masks(0, 4, 3)]
    assert len({tuple(drawn) for each in others for drawn in each}) == 9


def test_losses_of_other_ranks_are_their_mean(dropping, job_folder, group_of_one):
    network = dropping.network(job_folder)
    with sharded_tables(network, dropping.config, group_of_one):
        training = ShardedTraining(network, dropping.config, seed=0, ranks=group_of_one)
        training.losses = [0.5, 0.25]
        assert training._losses_by_rank() == [[0.5, 0.25]]
        assert training._own_losses([[0.5, 0.25]]) == [0.5, 0.25]
        assert training._own_losses([[1.0, 0.0], [0.0, 0.5]]) == [0.5, 0.25]
        assert training._own_losses([]) == []
        training.ranks = Ranks(rank=1, world=2)
        assert training._own_losses([[1.0, 0.0], [0.0, 0.5]]) == [0.0, 0.5]


@pytest.mark.parametrize("parts", [1, 2])
def test_the_loss_is_never_taken_in_bfloat16(job_folder, group_of_one, monkeypatch, parts):
    seen, loss_of = [], ClickNetwork.loss

    def spy(self, hidden, *args, **options):
        seen.append((torch.is_autocast_enabled("cpu"), hidden.seen[0].dtype))
        return loss_of(self, hidden, *args, **options)

    monkeypatch.setattr(ClickNetwork, "loss", spy)
    job = FitJob.read(job_folder)
    job = dataclasses.replace(job, config=job.config.model_copy(update={"bf16": "on"}))
    train_together(job, job.network(job_folder), group_of_one, max_steps=2, parts=parts)
    assert len(seen) >= 2 * parts and set(seen) == {(False, torch.bfloat16)}


@pytest.mark.parametrize("guard", ["freeze", "draw_again"])
def test_rates_warm_up_and_large_tables_are_guarded_after_an_epoch(job_folder, group_of_one, guard):
    changes = {"warm_up_steps": 5, "large_table_rows": 20, "max_epochs": 2, "patience": 99}
    changes |= {"large_tables": guard, "negative_rate": 1.0}
    job = FitJob.read(job_folder)
    job = dataclasses.replace(job, config=job.config.model_copy(update=changes))
    train, validation = job.tensors()
    rows = (
        LabelledRows(inputs=train, label_N=job.outcome_N),
        LabelledRows(inputs=validation, label_N=job.label_N),
    )
    network = job.network(job_folder)
    with sharded_tables(network, job.config, group_of_one):
        training = ShardedTraining(network, job.config, seed=0, ranks=group_of_one)
        rates = []
        training.optimizer.register_step_pre_hook(
            lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
        )
        one_epoch = 10
        training.run(*rows, max_steps=one_epoch)
        (tables, *_) = training.tables.values()
        after = [shard.weight_SD.clone() for shard in tables.shards()]
        if guard == "draw_again":
            # Nothing learns any more, so that what begins anew is seen alone.
            training._update = lambda *_: 0.0
        training.run(*rows, max_steps=2 * one_epoch)
        moved = {
            tables.names[shard.table]: not torch.equal(before, shard.weight_SD)
            for before, shard in zip(after, tables.shards(), strict=True)
        }
        forgotten = {
            tables.names[shard.table]: not bool(shard.momentum_S.any()) for shard in tables.shards()
        }
    assert rates[:6] == pytest.approx([job.config.lr * step / 5 for step in (1, 2, 3, 4, 5, 5)])
    sizes = dict(zip(job.signature.sparse_names, job.signature.vocabulary_sizes, strict=True))
    large = {name: size >= 20 for name, size in sizes.items()}
    if guard == "draw_again":
        assert moved == forgotten == large
    else:
        assert moved == {name: not is_large for name, is_large in large.items()}
