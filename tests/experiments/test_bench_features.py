import numpy as np
import polars as pl
import pytest

from experiments.bench_features import (
    FEATURES,
    PeakMemory,
    bench_features,
    make_log,
    measure_build,
    training_step_us,
)
from features.arrays import FeatureArrays
from features.dataset import Dataset
from ranking.baselines import LightGBMConfig, LightGBMRanker


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PRODUCTS", "QUERIES"):
            patch.setattr(f"experiments.bench_features.{name}", 2000)
        make_log(folder / "data", 6000)
    return folder, measure_build(folder, "local:1", 4)


def test_a_generated_log_is_a_dataset_with_every_kind_of_feature(built):
    folder, _ = built
    log = Dataset.open(folder / "data").table("impressions")
    assert len(log) == 6000 and log["request_id"].n_unique() == 1500
    assert log["user_id"].n_unique() < 600 and 0.01 < log["clicked"].mean() < 0.2
    counts = log["product_id"].value_counts(sort=True)["count"]
    assert counts[0] > 50 and counts.median() < 5, "ids follow a power law"


def test_figures_of_a_build_are_measured(built):
    _, figures = built
    assert figures["seconds"] > 0 and figures["feed_us"] > 0 and figures["processor_seconds"] > 0
    assert 0.05 < figures["peak_gigabytes"] < 6 and figures["seconds.transforming"] > 0


def test_models_train_on_arrays_that_stay_on_disk(built):
    folder, _ = built
    arrays = FeatureArrays.open(folder / "out")
    train, validation = arrays.examples("train"), arrays.examples("validation")
    assert isinstance(train.dense_NC, np.memmap)
    for key in FEATURES.statistics_keys:
        assert f"ctr.{'*'.join(key)}" in train.dense_names
    model = LightGBMRanker(LightGBMConfig(rounds=5, patience=5))
    model.fit(train, validation, None, seed=0)
    p_click_N = model.predict_proba(arrays.examples("test"), None)
    assert p_click_N.shape == (arrays.rows("test"),) and np.isfinite(p_click_N).all()
    assert training_step_us(arrays) is None, "too few rows to time a step"


def test_memory_of_a_large_array_is_seen():
    with PeakMemory(every_seconds=0.01) as memory:
        pl.Series(np.ones(5_000_000)).sum()
    assert memory.peak_bytes > 40_000_000


@pytest.mark.slow
def test_the_growth_exponent_needs_two_large_sizes():
    metrics = bench_features(2000, workers="local:1")
    assert metrics["features.2000.rows_per_second"] > 0
    assert "features.growth_exponent" not in metrics
