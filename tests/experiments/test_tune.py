"""The search for settings: validation alone, resumable, never worse than the default."""

import builtins

import pytest

from experiments.marketplace.world import make_world
from experiments.tune import TuneResult, tune
from experiments.tune_config import TuneConfig
from features.pipeline import FeaturePipeline


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("t") / "world", products=100, requests=300, seed=0)


@pytest.fixture(scope="module")
def searched(world, tmp_path_factory):
    config = TuneConfig(
        data=world, out=tmp_path_factory.mktemp("s") / "search", trials=2, max_epochs=1
    )
    read = []
    transform = FeaturePipeline.transform
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            FeaturePipeline,
            "transform",
            lambda self, rows: (read.append(rows["time"].max()), transform(self, rows))[1],
        )
        result = tune(config)
    return config, result, read


def test_test_rows_are_never_read(searched, world):
    from features.dataset import Dataset

    split = Dataset.open(world).split()
    assert searched[2] == [split.train["time"].max(), split.validation["time"].max()]
    assert max(searched[2]) < split.test["time"].min()


def test_the_first_trial_is_the_default_and_the_best_no_worse(searched):
    _, result, _ = searched
    assert result.trials == 2
    assert result.best_log_loss_nats <= result.default_log_loss_nats < 1


def test_a_search_goes_on_where_it_stopped(searched):
    config, result, _ = searched
    same = tune(config)
    assert same == result, "nothing is trained again"
    more = tune(config.model_copy(update={"trials": 3}))
    assert more.trials == 3
    assert more.default_log_loss_nats == result.default_log_loss_nats
    assert more.best_log_loss_nats <= result.best_log_loss_nats


def test_settings_are_said_as_flags():
    result = TuneResult(
        settings={"lr": 0.001, "embedding_dim": 8, "production_mlp": (128, 64)},
        best_log_loss_nats=0.1, default_log_loss_nats=0.2, best_auc=0.7, trials=3,
    )  # fmt: skip
    assert result.flags() == (
        "--tower.lr 0.001 --tower.embedding-dim 8 --tower.production-mlp 128 64"
    )


def test_a_model_without_such_settings_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match="variant 'logistic' is a logistic model"):
        tune(TuneConfig(data=world, out=tmp_path / "search", variant="logistic"))


def test_a_missing_optuna_names_the_extra(world, tmp_path, monkeypatch):
    whole = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "optuna":
            raise ImportError(name)
        return whole(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"adtower\[tune\]"):
        tune(TuneConfig(data=world, out=tmp_path / "search"))
