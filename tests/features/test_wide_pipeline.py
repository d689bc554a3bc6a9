"""A pipeline with every kind of feature: hashed, bags, scalings, target statistics, cosines."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from features.dataset import Dataset
from features.embedding_join import Vectors
from features.pipeline import FeaturePipeline
from features.schema import FeatureNames
from features.target_rates import FIRST_RATES

NAMES = FeatureNames(
    sparse=("user_id", "query_id", "products.brand"),
    dense=("products.price", "age"),
    hashed={"user_id": 4},
    bags={"products.tags": 2, "badges": 3},
    scaling={"products.price": "quantile", "age": "log"},
    target_statistics=("product_id", ("query_id", "product_id"), "products.brand"),
    similarity_bins=2,
)


@pytest.fixture
def wide(tables, spec):
    spec = spec.model_copy(update={"features": NAMES})
    tags = pl.Series([["a"], ["a", "b"], [], None, ["b", "a"], ["c"]])
    badges = pl.Series([["new"] if i % 3 else ["sale", "new"] for i in range(120)])
    tables = {
        **tables,
        "products": tables["products"].with_columns(tags=tags),
        "impressions": tables["impressions"].with_columns(
            badges=badges, age=pl.int_range(pl.len()) % 40, purchased=(pl.col("clicked") & 1)
        ),
    }
    return Dataset.from_tables(spec, **tables)


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    return Vectors(
        product_PD=rng.normal(size=(6, 8)).astype(np.float32),
        product_present_P=np.arange(6) != 4,
        query_QD=rng.normal(size=(3, 8)).astype(np.float32),
        query_present_Q=np.ones(3, bool),
        fingerprint="f",
    )


@pytest.fixture
def fitted(wide, vectors):
    return FeaturePipeline(wide.spec).fit(wide, wide.split().train, vectors=vectors)


def raw_column(pipeline, log, name):
    """A derived column before it is scaled."""
    frame = pipeline.checked(log)
    rows = pipeline._catalogue.rows_of(frame)
    return pipeline._derived(frame, rows)[name]


def test_every_kind_has_its_columns(wide, fitted):
    examples = fitted.transform(wide.table("impressions"))
    assert examples.sparse_names == (
        *("user_id", "query_id", "products.brand", "products.tags.1", "products.tags.2"),
        *("badges.1", "badges.2", "badges.3"),
    )
    assert examples.vocabulary_sizes[0] == 5 and fitted.collisions["user_id"] > 0
    assert (examples.sparse_NF < np.array(examples.vocabulary_sizes)).all()
    for name in ("ctr.query_id*product_id", "purchase_rate.product_id", "shown.products.brand"):
        assert name in examples.dense_names
    assert "cosine.history_bin2" in examples.dense_names
    assert np.isfinite(examples.dense_NC).all()


def test_rates_are_those_of_earlier_training_days_by_a_loop(wide, fitted):
    log, train = wide.table("impressions"), wide.split().train
    rate_N = raw_column(fitted, log, "ctr.query_id*product_id")
    shown_N = raw_column(fitted, log, "shown.query_id*product_id")
    by_day = train.with_columns(day=pl.col("time").dt.date())

    def rate(rows, prior):
        return (rows["clicked"].sum() + 20 * prior) / (len(rows) + 20)

    for row, day in enumerate(log["time"].dt.date()):
        before = by_day.filter(pl.col("day") < day)
        of_product = before.filter(product_id=log["product_id"][row])
        of_pair = of_product.filter(query_id=log["query_id"][row])
        prior = rate(of_product, rate(before, FIRST_RATES["clicked"]))
        assert rate_N[row] == pytest.approx(rate(of_pair, prior), abs=1e-12)
        assert shown_N[row] == len(of_pair)


def test_offline_and_scoring_agree_right_after_the_end_of_the_fit(tmp_path, wide, fitted):
    train = wide.split().train
    fitted.save_(tmp_path)
    scoring = FeaturePipeline.load(tmp_path)
    after = train[-3:].with_columns(pl.col("time") + timedelta(days=1))
    shown_N = raw_column(scoring, after.drop("clicked", "purchased"), "shown.product_id")
    totals = [len(train.filter(product_id=product)) for product in after["product_id"]]
    assert shown_N.tolist() == totals
    np.testing.assert_array_equal(shown_N, raw_column(fitted, after, "shown.product_id"))


def test_later_rows_change_no_statistic_of_earlier_ones(wide, fitted):
    log = wide.table("impressions")
    whole = FeaturePipeline(
        wide.spec.model_copy(
            update={"features": FeatureNames(target_statistics=NAMES.target_statistics)}
        )
    ).fit(wide, log)
    train = wide.split().train
    for name in ("ctr.product_id", "ctr.query_id*product_id", "purchase_rate.products.brand"):
        np.testing.assert_array_equal(
            raw_column(whole, train, name), raw_column(fitted, train, name)
        )


def test_saved_and_loaded_gives_the_same_bits(tmp_path, wide, fitted):
    fitted.save_(tmp_path)
    again, log = FeaturePipeline.load(tmp_path), wide.table("impressions")
    left, right = fitted.transform(log), again.transform(log)
    assert left.sparse_names == right.sparse_names and left.dense_names == right.dense_names
    np.testing.assert_array_equal(left.sparse_NF, right.sparse_NF)
    np.testing.assert_array_equal(left.dense_NC, right.dense_NC)
    assert again.spec == fitted.spec and again.collisions == fitted.collisions


def test_one_row_is_what_it_is_among_many(wide, fitted):
    log = wide.table("impressions")
    whole = fitted.transform(log)
    for row in (0, 50, 119):
        alone = fitted.transform(log[row : row + 1])
        np.testing.assert_array_equal(alone.sparse_NF[0], whole.sparse_NF[row])
        np.testing.assert_array_equal(alone.dense_NC[0], whole.dense_NC[row])


def test_similarities_need_the_vectors_of_this_catalogue(wide, vectors):
    train = wide.split().train
    with pytest.raises(ValueError, match="similarity_bins is 2, and no vectors were given"):
        FeaturePipeline(wide.spec).fit(wide, train)
    other = Vectors(**{**vars(vectors), "query_QD": vectors.query_QD[:2]})
    with pytest.raises(ValueError, match="6 products and 2 queries, and the catalogue has 6 and 3"):
        FeaturePipeline(wide.spec).fit(wide, train, vectors=other)


def test_statistics_need_clicks_to_count(wide, vectors):
    train = wide.split().train.drop("clicked")
    with pytest.raises(ValueError, match="no column 'clicked'"):
        FeaturePipeline(wide.spec).fit(wide, train, vectors=vectors)


def test_a_renamed_column_is_missed_when_scoring(wide, fitted):
    with pytest.raises(ValueError, match="lack the column age"):
        fitted.transform(wide.table("impressions").rename({"age": "years"}))


def test_cosines_added_to_a_fitted_pipeline_are_those_of_one_fitted_with_them(
    tmp_path, wide, vectors, fitted
):
    train, log = wide.split().train, wide.table("impressions")
    features = replace(NAMES, similarity_bins=0)
    plain = FeaturePipeline(wide.spec.model_copy(update={"features": features})).fit(wide, train)
    compared = plain.compared_by(vectors, plain.transform(train), bins=2)
    assert compared.spec == fitted.spec and plain.cosines_fingerprint is None
    compared.save_(tmp_path)
    for pipeline in (compared, FeaturePipeline.load(tmp_path)):
        found = pipeline.transform(log)
        assert found.dense_names == fitted.dense_names == pipeline.dense_names
        np.testing.assert_array_equal(found.dense_NC, fitted.transform(log).dense_NC)
        assert pipeline.cosines_fingerprint == vectors.fingerprint
    assert not any(name.startswith("cosine.") for name in plain.transform(log).dense_names)


def test_a_pipeline_that_goes_on_keeps_the_scales_of_its_cosines(wide, vectors, fitted):
    train = wide.split().train
    again = FeaturePipeline(wide.spec).fit(wide, train[:40], vectors=vectors)
    log = wide.table("impressions")
    before = fitted.with_cosines(again.without_cosines(log)).dense_NC
    assert not np.array_equal(again.transform(log).dense_NC, before)
    again.continue_from(fitted)
    own = [name.startswith("cosine.") for name in again.dense_names]
    np.testing.assert_array_equal(
        again.transform(log).dense_NC[:, own], fitted.transform(log).dense_NC[:, own]
    )
