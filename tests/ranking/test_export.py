"""Bundles: written only when they score as the trained model does."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
import torch

from embeddings.store import VectorStore
from ranking import certificate, export
from ranking.baselines import (
    BaseRate,
    LightGBMConfig,
    LightGBMRanker,
    LogisticRegression,
)
from ranking.bundle import CERTIFICATE_FILE, GOLDEN_SCORE, onnx_inputs
from ranking.calibration import Isotonic, Platt
from ranking.certificate import same_order
from ranking.export import export_bundle
from ranking.score import Scorer
from ranking.tower import TowerConfig, TowerRanker

ONNX_FILE = "model.onnx"
SMALL = {"batch_size": 64, "max_epochs": 2, "projected_dim": 8, "sparse_lr": 0.05}


@pytest.fixture(scope="module")
def rows(shop):
    """Training and validation examples of the shop."""
    return shop.examples.take(slice(0, 480)), shop.examples.take(slice(480, 600))


@pytest.fixture(scope="module")
def tower(shop, rows):
    return TowerRanker(TowerConfig(**SMALL)).fit(*rows, shop.vectors, seed=0)


@pytest.fixture(scope="module")
def trees(shop, rows):
    model = LightGBMRanker(LightGBMConfig(rounds=10, min_leaf_rows=5))
    return model.fit(*rows, shop.vectors, seed=0)


@pytest.fixture(scope="module")
def bundle(shop, tower, tmp_path_factory):
    return write(shop, tower, tmp_path_factory.mktemp("bundles") / "tower")


def write(shop, model, out, **options) -> Path:
    stores = shop.product_store, shop.query_store
    return export_bundle(model, shop.pipeline, *stores, shop.impressions[480:], out, **options)


def test_a_bundle_scores_as_the_trained_model(shop, tower, bundle):
    p_click_N = Scorer.load(bundle).score(shop.impressions.drop("clicked", "position"))
    expected_N = tower.predict_proba(shop.examples, shop.vectors)
    np.testing.assert_allclose(p_click_N, expected_N, atol=1e-6)
    assert np.std(p_click_N) > 0.01


def test_every_case_of_the_certificate_is_recorded(bundle):
    certificate = json.loads((bundle / CERTIFICATE_FILE).read_text())
    assert set(certificate["max_difference"]) == {
        "batch_1", "batch_2", "batch_7", "batch_500", "unknown_product_id", "unknown_query_id",
        "unknown_user_id", "empty_history", "missing_vectors", "stored_vectors",
    }  # fmt: skip
    assert max(certificate["max_difference"].values()) < 1e-6
    assert certificate["latency_ms"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"use_vectors": False, "cross_rank": None, "head": ()},
        {"single_tower": True, "cross_layers": 0, "production_mlp": ()},
        {"derived": False, "presence": False},
    ],
    ids=str,
)
def test_every_shape_of_network_can_be_exported(options, shop, rows, tmp_path):
    model = TowerRanker(TowerConfig(**SMALL, **options)).fit(*rows, shop.vectors, seed=0)
    written = write(shop, model, tmp_path / "bundle")
    assert Scorer.load(written).golden_difference() < 1e-6


def test_logistic_regression_and_trees_can_be_exported(shop, rows, trees, tmp_path):
    for name, vectors in (("with", shop.vectors), ("without", None)):
        model = LogisticRegression().fit(*rows, vectors, seed=0)
        written = write(shop, model, tmp_path / name)
        assert Scorer.load(written).golden_difference() < 1e-6
    assert Scorer.load(write(shop, trees, tmp_path / "trees")).golden_difference() < 1e-12


def test_a_network_without_dense_features_can_be_exported(shop, rows, tmp_path):
    bare = [
        replace(examples, dense_names=(), dense_NC=examples.dense_NC[:, :0]) for examples in rows
    ]
    model = TowerRanker(TowerConfig(use_vectors=False, **SMALL)).fit(*bare, None, seed=0)
    export.write_onnx(export._network_of(model, None), model.signature_, tmp_path / ONNX_FILE)
    session = onnxruntime.InferenceSession(tmp_path / ONNX_FILE)
    inputs = onnx_inputs(bare[1].sparse_NF, bare[1].dense_NC, None)
    expected_N = model.predict_proba(bare[1], None)
    np.testing.assert_allclose(session.run(["p_click"], inputs)[0], expected_N, atol=1e-6)


def test_tables_are_one_gather_and_no_loop(bundle):
    graph = onnx.load(bundle / ONNX_FILE).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("Gather") == 1
    assert "Loop" not in operators
    assert [value.name for value in graph.output] == ["p_click"]
    assert [value.name for value in graph.input] == [
        "sparse", "dense", "product", "query", "history", "present",
    ]  # fmt: skip


def test_lowering_leaves_the_trained_model_whole(shop, tower):
    before_N = tower.predict_proba(shop.examples, shop.vectors)
    copy = export.lowered(tower.network_)
    with torch.no_grad():
        for weight in copy.parameters():
            weight.zero_()
    np.testing.assert_array_equal(tower.predict_proba(shop.examples, shop.vectors), before_N)


PLATT = Platt(slope=0.7, intercept=-0.4)
ISOTONIC = Isotonic(predicted_K=np.array([0.0, 0.5, 1.0]), calibrated_K=np.array([0.1, 0.2, 0.9]))


@pytest.mark.parametrize(
    ("kind", "calibrator"), [("tower", PLATT), ("trees", PLATT), ("trees", ISOTONIC)]
)
def test_calibration_travels_with_the_bundle(kind, calibrator, shop, request, tmp_path):
    model = request.getfixturevalue(kind)
    scorer = Scorer.load(write(shop, model, tmp_path / "bundle", calibrator=calibrator))
    raw_N = model.predict_proba(shop.examples, shop.vectors)
    p_click_N = scorer.score(shop.impressions)
    np.testing.assert_allclose(p_click_N, calibrator.calibrate(raw_N), atol=1e-6)
    assert np.abs(p_click_N - raw_N).max() > 0.01


def test_a_wrong_graph_fails_the_export_and_leaves_nothing(shop, tower, tmp_path, monkeypatch):
    right = export.lowered

    def wrong(network):
        copy = right(network)
        with torch.no_grad():
            copy.logit.bias += 0.01
        return copy

    monkeypatch.setattr(export, "lowered", wrong)
    with pytest.raises(ValueError, match=r"nothing was written. batch_1: row 0 is"):
        write(shop, tower, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_that_reads_back_differently_fails_the_export(
    shop, trees, tmp_path, monkeypatch
):
    load = certificate.Scorer.load

    def damaged(folder):
        scorer = load(folder)
        price = scorer.pipeline._dense["products.price"]
        price.mean_ = price.mean_ + 0.5
        scorer.pipeline._prepare()
        return scorer

    monkeypatch.setattr(export.Scorer, "load", damaged)
    with pytest.raises(ValueError, match="does not score as the trained model does"):
        write(shop, trees, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_other_vectors_are_refused(shop, tower, tmp_path):
    other = VectorStore.from_arrays(
        shop.product_store.ids,
        -np.asarray(shop.product_store.vectors_VD),
        kind="product/test",
        encoder_fingerprint="encoder",
    )
    impressions = shop.impressions[480:]
    with pytest.raises(ValueError, match=r"fitted with .* scores would be noise"):
        export_bundle(
            tower, shop.pipeline, other, shop.query_store, impressions, tmp_path / "bundle"
        )
    with pytest.raises(ValueError, match="query_store is None"):
        export_bundle(
            tower, shop.pipeline, shop.product_store, None, impressions, tmp_path / "bundle"
        )
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused(shop, rows, tower, bundle, tmp_path):
    base_rate = BaseRate().fit(*rows, None, seed=0)
    with pytest.raises(ValueError, match="'base_rate' model cannot be exported"):
        write(shop, base_rate, tmp_path / "bundle")
    with pytest.raises(ValueError, match="exists already"):
        write(shop, tower, bundle)
    with pytest.raises(ValueError, match="sample has no rows"):
        export_bundle(
            tower,
            shop.pipeline,
            shop.product_store,
            shop.query_store,
            shop.impressions[:0],
            tmp_path / "bundle",
        )


def test_golden_rows_are_raw_impressions_with_their_scores(bundle, shop):
    golden = pl.read_parquet(bundle / "golden.parquet")
    assert golden.drop(GOLDEN_SCORE).equals(shop.impressions[480:544])
    assert Scorer.load(bundle).golden_difference() < 1e-6


def test_order_is_compared_where_scores_differ():
    expected_N = np.array([0.1, 0.2, 0.3])
    assert same_order(expected_N, np.array([0.1, 0.2, 0.4]), 1e-5)
    assert not same_order(expected_N, np.array([0.1, 0.35, 0.3]), 1e-5)
    assert same_order(np.array([0.1, 0.1 + 1e-7]), np.array([0.1 + 1e-7, 0.1]), 1e-5)


def test_scoring_loads_no_torch(bundle, shop, tmp_path):
    table = tmp_path / "rows.parquet"
    shop.impressions[:20].write_parquet(table)
    code = (
        "import sys, polars as pl\n"
        "from ranking.score import Scorer\n"
        f"p = Scorer.load({str(bundle)!r}).score(pl.read_parquet({str(table)!r}))\n"
        "assert len(p) == 20\n"
        "loaded = {'torch', 'torchrec', 'lightgbm', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
