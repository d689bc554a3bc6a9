"""How fast an exported click model scores one request, beside three other ways of scoring it.

The paper's two towers over 26 sparse features (one table of 100,000 rows each), 13 dense columns
and three vectors of 128 dimensions, on one core. Everyone starts from arrays and ends with
probabilities. Contenders take turns, so that a busy machine slows all alike.

Shape letters: N candidates, T columns of trees.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightgbm import Booster
from numpy.typing import NDArray

from experiments.bench_data import DENSE, SPARSE, criteo_shaped
from experiments.bench_export_peers import (
    Score,
    eager_scorer,
    torchrec_onnx_scorer,
    train_trees,
)
from features.embedding_join import Vectors, gather_vectors
from features.examples import Examples
from ranking.bundle import OUTPUT_NAME
from ranking.columns import tree_columns
from ranking.contract import InputSignature
from ranking.feeds import FeatureSplit, graph_feed
from ranking.lowering import write_network_
from ranking.model import ClickNetwork
from ranking.network import build_network
from ranking.predictor import open_session
from ranking.tower_config import TowerConfig

CANDIDATES = (100, 500)
DIM, HISTORY = 128, 20
PRODUCTS, QUERIES = 5000, 1000
REQUEST_SPARSE, REQUEST_DENSE = 10, 4
"""Features of the user, the query and the time: the same for all candidates of a request."""

_OWN_CALLS, _PEER_CALLS, _SLOW_CALLS = 40, 10, 1
_ROUNDS = 10
_TREE_ROWS = 8000

Metrics = dict[str, float]


def bench_export(*, table_rows: int = 100_000, rounds: int = _ROUNDS) -> Metrics:
    """Time one request of 100 and of 500 candidates.

    Args:
        table_rows: Rows of each id table.
        rounds: How often the contenders take turns: 40 calls of the bundle's graph each time, 10 of
            eager torch and of LightGBM, one of torchrec's export.

    Returns:
        ``adtower.p50_ms_N`` and ``p99_ms_N`` of the bundle's graph; ``NAME.p50_ms_N`` of each
        peer; ``speedup.NAME_N``, the ratio of the medians, and ``speedup.NAME``, the lesser of the
        two; ``export.max_difference``, the largest distance between the graph's probabilities
        and eager torch's.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return _bench(table_rows, rounds, Path(scratch))
    finally:
        torch.set_num_threads(threads)


def one_request(candidates: int, *, table_rows: int, seed: int) -> Examples:
    """Generate the candidates of one request, ids log-uniform as in ``criteo_shaped``."""
    rng = np.random.default_rng(seed)
    rows = criteo_shaped(candidates, table_rows=table_rows, seed=seed)
    sparse_NF, dense_NC = rows.sparse_NF.copy(), rows.dense_NC.copy()
    sparse_NF[:, :REQUEST_SPARSE] = sparse_NF[0, :REQUEST_SPARSE]
    dense_NC[:, :REQUEST_DENSE] = dense_NC[0, :REQUEST_DENSE]
    bought_L = rng.integers(PRODUCTS, size=HISTORY).astype(np.int32)
    return replace(
        rows,
        sparse_names=_names(SPARSE, REQUEST_SPARSE),
        sparse_NF=sparse_NF,
        dense_names=_names(DENSE, REQUEST_DENSE),
        dense_NC=dense_NC,
        product_N=rng.integers(PRODUCTS, size=candidates).astype(np.int32),
        query_N=np.full(candidates, rng.integers(QUERIES), np.int32),
        history_NL=np.tile(bought_L, (candidates, 1)),
    )


def _bench(table_rows: int, rounds: int, scratch: Path) -> Metrics:
    vectors = _vectors()
    requests = {n: one_request(n, table_rows=table_rows, seed=n) for n in CANDIDATES}
    signature = InputSignature.of(requests[CANDIDATES[0]], vectors)
    network = _network(signature)
    inputs = {n: _network_inputs(examples, vectors) for n, examples in requests.items()}
    own = _own_scorer(network, signature, scratch / "model.onnx")
    split = FeatureSplit.of(signature)
    feeds = {n: graph_feed(split, examples, vectors) for n, examples in requests.items()}
    first = inputs[CANDIDATES[0]]
    peers: dict[str, Score] = {
        "eager": eager_scorer(network),
        "torchrec_onnx": torchrec_onnx_scorer(network, first, scratch / "torchrec.onnx"),
    }
    trees = _trees(table_rows, vectors)
    columns = {n: tree_columns(examples, vectors) for n, examples in requests.items()}
    metrics: Metrics = {"export.max_difference": 0.0}
    for n in CANDIDATES:
        expected_N = peers["eager"](inputs[n])
        for found_N in (own(feeds[n]), peers["torchrec_onnx"](inputs[n])):
            difference = float(np.abs(found_N - expected_N).max())
            metrics["export.max_difference"] = max(metrics["export.max_difference"], difference)
        calls: dict[str, tuple[Callable[[], object], int]] = {
            "adtower": (lambda n=n: own(feeds[n]), _OWN_CALLS),
            "eager": (lambda n=n: peers["eager"](inputs[n]), _PEER_CALLS),
            "lightgbm": (lambda n=n: trees.predict(columns[n], num_threads=1), _PEER_CALLS),
            "torchrec_onnx": (lambda n=n: peers["torchrec_onnx"](inputs[n]), _SLOW_CALLS),
        }
        metrics |= _timed_in_turn(calls, rounds, n)
    for name in ("torchrec_onnx", "eager", "lightgbm"):
        metrics[f"speedup.{name}"] = min(metrics[f"speedup.{name}_{n}"] for n in CANDIDATES)
    return metrics


def _timed_in_turn(
    calls: dict[str, tuple[Callable[[], object], int]], rounds: int, candidates: int
) -> Metrics:
    times_ms: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, repeats) in calls.items():
            # Untimed, because the one before has filled the caches with its own weights.
            call()
            for _ in range(repeats):
                began = time.perf_counter()
                call()
                times_ms[name].append((time.perf_counter() - began) * 1e3)
    own_ms = float(np.median(times_ms["adtower"]))
    metrics = {f"adtower.p99_ms_{candidates}": float(np.percentile(times_ms["adtower"], 99))}
    for name, found_ms in times_ms.items():
        metrics[f"{name}.p50_ms_{candidates}"] = float(np.median(found_ms))
        if name != "adtower":
            metrics[f"speedup.{name}_{candidates}"] = float(np.median(found_ms)) / own_ms
    return metrics


def _network(signature: InputSignature) -> ClickNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, tables = build_network(TowerConfig(), signature)
        assert tables is not None
        with torch.no_grad():
            # As large as trained rows are, so that differences show.
            for weight in tables.weights():
                weight.normal_(0.0, 0.3)
    return network.eval()


def _own_scorer(
    network: ClickNetwork, signature: InputSignature, path: Path
) -> Callable[[dict[str, NDArray]], NDArray[np.floating]]:
    write_network_(network, signature, path)
    session = open_session(path)
    return lambda feed: np.asarray(session.run([OUTPUT_NAME], feed)[0])


def _network_inputs(examples: Examples, vectors: Vectors) -> list[NDArray]:
    rows = gather_vectors(vectors, examples)
    return [
        examples.sparse_NF, examples.dense_NC,
        rows.product_ND, rows.query_ND, rows.history_ND, rows.present_N3,
    ]  # fmt: skip


def _trees(table_rows: int, vectors: Vectors) -> Booster:
    rows = one_request(_TREE_ROWS, table_rows=table_rows, seed=0)
    varied = criteo_shaped(_TREE_ROWS, table_rows=table_rows, seed=0)
    rows = replace(rows, sparse_NF=varied.sparse_NF, dense_NC=varied.dense_NC)
    assert rows.label_N is not None
    return train_trees(tree_columns(rows, vectors).astype(np.float32), rows.label_N, seed=0)


def _vectors() -> Vectors:
    rng = np.random.default_rng(0)
    return Vectors(
        product_PD=rng.normal(size=(PRODUCTS, DIM)).astype(np.float32),
        product_present_P=np.ones(PRODUCTS, bool),
        query_QD=rng.normal(size=(QUERIES, DIM)).astype(np.float32),
        query_present_Q=np.ones(QUERIES, bool),
        fingerprint="generated",
    )


def _names(columns: int, of_request: int) -> tuple[str, ...]:
    return tuple(
        f"{'queries' if column < of_request else 'products'}.{column}" for column in range(columns)
    )
