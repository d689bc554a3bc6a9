"""The bench measures what it says, on both sides; how fast is never a matter for a test."""

import numpy as np
import polars as pl
import pytest

from experiments import bench
from experiments.bench import run_bench
from experiments.bench_data import clicks, criteo_shaped, texts_of
from experiments.bench_peers import train_plainly
from experiments.bench_stages import BENCH_STAGES
from features.dataset import Dataset
from features.schema import DatasetSpec
from ranking.tower_config import TowerConfig


@pytest.fixture(scope="module")
def metrics():
    # What scores and serves an export has tests of its own.
    apart = ("export", "serve", "features", "ranking")
    stages = [stage for stage in BENCH_STAGES if stage not in apart]
    return run_bench(rows=2000, texts=4, products=8, stages=stages)


def test_every_stage_stands_beside_its_peer(metrics):
    stages = ("text_encoding", "click_training", "grouped_auc", "interval")
    assert {f"speedup.{stage}" for stage in stages} <= metrics.keys()
    assert {"speedup.scoring_100", "speedup.scoring_1000"} <= metrics.keys()
    assert {"speedup.embedding_training", "speedup.sentence_transformers"} <= metrics.keys()
    for name in ("text_encoding.{}texts_per_s", "click_training.{}rows_per_s"):
        own, peer = metrics[name.format("")], metrics[name.format("peer_")]
        assert metrics[f"speedup.{name.split('.')[0]}"] == pytest.approx(own / peer)
    for rows in (100, 1000):
        own, peer = metrics[f"scoring.onnx_ms_{rows}"], metrics[f"scoring.eager_ms_{rows}"]
        assert metrics[f"speedup.scoring_{rows}"] == pytest.approx(peer / own)


def test_every_figure_is_a_positive_finite_number(metrics):
    for name, value in metrics.items():
        assert isinstance(value, float), name
        assert np.isfinite(value), name
        assert value > 0 or "difference" in name, name


def test_both_sides_compute_the_same_thing(metrics):
    assert metrics["text_encoding.min_cosine"] > 0.999
    assert metrics["sentence_transformers.min_cosine"] > 0.999
    # One network: the same order of loss before either has learned anything.
    assert metrics["embedding_training.loss_first"] == pytest.approx(
        metrics["embedding_training.peer_loss_first"], abs=0.5
    )
    assert metrics["grouped_auc.max_difference"] < 1e-12
    assert metrics["scoring.max_difference_100"] < 1e-5
    assert metrics["scoring.max_difference_1000"] < 1e-5
    # Fifty draws know a standard error to a tenth; twice that is the seed's luck, not a fault.
    assert metrics["interval.error_ratio"] == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(("rows", "texts"), [(1999, 600), (2000, 1)])
def test_too_little_work_to_time_is_refused(rows, texts):
    with pytest.raises(ValueError, match=f"rows is {rows}, texts {texts} and"):
        run_bench(rows=rows, texts=texts)


def test_one_stage_runs_alone_and_an_unknown_one_is_refused():
    metrics = run_bench(rows=2000, stages=["grouped_auc"])
    assert metrics.keys() - {"rows"} == {
        "grouped_auc.ms", "grouped_auc.peer_ms", "grouped_auc.max_difference", "speedup.grouped_auc"
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"stages \['lunch'\] are unknown; there are "):
        run_bench(rows=2000, stages=["lunch"])


def test_the_least_of_three_repeats_counts(monkeypatch):
    # Repeats of 4, 1 and 3 seconds.
    clock = iter([0.0, 0.0, 4.0, 4.0, 5.0, 5.0, 8.0])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    assert bench._timed(lambda: "done") == ("done", 1.0)


def test_long_work_is_not_repeated(monkeypatch):
    clock = iter([0.0, 0.0, 11.0])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    assert bench._timed(lambda: "done", calls=2) == ("done", 5.5)


def test_generated_impressions_have_criteos_shape_and_learnable_clicks():
    data = criteo_shaped(20_000, table_rows=1000, seed=0)
    assert data.sparse_NF.shape == (20_000, 26)
    assert data.dense_NC.shape == (20_000, 13)
    assert data.sparse_NF.min() >= 0
    assert data.sparse_NF.max() < 1000
    # Log-uniform: a third of the draws lie among the first ten ids, a third above a hundred.
    assert (data.sparse_NF < 10).mean() == pytest.approx(1 / 3, abs=0.01)
    assert data.label_N is not None
    assert np.corrcoef(data.label_N, data.dense_NC.sum(axis=1))[0, 1] > 0.2


def test_generated_clicks_lie_user_by_user():
    label_N, score_N, user_N = clicks(4000)
    assert (np.diff(user_N) >= 0).all()
    assert set(np.unique(label_N)) == {0.0, 1.0}
    assert len(np.unique(score_N)) < len(score_N)


def test_titles_and_queries_alternate_and_start_anew():
    world = Dataset.from_tables(
        DatasetSpec(name="two"),
        products=pl.DataFrame({"product_id": ["p", "r", "s"], "title": ["t1", None, "t2"]}),
        queries=pl.DataFrame({"query_id": ["q", "u"], "query": ["q1", "q2"]}),
    )
    assert texts_of(world, 6) == ["t1", "q1", "t2", "q2", "t1", "q1"]


def test_a_peer_without_a_batch_to_time_is_refused():
    data = criteo_shaped(64, table_rows=16, seed=0)
    with pytest.raises(ValueError, match="64 rows are 2 whole batches of 32"):
        train_plainly(data, TowerConfig(batch_size=32), seed=0, warm_up=2)
