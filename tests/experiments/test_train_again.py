"""``adtower train`` repeated after a kill, and gone on from an earlier run."""

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from experiments.commands import train
from experiments.config import RunConfig
from experiments.marketplace.world import make_world
from experiments.pipeline import Run
from features.pipeline import FeaturePipeline
from ranking.contract import load_click_model
from ranking.training_checkpoints import Checkpoints

MODEL = "variants/production/seed0"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("w") / "world", products=100, requests=300, seed=0)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    config = RunConfig(
        data=world,
        out=tmp_path_factory.mktemp("r") / "whole",
        variants=("production",),
        tower={"batch_size": 100, "max_epochs": 2},
        workers=1,
        track=False,
    )
    train(config)
    return config


def test_a_training_cut_off_goes_on_and_leaves_no_state(whole, tmp_path, monkeypatch):
    config = whole.model_copy(update={"out": tmp_path / "cut"})
    write_ = Checkpoints.write_

    def write_and_die(self, step, tensors, record):
        write_(self, step, tensors, record)
        if step == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "due", lambda self, step: True)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write_", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert (config.out / "checkpoints/production-seed0/state.json").is_file()
    steps = []
    monkeypatch.setattr(Checkpoints, "write_", lambda self, step, *_: steps.append(step))
    train(config)
    assert steps[0] == 8
    assert_frame_equal(
        pl.read_parquet(config.out / MODEL / "predictions.parquet"),
        pl.read_parquet(whole.out / MODEL / "predictions.parquet"),
    )
    assert not (config.out / "checkpoints").exists()
    # Killed between the model and this, it is the next command that leaves none.
    (config.out / "checkpoints/production-seed0").mkdir(parents=True)
    line = Run.reopen(config.out)
    line.train(line.variants[0])
    assert not (config.out / "checkpoints").exists()


def test_a_run_goes_on_from_an_earlier_one(whole, tmp_path):
    config = whole.model_copy(update={"out": tmp_path / "next", "start_from": whole.out})
    train(config)
    before, after = (FeaturePipeline.load(run.out / "features") for run in (whole, config))
    assert after.vocabulary_sizes == before.vocabulary_sizes, "the same rows bring nothing new"
    first, second = (load_click_model(run.out / MODEL / "model") for run in (whole, config))
    assert second.checks_[0].train_log_loss_nats < first.checks_[0].train_log_loss_nats


def test_an_earlier_run_without_the_variant_is_refused(whole, tmp_path):
    config = whole.model_copy(
        update={"out": tmp_path / "next", "start_from": whole.out, "seeds": 2}
    )
    with pytest.raises(ValueError, match="holds no model of production with seed 1"):
        train(config)
