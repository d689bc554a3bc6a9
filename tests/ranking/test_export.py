"""Bundles: written only when they score as the trained model does."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embeddings.store import VectorStore
from features.dataset import Dataset
from features.pipeline import FeaturePipeline
from features.schema import DatasetSpec, FeatureNames
from ranking import certificate, export
from ranking.baselines import (
    BaseRate,
    LightGBMConfig,
    LightGBMRanker,
    LogisticRegression,
)
from ranking.bundle import CERTIFICATE_FILE, GOLDEN_SCORE, open_bundle
from ranking.calibration import Isotonic, Platt
from ranking.certificate import verify_bundle
from ranking.ensemble import Ensemble
from ranking.export import export_bundle
from ranking.golden import CASE, SAMPLE
from ranking.metrics import auc
from ranking.model_card import CardFacts
from ranking.score import Scorer
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig

SMALL = {"batch_size": 64, "max_epochs": 2, "projected_dim": 8, "sparse_lr": 0.05}
PLATT = Platt(slope=0.7, intercept=-0.4)
ISOTONIC = Isotonic(
    predicted_K=np.array([0.0, 0.3, 0.30001, 1.0]), calibrated_K=np.array([0.1, 0.2, 0.4, 0.9])
)


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
def ensemble(tower, trees):
    return Ensemble([tower, trees])


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


def test_every_check_is_recorded_with_its_figure(bundle):
    recorded = json.loads((bundle / CERTIFICATE_FILE).read_text())
    assert recorded["passed"]
    checks = {check["name"]: check for check in recorded["checks"]}
    expected = {
        "files", "no_loop.model.onnx", "batch_1", "batch_2", "batch_7", "batch_500",
        "permuted_columns", "permuted_candidates", "request_by_candidate",
        "golden.sample", "golden.random", "golden.one_request", "golden.missing_vectors",
        "golden.unknown_product_id", "golden.unknown_query_id", "golden.unknown_user_id",
        "golden.no_query_id", "golden.no_user_id", "golden.empty_history",
        "refuses_nan.arrays", "refuses_ids_beyond_tables", "refuses_other_vectors",
        "latency_ms.p50_1", "latency_ms.p99_1", "latency_ms.p50_100", "latency_ms.p99_100",
        "latency_ms.p50_500", "latency_ms.p99_500", "against_model.random",
    }  # fmt: skip
    assert set(checks) == expected
    for check in checks.values():
        assert check["passed"]
        if check["limit"] is not None:
            assert check["value"] <= check["limit"]
    assert checks["latency_ms.p99_500"]["value"] >= checks["latency_ms.p50_500"]["value"] > 0


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
    write(shop, model, tmp_path / "bundle")


@pytest.mark.parametrize("with_vectors", [True, False])
def test_logistic_regression_and_trees_can_be_exported(with_vectors, shop, rows, tmp_path):
    vectors = shop.vectors if with_vectors else None
    for model in (LogisticRegression(), LightGBMRanker(LightGBMConfig(rounds=5, min_leaf_rows=5))):
        model.fit(*rows, vectors, seed=0)
        written = write(shop, model, tmp_path / model.name)
        p_click_N = Scorer.load(written).score(shop.impressions)
        expected_N = model.predict_proba(shop.examples, vectors)
        limit = 1e-6 if model.name == "logistic_regression" else 0
        np.testing.assert_allclose(p_click_N, expected_N, rtol=0, atol=limit)


@pytest.mark.parametrize("calibrator", [PLATT, ISOTONIC], ids=["platt", "isotonic"])
@pytest.mark.parametrize("kind", ["tower", "trees", "ensemble"])
def test_calibration_travels_with_the_bundle(kind, calibrator, shop, request, tmp_path):
    model = request.getfixturevalue(kind)
    written = write(shop, model, tmp_path / "bundle", calibrator=calibrator)
    assert open_bundle(written).manifest.calibration_inside == (kind == "tower")
    raw_N = model.predict_proba(shop.examples, shop.vectors)
    p_click_N = Scorer.load(written).score(shop.impressions)
    # The isotonic function climbs by 20,000 at its step, so compare what is left of it.
    flat_N = (raw_N < 0.2999) | (raw_N > 0.3002)
    np.testing.assert_allclose(
        p_click_N[flat_N], calibrator.calibrate(raw_N)[flat_N], rtol=0, atol=1e-6
    )
    assert np.abs(p_click_N - raw_N).max() > 0.01


@pytest.mark.parametrize("of", ["logit", "probability"])
def test_an_ensemble_is_the_mean_of_its_members(of, shop, tower, rows, tmp_path):
    plain = LightGBMRanker(LightGBMConfig(rounds=5, min_leaf_rows=5)).fit(*rows, None, seed=0)
    written = write(shop, Ensemble([tower, plain], of=of), tmp_path / "bundle")
    p_N, q_N = (model.predict_proba(shop.examples, shop.vectors) for model in (tower, plain))
    if of == "probability":
        expected_N = (p_N + q_N) / 2
    else:
        odds_N = np.sqrt(p_N / (1 - p_N) * q_N / (1 - q_N))
        expected_N = odds_N / (1 + odds_N)
    p_click_N = Scorer.load(written).score(shop.impressions)
    np.testing.assert_allclose(p_click_N, expected_N, rtol=0, atol=1e-6)
    assert {member.file for member in open_bundle(written).manifest.members} == {
        "model_0.onnx", "trees_1.txt",
    }  # fmt: skip


def test_an_ensemble_of_one_or_of_other_features_is_refused(shop, tower, rows):
    with pytest.raises(ValueError, match="an ensemble of 1 models; it needs two or more"):
        Ensemble([tower])
    fewer = [replace(part, sparse_names=("a", *part.sparse_names[1:])) for part in rows]
    other = LogisticRegression().fit(*fewer, None, seed=0)
    with pytest.raises(ValueError, match="'logistic_regression' was fitted with other features"):
        Ensemble([tower, other])


def test_vectors_may_stay_in_a_store_outside(shop, tower, tmp_path):
    bundle = write(shop, tower, tmp_path / "bundle", vectors_place="pointer")
    assert not (bundle / "product_vectors").exists()
    with pytest.raises(ValueError, match="points to vectors of fingerprint"):
        Scorer.load(bundle)
    for name, store in (("products", shop.product_store), ("queries", shop.query_store)):
        VectorStore.write_(
            tmp_path / "stores" / name,
            store.ids,
            store.vectors_VD,
            kind=store.manifest.kind,
            encoder_fingerprint="encoder",
        )
    p_click_N = Scorer.load(bundle, vectors=tmp_path / "stores").score(shop.impressions)
    expected_N = tower.predict_proba(shop.examples, shop.vectors)
    np.testing.assert_allclose(p_click_N, expected_N, rtol=0, atol=1e-6)
    assert verify_bundle(bundle, vectors=tmp_path / "stores").passed
    VectorStore.write_(
        tmp_path / "stores" / "products",
        shop.product_store.ids,
        -np.asarray(shop.product_store.vectors_VD),
        kind=shop.product_store.manifest.kind,
        encoder_fingerprint="encoder",
    )
    with pytest.raises(ValueError, match="scores would be noise"):
        Scorer.load(bundle, vectors=tmp_path / "stores")


def test_int8_tables_score_as_the_rounded_model_and_take_a_quarter(shop, rows, tmp_path):
    model = TowerRanker(TowerConfig(embedding_dim=32, **SMALL)).fit(*rows, shop.vectors, seed=0)
    plain = write(shop, model, tmp_path / "plain")
    small = write(shop, model, tmp_path / "int8", int8_tables=True)
    saved = (plain / "model.onnx").stat().st_size - (small / "model.onnx").stat().st_size
    table_rows = sum(shop.examples.vocabulary_sizes)
    # 3 of 4 bytes of 32 values a row, less a scale of 4 bytes.
    assert saved == pytest.approx(table_rows * (3 * 32 - 4), rel=0.1)
    whole_N, rounded_N = (Scorer.load(path).score(shop.impressions) for path in (plain, small))
    assert 0 < np.abs(whole_N - rounded_N).max() < 0.01
    assert "Id tables are int8" in (small / "model_card.md").read_text()


def test_int8_tables_that_cost_too_much_are_refused_with_the_numbers(
    shop, tower, trees, tmp_path, monkeypatch
):
    monkeypatch.setattr("ranking.quantise.MAX_CALIBRATION_CHANGE", 0.0)
    message = r"AUC 0\.\d+ becomes 0\.\d+ \(may lose 0.0005\), mean .* 1?0?\.\d+ becomes"
    with pytest.raises(ValueError, match=message):
        write(shop, tower, tmp_path / "bundle", int8_tables=True)
    with pytest.raises(ValueError, match="a 'lightgbm' model has no id tables"):
        write(shop, trees, tmp_path / "bundle", int8_tables=True)
    with pytest.raises(ValueError, match="carries no labels to judge by"):
        stores = shop.product_store, shop.query_store
        sample = shop.impressions.drop("clicked")
        export_bundle(tower, shop.pipeline, *stores, sample, tmp_path / "bundle", int8_tables=True)
    assert list(tmp_path.iterdir()) == []


def test_the_model_card_says_what_data_and_how_good(shop, tower, tmp_path):
    late_N = np.arange(120) >= 60
    facts = CardFacts(
        data={"name": "the shop", "parts": {"train": {"impressions": 480}}},
        slices={"late": late_N},
    )
    bundle = write(shop, tower, tmp_path / "bundle", calibrator=PLATT, facts=facts)
    card = (bundle / "model_card.md").read_text()
    label_N = shop.impressions["clicked"].to_numpy()[480:]
    p_N = PLATT.calibrate(tower.predict_proba(shop.examples, shop.vectors)[480:])
    late = f"| late | 60 | {auc(label_N[late_N], p_N[late_N]):.4f} |"
    for line in (
        "- name: the shop", "- parts.train.impressions: 480", "120 impressions, 2024-03-07 16",
        late, "sigmoid(0.7000 logit + -0.4000)", "user_id (26)", "## Limits",
    ):  # fmt: skip
        assert line in card


def test_further_files_are_sealed_with_the_rest(shop, trees, tmp_path):
    bundle = write(
        shop, trees, tmp_path / "bundle", more_files=lambda out: (out / "note.txt").write_text("x")
    )
    assert open_bundle(bundle).read("note.txt") == b"x"


def test_a_wrong_graph_fails_the_export_and_leaves_nothing(shop, tower, tmp_path, monkeypatch):
    right = export.write_network_

    def wrong(network, signature, path, **given):
        right(network, signature, path, **{**given, "calibrator": Platt(slope=1, intercept=0.01)})

    monkeypatch.setattr(export, "write_network_", wrong)
    with pytest.raises(ValueError, match=r"nothing was written. golden.sample: row 0 is"):
        write(shop, tower, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_that_reads_back_differently_fails_the_export(
    shop, trees, tmp_path, monkeypatch
):
    load = certificate.Scorer.load

    def damaged(folder, **options):
        scorer = load(folder, **options)
        price = scorer.pipeline._dense["products.price"]
        price.mean_ = price.mean_ + 0.5
        scorer.pipeline._prepare()
        return scorer

    monkeypatch.setattr(certificate.Scorer, "load", damaged)
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


def test_golden_rows_are_raw_impressions_with_their_scores(bundle, shop, tower):
    golden = pl.read_parquet(bundle / "golden.parquet").filter(pl.col(CASE) == SAMPLE)
    assert golden["product_id"].equals(shop.impressions["product_id"][480:])
    expected_N = tower.predict_proba(shop.examples, shop.vectors)[480:]
    np.testing.assert_array_equal(golden[GOLDEN_SCORE].to_numpy(), expected_N)


def test_golden_rows_lack_nothing_that_every_log_has(shop, tmp_path):
    log = shop.impressions.with_columns(shelf=pl.col("position") % 2)
    features = FeatureNames(sparse=("product_id", "position", "shelf"))
    dataset = Dataset.from_tables(DatasetSpec(name="log", features=features), impressions=log)
    pipeline = FeaturePipeline(dataset.spec).fit(dataset, log[:480])
    parts = pipeline.transform(log[:480]), pipeline.transform(log[480:])
    model = LogisticRegression().fit(*parts, None, seed=0)
    bundle = export_bundle(model, pipeline, None, None, log[480:], tmp_path / "bundle")
    golden = pl.read_parquet(bundle / "golden.parquet")
    missing = golden.filter(pl.col(CASE) == "missing_values")
    assert missing["shelf"].null_count() == len(missing) > 0
    assert golden["position"].null_count() == 0
