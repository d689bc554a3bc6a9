"""The bench of the server asks a real one; how fast it answers is never a matter for a test."""

import math

import pytest

from experiments.bench_serve import Load, _compare_, bench_serve
from experiments.marketplace.world import make_world
from features.dataset import Dataset


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    world = Dataset.open(make_world(folder / "world", products=150, requests=400))
    return bench_serve(world, folder / "served", seconds=0.3)


def test_ten_reloads_under_load_cost_no_request(metrics):
    assert metrics["serve.reload_failures"] == 0
    assert metrics["serve.reload_mixed"] == 0
    assert metrics["serve.reload_bundles"] == 2


def test_latency_and_throughput_are_measured_with_one_client_and_with_four(metrics):
    for clients in (1, 4):
        assert metrics[f"serve.requests_per_s_{clients}"] > 0
        assert 0 < metrics[f"serve.p50_ms_{clients}"] <= metrics[f"serve.p99_ms_{clients}"]
    assert metrics["serve.cpu_ms"] > 0
    assert all(isinstance(v, float) and math.isfinite(v) for v in metrics.values())


def test_scores_of_another_bundle_than_the_one_named_are_counted():
    load, expected = Load(), {"a": [0.1, 0.2], "b": [0.1, 0.3]}
    _compare_(load, {"bundle": "a", "p_click": [0.1, 0.2]}, expected)
    assert load.mixed == 0
    _compare_(load, {"bundle": "b", "p_click": [0.1, 0.2]}, expected)
    assert (load.mixed, load.bundles) == (1, {"a", "b"})
