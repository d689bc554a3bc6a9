"""Certificates: every claim can fail, and verifying needs nothing that trains."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ranking import certificate
from ranking.baselines import LightGBMConfig, LightGBMRanker, LogisticRegression
from ranking.bundle import GOLDEN_FILE, GOLDEN_SCORE, open_bundle, seal_
from ranking.certificate import beyond, misordered, parity_check, verify_bundle
from ranking.export import export_bundle
from ranking.golden import CASE, HIGH, LOW, threshold_rows
from ranking.score import Scorer

ROOT = Path(__file__).parents[2]
NEVER = {"torch", "torchrec", "transformers", "mlflow"}


@pytest.fixture(scope="module")
def bundles(shop, tmp_path_factory):
    """A network and trees, both with vectors."""
    train, validation = shop.examples.take(slice(0, 480)), shop.examples.take(slice(480, 600))
    folder = tmp_path_factory.mktemp("bundles")
    for model in (LogisticRegression(), LightGBMRanker(LightGBMConfig(rounds=4, min_leaf_rows=5))):
        export_bundle(
            model.fit(train, validation, shop.vectors, seed=0),
            shop.pipeline,
            shop.product_store,
            shop.query_store,
            shop.impressions[480:],
            folder / model.name,
        )
    return folder


@pytest.fixture(params=["logistic_regression", "lightgbm"])
def bundle(bundles, request, tmp_path):
    return shutil.copytree(bundles / request.param, tmp_path / "bundle")


def named(bundle, name):
    return {check.name: check for check in verify_bundle(bundle).checks}[name]


def test_a_sound_bundle_passes_again_with_the_same_figures(bundle):
    recorded = {
        check["name"]: check["value"]
        for check in json.loads((bundle / "certificate.json").read_text())["checks"]
        if "latency" not in check["name"] and "against_model" not in check["name"]
    }
    again = verify_bundle(bundle)
    assert again.passed
    assert again.failures == ""
    # The certificate and the card are files too; they came after the first check.
    recorded["files"] += 1
    assert {
        c.name: c.value for c in again.checks if "latency" not in c.name
    } == recorded  # fmt: skip
    assert again.to_metrics()["passed"] == 1.0


def test_a_damaged_file_is_one_failed_check(bundle):
    with (bundle / "features" / "transforms.json").open("a") as file:
        file.write(" ")
    (check,) = verify_bundle(bundle).checks
    assert check.name == "files"
    assert not check.passed
    assert "transforms.json has" in check.note


def test_scores_that_moved_by_more_than_the_tolerance_fail(bundle):
    opened = open_bundle(bundle)
    golden = pl.read_parquet(bundle / GOLDEN_FILE)
    moved = golden.with_columns(pl.col(c) + 2e-6 for c in (GOLDEN_SCORE, LOW, HIGH))
    moved.write_parquet(bundle / GOLDEN_FILE)
    seal_(bundle, opened.manifest)
    assert {c.name.split(".")[0] for c in verify_bundle(bundle).checks if not c.passed} == {
        "golden", "batch_1", "batch_2", "batch_7", "batch_500", "permuted_columns",
        "permuted_candidates", "request_by_candidate",
    }  # fmt: skip
    assert verify_bundle(bundle, tolerance=3e-6).passed


def test_a_bundle_that_scores_nan_is_caught(bundle, monkeypatch):
    monkeypatch.setattr(Scorer, "score_examples", lambda self, examples, vectors: examples.label_N)
    check = named(bundle, "refuses_nan.arrays")
    assert not check.passed
    assert check.note == "was scored, but must be refused"


def test_candidates_that_sway_each_other_are_caught(bundle, monkeypatch):
    score = Scorer.score

    def centred(self, what):
        p_N = score(self, what)
        return p_N + 1e-4 * (p_N - p_N.mean())

    monkeypatch.setattr(Scorer, "score", centred)
    assert not named(bundle, "batch_7").passed
    assert not named(bundle, "permuted_candidates").passed


def test_rows_on_thresholds_go_to_the_left(bundles):
    booster = certificate.load_trees(
        open_bundle(bundles / "lightgbm"),
        open_bundle(bundles / "lightgbm").manifest.members[0],
    )
    trees = booster.dump_model()
    rows = threshold_rows(trees, np.zeros(booster.num_feature()))
    numeric = [s for s in walk(trees) if s["decision_type"] == "<="]
    assert len(numeric) > 3
    for split in numeric:
        column_M = rows[:, split["split_feature"]]
        assert (column_M == split["threshold"]).any()
        assert (column_M == np.nextafter(split["threshold"], np.inf)).any()


def walk(trees):
    waiting = [tree["tree_structure"] for tree in trees["tree_info"]]
    while waiting:
        node = waiting.pop()
        if "split_feature" in node:
            yield node
            waiting += [node["left_child"], node["right_child"]]


def test_thresholds_that_were_rounded_are_caught(bundles, tmp_path):
    bundle = shutil.copytree(bundles / "lightgbm", tmp_path / "bundle")
    opened = open_bundle(bundle)
    lines = (bundle / "trees.txt").read_text().splitlines(keepends=True)
    # Written to six digits, as many a converter does; the sizes of trees are then other too.
    rounded = [
        "threshold=" + " ".join(f"{float(v):.6g}" for v in line[10:].split()) + "\n"
        if line.startswith("threshold=")
        else line
        for line in lines
        if not line.startswith("tree_sizes=")
    ]
    (bundle / "trees.txt").write_text("".join(rounded))
    seal_(bundle, opened.manifest)
    assert not named(bundle, "thresholds.trees.txt").passed


def test_order_by_hand():
    low_N = np.array([0.1, 0.2, 0.2, 0.3])
    assert misordered(np.array([0.1, 0.2, 0.19, 0.3]), low_N, low_N, 1e-6) == 0
    # The last row scores below both in the middle.
    assert misordered(np.array([0.1, 0.2, 0.2, 0.15]), low_N, low_N, 1e-6) == 1
    # Equal scores where one must be above are out of order as well.
    assert misordered(np.array([0.2, 0.2, 0.2, 0.3]), low_N, low_N, 1e-6) == 2
    assert misordered(np.array([0.1, 0.1, 0.2, 0.3]), low_N, low_N, 0.1) == 0
    high_N = low_N + np.array([0.15, 0, 0, 0])
    # The first may be anything to 0.25, so only the last must be above it.
    assert misordered(np.array([0.22, 0.2, 0.2, 0.3]), low_N, high_N, 1e-6) == 0


def test_distances_by_hand():
    found_N, low_N, high_N = np.array([0.1, 0.5, 0.9]), np.full(3, 0.3), np.full(3, 0.6)
    np.testing.assert_allclose(beyond(found_N, low_N, high_N), [0.2, 0.0, 0.3])
    nan = parity_check("x", np.array([np.nan]), np.array([0.5]), np.array([0.5]), 1.0)
    assert not nan.passed
    assert nan.value is None


def test_every_case_has_its_rows(bundle):
    golden = pl.read_parquet(bundle / GOLDEN_FILE)
    counts = dict(golden[CASE].value_counts().iter_rows())
    assert counts["sample"] == 120
    assert counts["random"] == 256
    assert counts["one_request"] == 64
    assert counts["missing_vectors"] == counts["empty_history"] == counts["no_user_id"] == 16
    request = golden.filter(pl.col(CASE) == "one_request")
    assert request["user_id"].n_unique() == 1
    assert request["product_id"].n_unique() == 30


@pytest.mark.parametrize("kind", ["logistic_regression", "lightgbm"])
def test_verifying_imports_nothing_that_trains(kind, bundles):
    other = {"lightgbm"} if kind == "logistic_regression" else {"onnxruntime"}
    code = (
        "import sys\n"
        f"sys.argv = ['adtower', 'verify', {str(bundles / kind)!r}]\n"
        "from experiments.__main__ import main\n"
        "main()\n"
        f"loaded = {NEVER | other!r} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "checks passed" in done.stdout
