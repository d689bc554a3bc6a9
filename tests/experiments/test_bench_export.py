"""The bench of exports times four scorers of the same thing; how fast is never a matter here."""

import numpy as np
import pytest

from experiments.bench_data import criteo_shaped
from experiments.bench_export import CANDIDATES, bench_export, one_request
from experiments.bench_export_peers import LEAVES, TREES, train_trees
from ranking.contract import InputSignature
from ranking.feeds import FeatureSplit

PEERS = ("torchrec_onnx", "eager", "lightgbm")


@pytest.fixture(scope="module")
def metrics():
    return bench_export(table_rows=60, rounds=1)


def test_all_four_stand_beside_each_other_in_one_run(metrics):
    for n in CANDIDATES:
        own = metrics[f"adtower.p50_ms_{n}"]
        assert metrics[f"adtower.p99_ms_{n}"] >= own > 0
        for name in PEERS:
            expected = metrics[f"{name}.p50_ms_{n}"] / own
            assert metrics[f"speedup.{name}_{n}"] == pytest.approx(expected)
    for name in PEERS:
        both = [metrics[f"speedup.{name}_{n}"] for n in CANDIDATES]
        assert metrics[f"speedup.{name}"] == min(both)


def test_the_three_graphs_compute_the_same_thing(metrics):
    assert metrics["export.max_difference"] < 1e-6


def test_a_request_has_criteos_shape_and_one_side_of_its_own():
    request = one_request(100, table_rows=1000, seed=0)
    assert request.sparse_NF.shape == (100, 26)
    assert request.dense_NC.shape == (100, 13)
    split = FeatureSplit.of(InputSignature.of(request, None))
    assert len(split.request_sparse) == 10
    assert len(split.request_dense) == 4
    assert split.one_request(request, with_vectors=True)
    assert (np.ptp(request.sparse_NF[:, split.candidate_sparse], axis=0) > 0).all()


def test_trees_too_small_to_compare_with_are_refused():
    few = criteo_shaped(500, table_rows=10, seed=0)
    assert few.label_N is not None
    with pytest.raises(ValueError, match=f"{TREES} of {LEAVES} are needed"):
        train_trees(few.dense_NC, few.label_N, seed=0)
