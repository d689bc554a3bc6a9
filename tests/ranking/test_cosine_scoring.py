"""Cosines of a request are of the history and the query that the model is shown."""

import shutil

import numpy as np
import polars as pl
import pytest

from embeddings.store import VectorStore
from features.embedding_join import join_vectors
from ranking.baselines import LogisticRegression
from ranking.export import export_bundle
from ranking.query_encoder import QUERY_ENCODER
from ranking.query_export import write_query_encoder
from ranking.request import ScoreRequest
from ranking.score import Scorer

CANDIDATES = ["p1", "p2", "p29", "p3"]


@pytest.fixture(scope="module")
def compared(shop, small_model, tmp_path_factory):
    """A scorer whose features have cosines, and the vectors of all queries, stored or not."""
    made_by = {"encoder_fingerprint": small_model.fingerprint}
    products = VectorStore.from_arrays(
        shop.product_store.ids, shop.product_store.vectors_VD, kind="product/test", **made_by
    )
    ids = [f"q{query}" for query in range(12)]
    texts = pl.DataFrame({"query_id": ids, "query": [f"thing {query}" for query in range(12)]})
    query_VD = small_model.embed_queries(texts["query"].to_list())
    stores = [
        VectorStore.from_arrays(ids[first:], query_VD[first:], kind="query/test", **made_by)
        for first in (3, 0)
    ]
    vectors, complete = (
        join_vectors(products, store, shop.pipeline.product_ids_, shop.pipeline.query_ids_)
        for store in stores
    )
    train = shop.examples.take(slice(0, 480))
    pipeline = shop.pipeline.compared_by(vectors, train, bins=2)
    rows = pipeline.with_cosines(shop.examples)
    model = LogisticRegression().fit(
        rows.take(slice(0, 480)), rows.take(slice(480, 600)), vectors, seed=0
    )
    folder = tmp_path_factory.mktemp("compared")
    write_query_encoder(small_model, folder / QUERY_ENCODER, texts)
    bundle = export_bundle(
        model, pipeline, products, stores[0], shop.impressions[480:], folder / "bundle",
        more_files=lambda at: shutil.copytree(folder / QUERY_ENCODER, at / QUERY_ENCODER),
    )  # fmt: skip
    return Scorer.load(bundle), complete


def prepared(scorer, **fields):
    given = {
        "time": "2024-03-20T00:00:00Z",
        "candidates": [{"product_id": product} for product in CANDIDATES],
    }
    return scorer.prepare(ScoreRequest.model_validate({**given, **fields})).examples


def cosine_columns(examples, part):
    own = [i for i, name in enumerate(examples.dense_names) if name.startswith(f"cosine.{part}")]
    assert own
    return examples.dense_NC[:, own]


def test_an_encoded_text_is_compared_as_a_stored_query_is(compared):
    scorer, complete = compared
    encoded = prepared(scorer, query="thing 0")
    unknown = prepared(scorer, query_id="never seen")
    assert np.abs(cosine_columns(encoded, "query") - cosine_columns(unknown, "query")).max() > 0.1
    row = scorer.pipeline.query_ids_.index("q0")
    plain = scorer.pipeline.without_cosines(
        pl.DataFrame({"product_id": CANDIDATES}).with_columns(
            query_id=pl.lit("q0"),
            user_id=pl.lit(None, pl.String),
            time=pl.lit("2024-03-20").str.to_datetime("%Y-%m-%d", time_unit="us", time_zone="UTC"),
        )
    )
    assert (plain.query_N == row).all()
    stored = scorer.pipeline.with_cosines(plain, complete)
    np.testing.assert_allclose(
        cosine_columns(encoded, "query"), cosine_columns(stored, "query"), atol=1e-5
    )


def test_a_table_of_texts_scores_as_requests_do(compared):
    scorer, _ = compared
    texts = ["thing 0", "red tea", "thing 5"]
    tables, expected = [], []
    for text in texts:
        examples = prepared(scorer, query=text)
        request = ScoreRequest.model_validate(
            {
                "time": "2024-03-20T00:00:00Z", "query": text,
                "candidates": [{"product_id": product} for product in CANDIDATES],
            }
        )  # fmt: skip
        expected.append(scorer.score(request).p_click_K)
        assert len(examples) == len(CANDIDATES)
        tables.append(
            pl.DataFrame({"product_id": CANDIDATES}).with_columns(
                query_id=pl.lit(None, pl.String),
                query=pl.lit(text),
                user_id=pl.lit(None, pl.String),
                time=pl.lit("2024-03-20").str.to_datetime(
                    "%Y-%m-%d", time_unit="us", time_zone="UTC"
                ),
            )
        )
    np.testing.assert_allclose(
        scorer.score(pl.concat(tables)), np.concatenate(expected), rtol=0, atol=1e-7
    )


def test_histories_are_those_that_the_request_tells(compared):
    scorer, _ = compared
    events = scorer.pipeline._purchases
    user = events["user_id"][0]
    own = events.filter(pl.col("user_id") == user).select("product_id", "time").to_dicts()
    known = prepared(scorer, user_id=user)
    told = prepared(scorer, user_id=user, purchases=own)
    nothing = prepared(scorer, user_id=user, purchases=[])
    stranger = prepared(scorer, user_id="nobody")
    assert (known.history_NL >= 0).any()
    np.testing.assert_array_equal(told.dense_NC, known.dense_NC)
    np.testing.assert_array_equal(
        cosine_columns(nothing, "history"), cosine_columns(stranger, "history")
    )
    assert np.abs(cosine_columns(nothing, "history") - cosine_columns(known, "history")).max() > 0.1
