"""Scoring a bundle: requests as tables, whatever the rows are, and never from changed files."""

import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ranking.baselines import LogisticRegression
from ranking.bundle import open_bundle, seal_
from ranking.export import export_bundle
from ranking.request import request_of
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


def request_from(rows: pl.DataFrame, **fields):
    """One request of all these impressions, taken as one user's and one query's."""
    first = rows.row(0, named=True)
    return request_of(
        {
            "user_id": first["user_id"],
            "query_id": first["query_id"],
            "time": first["time"],
            "columns": {"device": first["device"]},
            "candidates": [
                {"product_id": row["product_id"], "columns": {"bid": row["bid"]}}
                for row in rows.iter_rows(named=True)
            ],
            **fields,
        }
    )


def as_table(rows: pl.DataFrame) -> pl.DataFrame:
    """The impressions of ``request_from``, as a table."""
    alike = ("user_id", "query_id", "query", "time", "device")
    return rows.with_columns(pl.col(name).first() for name in alike)


@pytest.fixture(scope="module")
def front_scorer(front):
    return Scorer.load(front.bundle)


def test_a_request_scores_as_its_table_does(front, front_scorer):
    for start in range(0, 600, 50):
        rows = front.impressions[start : start + 30].unique("product_id", maintain_order=True)
        scored = front_scorer.score(request_from(rows))
        # The table carries texts too, which a stored vector must make no use of.
        expected_K = front_scorer.score(as_table(rows).drop("query"))
        np.testing.assert_allclose(scored.p_click_K, expected_K, rtol=0, atol=1e-7)
        assert (np.diff(scored.p_click_K[scored.order_K]) <= 0).all()


def test_the_order_of_the_candidates_changes_no_score(front, front_scorer):
    rows = front.impressions[:40].unique("product_id", maintain_order=True)
    forward = front_scorer.score(request_from(as_table(rows)))
    backward = front_scorer.score(request_from(as_table(rows).reverse()))
    np.testing.assert_allclose(backward.p_click_K[::-1], forward.p_click_K, rtol=0, atol=1e-7)


def test_equal_scores_keep_the_order_of_the_candidates(front_scorer):
    strangers = {"candidates": ["x", "y", "z"], "columns": {"device": None, "bid": None}}
    assert front_scorer.score(request_of(strangers)).order_K.tolist() == [0, 1, 2]


def test_a_text_without_a_vector_is_encoded_as_in_training(front, front_scorer):
    rows = front.impressions[:20].unique("product_id", maintain_order=True)
    request = request_from(rows, query_id=None, query="red tea")
    prepared = front_scorer.prepare(request)
    query_D = prepared.vectors.query_QD[prepared.examples.query_N[0]]
    np.testing.assert_allclose(query_D, front.model.embed_queries(["red tea"])[0], atol=1e-5)
    assert prepared.diagnostics.query_vector == "encoded"
    assert front_scorer.prepare(request).diagnostics.query_vector == "cached"
    without = front_scorer.score(request_from(rows, query_id="never seen"))
    assert without.diagnostics.query_vector == "missing"
    found = front_scorer.score_prepared(prepared)
    assert np.abs(found.p_click_K - without.p_click_K).max() > 1e-4


def test_texts_in_a_table_score_as_the_same_texts_in_requests(front, front_scorer):
    products = front.impressions["product_id"].unique(maintain_order=True)[:4]
    texts = ["red tea", "thing 0", "thing 5", None, "", "green milk", "red tea", "old cup"]
    template = front.impressions[0].with_columns(query_id=pl.lit(None, pl.String))
    tables, expected = [], []
    for text in texts:
        rows = pl.concat([template.with_columns(query=pl.lit(text, pl.String))] * len(products))
        rows = rows.with_columns(products.alias("product_id"))
        tables.append(rows)
        expected.append(front_scorer.score(request_from(rows, query=text)).p_click_K)
    found_N = front_scorer.score(pl.concat(tables))
    np.testing.assert_allclose(found_N, np.concatenate(expected), rtol=0, atol=1e-7)
    assert len(np.unique(found_N.round(9))) > 16


def test_a_text_that_training_knew_stands_for_its_id(front, front_scorer):
    rows = front.impressions[:20].unique("product_id", maintain_order=True)
    by_id = front_scorer.score(request_from(rows, query_id="q5"))
    by_text = front_scorer.score(request_from(rows, query_id=None, query="thing 5"))
    np.testing.assert_array_equal(by_text.p_click_K, by_id.p_click_K)
    assert by_text.diagnostics.query_vector == by_id.diagnostics.query_vector == "stored"
    assert not by_text.diagnostics.unknown_query


def test_purchases_of_a_request_stand_instead_of_the_known_ones(front, front_scorer):
    events = front_scorer.pipeline._purchases
    user, moment = events["user_id"][0], events["time"].max() + timedelta(days=1)
    own = events.filter(pl.col("user_id") == user)
    fields = {"user_id": user, "time": moment, "columns": {"device": "tv", "bid": 1}}
    fields["candidates"] = ["p1", "p2", "p3"]
    known = front_scorer.score(request_of(fields))
    bought = own.select("product_id", "time").to_dicts()
    told = front_scorer.score(request_of({**fields, "purchases": bought}))
    np.testing.assert_array_equal(told.p_click_K, known.p_click_K)
    assert told.diagnostics.history_length == known.diagnostics.history_length > 0
    nothing = front_scorer.score(request_of({**fields, "purchases": []}))
    assert nothing.diagnostics.history_length == 0
    assert np.abs(nothing.p_click_K - known.p_click_K).max() > 1e-6


def test_a_purchase_at_the_moment_of_the_request_is_not_known_yet(front_scorer):
    def history(seconds):
        at = datetime(2024, 3, 1, tzinfo=UTC) - timedelta(seconds=seconds)
        request = {
            "candidates": ["p1"], "columns": {"device": None, "bid": 1},
            "time": "2024-03-01T00:00:00Z", "purchases": [{"product_id": "p2", "time": at}],
        }  # fmt: skip
        return front_scorer.score(request_of(request)).diagnostics.history_length

    week = 7 * 86400
    assert [history(s) for s in (-1, 0, 1, 12 * week, 12 * week + 1)] == [0, 0, 1, 1, 0]


def test_what_the_bundle_does_not_know_is_reported(front_scorer):
    request = {
        "user_id": "nobody", "query_id": "never asked", "candidates": ["p1", "p28", "not sold"],
        "columns": {"device": "fridge", "bid": 1},
    }  # fmt: skip
    diagnostics = front_scorer.score(request_of(request)).diagnostics
    assert diagnostics.unknown_user
    assert diagnostics.unknown_query
    assert diagnostics.unknown_products == ("not sold",)
    # The shop's last three products have no vector.
    assert diagnostics.products_without_vector == ("p28",)
    assert diagnostics.query_vector == "missing"
    anonymous = front_scorer.score(request_of({**request, "user_id": None, "query_id": None}))
    assert not anonymous.diagnostics.unknown_user
    assert not anonymous.diagnostics.unknown_query


def test_an_encoder_of_another_space_is_refused(front, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(front.bundle, copy)
    manifest = open_bundle(copy).manifest
    settings = copy / "query_encoder" / "settings.json"
    settings.write_text(settings.read_text().replace(front.model.fingerprint, "another"))
    seal_(copy, manifest)
    with pytest.raises(ValueError, match="encoded queries would be noise"):
        Scorer.load(copy)


def test_scoring_a_request_loads_neither_torch_nor_transformers(front):
    code = (
        "import sys\n"
        "from ranking.score import Scorer\n"
        "from ranking.request import request_of\n"
        f"scorer = Scorer.load({str(front.bundle)!r})\n"
        "request = {'candidates': ['p1', 'p2'], 'query': 'red tea',\n"
        "           'columns': {'device': 'tv', 'bid': 1}}\n"
        "scored = scorer.score(request_of(request))\n"
        "assert scored.diagnostics.query_vector == 'encoded'\n"
        "unwanted = {'torch', 'transformers', 'torchrec', 'lightgbm', 'sklearn', 'scipy', 'pandas',"
        " 'pyarrow', 'mlflow', 'fastapi'}\n"
        "loaded = unwanted & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
