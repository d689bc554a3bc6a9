"""Scoring a bundle: whatever the rows are, and never from files that were changed."""

import shutil
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from ranking.baselines import LogisticRegression
from ranking.export import export_bundle
from ranking.score import Scorer


@pytest.fixture(scope="module")
def bundle(shop, tmp_path_factory):
    train, validation = shop.examples.take(slice(0, 480)), shop.examples.take(slice(480, 600))
    return export_bundle(
        LogisticRegression().fit(train, validation, shop.vectors, seed=0),
        shop.pipeline,
        shop.product_store,
        shop.query_store,
        shop.impressions[480:],
        tmp_path_factory.mktemp("bundles") / "logistic",
    )


@pytest.fixture(scope="module")
def scorer(bundle):
    return Scorer.load(bundle)


def test_one_row_scores_as_it_does_among_many(scorer, shop):
    whole_N = scorer.score(shop.impressions)
    one_N = np.concatenate([scorer.score(shop.impressions[row : row + 1]) for row in range(20)])
    np.testing.assert_allclose(one_N, whole_N[:20], atol=1e-7)


def test_more_rows_than_a_batch_score_the_same(scorer, shop, monkeypatch):
    whole_N = scorer.score(shop.impressions)
    monkeypatch.setattr("ranking.predictor._BATCH", 7)
    np.testing.assert_allclose(scorer.score(shop.impressions), whole_N, atol=1e-7)


def test_no_rows_give_no_scores(scorer, shop):
    assert scorer.score(shop.impressions[:0]).shape == (0,)


def test_a_row_of_strangers_is_scored(scorer):
    stranger = pl.DataFrame(
        {
            "time": [datetime(2030, 1, 1, tzinfo=UTC)],
            "user_id": ["nobody"],
            "query_id": ["never asked"],
            "product_id": ["not sold"],
        }
    )
    p_click_N = scorer.score(stranger)
    assert p_click_N.shape == (1,)
    assert 0 < p_click_N[0] < 1


def test_missing_columns_are_named(scorer, shop):
    with pytest.raises(ValueError, match="user_id"):
        scorer.score(shop.impressions.drop("user_id"))


def test_any_changed_file_is_refused_before_it_is_parsed(bundle, tmp_path):
    for path in sorted(bundle.rglob("*")):
        if not path.is_file():
            continue
        copy = tmp_path / path.relative_to(bundle).as_posix().replace("/", "_")
        shutil.copytree(bundle, copy)
        changed = copy / path.relative_to(bundle)
        content = bytearray(changed.read_bytes())
        content[len(content) // 2] ^= 1
        changed.write_bytes(content)
        with pytest.raises(ValueError, match="changed or damaged"):
            Scorer.load(copy)


def test_missing_and_added_files_are_refused(bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    (copy / "extra.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"does not list: \['extra.onnx'\]"):
        Scorer.load(copy)
    (copy / "extra.onnx").unlink()
    (copy / "features" / "transforms.json").unlink()
    with pytest.raises(ValueError, match=r"transforms.json is missing"):
        Scorer.load(copy)


def test_a_folder_that_is_no_bundle_is_refused(bundle, tmp_path):
    with pytest.raises(ValueError, match=r"manifest.json does not exist"):
        Scorer.load(tmp_path)
