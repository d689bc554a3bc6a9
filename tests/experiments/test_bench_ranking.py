"""The comparison of ranking libraries: its data, its sums, and what it does without a network."""

import json
import sys

import numpy as np
import pytest

from experiments import bench_ranking as bench
from experiments.bench_ranking_data import TABLE_ROWS, read_examples, write_clicks_
from experiments.peer_environment import peer_python
from ranking.baselines import LogisticRegression
from ranking.metrics import auc


def test_the_clicks_have_criteos_shape_and_follow_a_truth(tmp_path):
    write_clicks_(tmp_path, train=6000, test=2000)
    train, test = (read_examples(tmp_path, rows) for rows in (slice(0, 6000), slice(6000, None)))
    assert train.sparse_NF.shape == (6000, 26)
    assert test.dense_NC.shape == (2000, 13)
    assert train.sparse_NF.max() < TABLE_ROWS
    # Log-uniform: half of the ids lie below the root of the table's size.
    assert (train.sparse_NF < TABLE_ROWS**0.5).mean() == pytest.approx(0.5, abs=0.03)
    model = LogisticRegression().fit(train, test, None, seed=0)
    assert auc(test.label_N, model.predict_proba(test, None)) > 0.55


def test_the_same_seed_writes_the_same_clicks(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_clicks_(tmp_path / name, train=500, test=100)
    for file in ("sparse.npy", "dense.npy", "label.npy"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def ran(seconds, score_N, label_N, share=None):
    return bench._Ran(
        fit_seconds=seconds, whole_seconds=2 * seconds, peak_memory_gb=1.0, score_N=score_N,
        auc=auc(label_N, score_N), share_of_peak=share,
    )  # fmt: skip


def scores(label_N, deviation):
    """What a model of some skill would say: the label under noise."""
    noise_N = np.random.default_rng(3).standard_normal(len(label_N))
    return label_N + deviation * noise_N


def test_ratios_are_against_the_faster_peer():
    label_N = np.arange(2000) % 3 == 0
    systems = {
        "same_network": ran(10, scores(label_N, 1.0), label_N, 0.6),
        "default_network": ran(5, scores(label_N, 2.0), label_N),
        "fuxictr": ran(80, scores(label_N, 0.5), label_N),
        "deepctr": ran(60, scores(label_N, 2.0), label_N),
    }
    metrics = bench._against_faster_peer(systems, label_N)
    assert metrics["speedup.same_network"] == 6.0
    assert metrics["speedup.default_network"] == 12.0
    better = systems["same_network"].auc - systems["deepctr"].auc
    assert metrics["delta_auc.same_network"] == pytest.approx(better)
    low, high = (metrics[f"delta_auc.same_network.{end}"] for end in ("low", "high"))
    assert 0 < low < better < high
    # The same scores: no difference, and none that other rows could have shown.
    assert [metrics[f"delta_auc.default_network{end}"] for end in ("", ".low", ".high")] == [0] * 3
    assert systems["same_network"].to_metrics("same_network", 1000) == {
        "same_network.rows_per_second": 100.0,
        "same_network.whole_process_rows_per_second": 50.0,
        "same_network.peak_memory_gb": 1.0,
        "same_network.auc": systems["same_network"].auc,
    }


def test_peers_that_cannot_be_installed_are_said_and_left_out(tmp_path, monkeypatch, capsys):
    def no_network(name, requirements):
        raise ValueError(f"pip could not install {' '.join(requirements)}: no network")

    def pretend(command, name, data, rows, label_N):
        assert name in ("same_network", "default_network")
        return ran(10, scores(label_N, 1.0), label_N, 0.6)

    monkeypatch.setattr(bench, "peer_python", no_network)
    monkeypatch.setattr(bench, "_run", pretend)
    metrics = bench.bench_ranking(4096)
    assert metrics["same_network.rows_per_second"] == 409.6
    assert metrics["peak_share"] == 0.6
    assert not any(name.startswith(("speedup", "delta", "fuxictr")) for name in metrics)
    said = capsys.readouterr().err
    assert "fuxictr is left out: pip could not install fuxictr==2.3.10" in said


def test_adtower_runs_before_between_and_after_the_peers_and_its_mean_counts(monkeypatch):
    order = []

    def pretend(command, name, data, rows, label_N):
        order.append(name)
        seconds = {"fuxictr": 90, "deepctr": 120}.get(name, 10.0 * order.count(name))
        return ran(seconds, scores(label_N, 1.0), label_N, 0.6)

    monkeypatch.setattr(bench, "peer_python", lambda name, requirements: "python")
    monkeypatch.setattr(bench, "_run", pretend)
    metrics = bench.bench_ranking(4096)
    own = list(bench.OWN)
    assert order == [*own, "fuxictr", *own, "deepctr", *own]
    # 10, 20 and 30 seconds.
    assert metrics["same_network.rows_per_second"] == pytest.approx(4096 / 20)
    assert metrics["speedup.same_network"] == pytest.approx(90 / 20)


def test_an_environment_that_failed_is_not_taken_for_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError, match="pip could not install no-such-package"):
        peer_python("none", ["no-such-package==1"], folder=tmp_path)
    assert not list(tmp_path.glob("*/installed.txt"))


def test_a_process_that_fails_is_said(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('out of luck')"]
    with pytest.raises(ValueError, match="fuxictr ended with status 1: out of luck"):
        bench._run(command, "fuxictr", tmp_path, 10, np.ones(1))


def test_adtowers_own_process_says_what_it_took(tmp_path, capsys):
    write_clicks_(tmp_path, train=3000, test=500)
    bench._own("default_network", tmp_path, 3000, 512, 1, 1e-3)
    found = json.loads(capsys.readouterr().out)
    assert found["fit_seconds"] > 0
    assert 0 < found["share_of_peak"] < 1
    assert np.load(tmp_path / "default_network.scores.npy").shape == (500,)


def test_less_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="rows is 4095; at least one batch of 4096"):
        bench.bench_ranking(4095)
