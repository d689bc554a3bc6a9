import json
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from features.catalogue import _hour, _weekday
from features.dataset import Dataset
from features.examples import Examples
from features.pipeline import FeaturePipeline
from features.schema import FeatureNames
from features.sparse import FEW


def same(a: Examples, b: Examples) -> bool:
    for name, value in vars(a).items():
        other = vars(b)[name]
        if isinstance(value, np.ndarray):
            if value.dtype != other.dtype or not np.array_equal(value, other):
                return False
        elif value != other:
            return False
    return True


@pytest.fixture
def fitted(dataset, spec):
    return FeaturePipeline(spec).fit(dataset, dataset.split().train)


def test_shapes_and_names(dataset, fitted):
    examples = fitted.transform(dataset.split().test)
    assert examples.sparse_names == fitted.sparse_names
    assert examples.vocabulary_sizes == fitted.vocabulary_sizes == (6, 4, 7, 3, 8)
    assert (
        examples.dense_names == fitted.dense_names == ("products.price", "products.price.missing")
    )
    assert examples.sparse_NF.shape == (24, 5) and examples.sparse_NF.dtype == np.int32
    assert (examples.sparse_NF < np.array(examples.vocabulary_sizes)).all()
    assert examples.history_NL.shape == (24, 16) and examples.dense_NC.dtype == np.float32
    assert np.isfinite(examples.dense_NC).all()


def test_catalogue_rows_are_those_of_the_tables(dataset, fitted):
    test = dataset.split().test
    examples = fitted.transform(test)
    assert fitted.product_ids_ == [f"p{i}" for i in range(6)]
    assert [fitted.product_ids_[row] for row in examples.product_N] == test["product_id"].to_list()
    assert [fitted.query_ids_[row] for row in examples.query_N] == test["query_id"].to_list()
    assert examples.label_N is not None and examples.label_N.sum() == test["clicked"].sum()
    assert examples.position_N is not None
    assert examples.position_N.tolist() == test["position"].to_list()


def test_joined_columns_equal_a_join_by_hand(dataset, fitted):
    log = dataset.table("impressions")
    examples = fitted.transform(log)
    joined = log.join(dataset.table("products"), on="product_id", how="left", maintain_order="left")
    brand_N = examples.sparse_NF[:, fitted.sparse_names.index("products.brand")]
    known = fitted._vocabularies["products.brand"].values_
    assert [known[code - 1] if code else None for code in brand_N] == joined["brand"].to_list()
    missing_N = examples.dense_NC[:, 1]
    assert missing_N.astype(bool).tolist() == joined["price"].is_null().to_list()
    by_price = dict(zip(joined["price"], examples.dense_NC[:, 0], strict=True))
    assert by_price[1.0] < by_price[5.0] < by_price[60.0] and by_price[None] == 0


def test_only_training_rows_are_learned_from(dataset, spec, tables):
    split = dataset.split()
    changed = tables["impressions"].with_columns(
        user_id=pl.when(pl.col("time") >= split.boundaries[0])
        .then(pl.lit("late"))
        .otherwise("user_id")
    )
    other = Dataset.from_tables(spec, **{**tables, "impressions": changed})
    pipeline = FeaturePipeline(spec).fit(other, other.split().train)
    assert "late" not in pipeline._vocabularies["user_id"].values_
    assert (pipeline.transform(other.split().test).sparse_NF[:, 0] == 0).all()


def test_history_lies_strictly_before(dataset, fitted):
    log = dataset.table("impressions")
    examples = fitted.transform(log)
    events = dataset.table("events").filter(pl.col("kind") == "purchase")
    for row, (user, time) in enumerate(log.select("user_id", "time").rows()):
        bought = events.filter((pl.col("user_id") == user) & (pl.col("time") < time))
        expected = bought.sort("time", descending=True)["product_id"].to_list()
        got = [fitted.product_ids_[p] for p in examples.history_NL[row] if p >= 0]
        assert got == expected
    assert (examples.history_NL >= 0).any()


def test_history_from_purchased_impressions(spec, tables):
    log = tables["impressions"].with_columns(purchased=pl.col("clicked"))
    del tables["events"]
    dataset = Dataset.from_tables(spec, **{**tables, "impressions": log})
    pipeline = FeaturePipeline(spec).fit(dataset, dataset.split().train)
    first = log.filter(pl.col("purchased") == 1).row(0, named=True)
    row = pl.DataFrame([first])
    # Its own purchase does not describe it; a moment later it does.
    assert (pipeline.transform(row).history_NL == -1).all()
    later = row.with_columns(time=pl.col("time") + timedelta(microseconds=1))
    history = pipeline.transform(later).history_NL[0]
    assert pipeline.product_ids_[history[0]] == first["product_id"]


def test_saved_and_loaded_gives_the_same_bits(tmp_path, dataset, fitted):
    fitted.save_(tmp_path / "pipeline")
    again = FeaturePipeline.load(tmp_path / "pipeline")
    log = dataset.table("impressions")
    assert same(again.transform(log), fitted.transform(log))
    assert again.product_ids_ == fitted.product_ids_ and again.spec == fitted.spec


def test_only_what_is_needed_is_saved(tmp_path, fitted):
    fitted.save_(tmp_path)
    assert pl.read_parquet(tmp_path / "products.parquet").columns == [
        "product_id",
        "brand",
        "price",
    ]
    assert pl.read_parquet(tmp_path / "queries.parquet").columns == ["query_id"]
    assert len(pl.read_parquet(tmp_path / "events.parquet")) == 2
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".parquet"}


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path, fitted):
    with pytest.raises(ValueError, match=r"transforms\.json"):
        FeaturePipeline.load(tmp_path)
    fitted.save_(tmp_path)
    data = json.loads((tmp_path / "transforms.json").read_text())
    (tmp_path / "transforms.json").write_text(json.dumps({**data, "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        FeaturePipeline.load(tmp_path)


def test_a_folder_whose_specification_was_changed_is_refused(tmp_path, fitted):
    fitted.save_(tmp_path)
    path = tmp_path / "transforms.json"
    data = json.loads(path.read_text())
    for spec, message in (
        (None, "no specification of features"),
        ({**data["spec"], "features": {"sparse": ["clicked"], "dense": []}}, "leaks the label"),
    ):
        path.write_text(json.dumps({**data, "spec": spec}))
        with pytest.raises(ValueError, match=rf"transforms\.json: .*{message}"):
            FeaturePipeline.load(tmp_path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="format None"):
        FeaturePipeline.load(tmp_path)


def test_one_row_is_what_it_is_among_many(dataset, fitted):
    log = dataset.table("impressions")
    whole = fitted.transform(log)
    for row in (0, 17, 119):
        alone = fitted.transform(log[row : row + 1])
        for name in ("sparse_NF", "dense_NC", "product_N", "query_N", "history_NL", "label_N"):
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(whole, name)[row])


def test_scoring_rows_need_no_label_and_no_request(dataset, fitted):
    raw = dataset.table("impressions").drop("clicked", "position", "request_id")
    examples = fitted.transform(raw)
    assert examples.label_N is None and examples.purchased_N is None
    assert examples.position_N is None
    assert examples.request_N.tolist() == list(range(120))


def test_no_rows_give_no_rows(dataset, fitted):
    examples = fitted.transform(dataset.table("impressions")[:0])
    assert len(examples) == 0 and examples.sparse_NF.shape == (0, 5)


def test_strangers_are_out_of_vocabulary(dataset, fitted):
    row = dataset.table("impressions")[:1].with_columns(
        user_id=pl.lit("new"), query_id=pl.lit("new"), product_id=pl.lit("new")
    )
    examples = fitted.transform(row)
    assert examples.product_N[0] == examples.query_N[0] == -1
    assert examples.sparse_NF[0, :4].tolist() == [0, 0, 0, 0]
    assert examples.dense_NC[0].tolist() == [0.0, 1.0]
    assert (examples.history_NL == -1).all()


@pytest.mark.parametrize("few", [0, FEW])
def test_codes_group_users_and_part_the_anonymous(dataset, fitted, monkeypatch, few):
    monkeypatch.setattr("features.pipeline.FEW", few)
    rows = dataset.table("impressions")[:4].with_columns(
        user_id=pl.Series(["b", None, "b", None], dtype=pl.String)
    )
    examples = fitted.transform(rows)
    assert examples.user_N.tolist() == [0, 1, 0, 2]
    assert examples.request_N.tolist() == [0, 0, 0, 1]


def test_hours_and_weekdays_are_those_of_the_calendar():
    hours = [datetime(2024, 2, 26) + timedelta(hours=7 * n, microseconds=n) for n in range(200)]
    long_ago = [datetime(1969, 12, 31, 23, 59, 59, 999_999), datetime(1970, 1, 1)]
    time = pl.Series([*long_ago, *hours])
    time_us_N = time.cast(pl.Datetime("us")).cast(pl.Int64).to_numpy()
    assert _hour(time_us_N).tolist() == time.dt.hour().to_list()
    assert _weekday(time_us_N).tolist() == time.dt.weekday().to_list()


def test_a_row_without_an_outcome_or_a_weight_has_none(dataset, fitted):
    rows = dataset.table("impressions")[:3].with_columns(
        purchased=pl.Series([1, None, 0], dtype=pl.Int8), sample_weight=pl.Series([2.5, 1, None])
    )
    examples = fitted.transform(rows)
    assert examples.purchased_N.tolist() == [1, 0, 0]
    assert examples.weight_N.tolist() == [2.5, 1, 0]


def test_whole_number_ids_and_pandas_score_alike(dataset, spec, tables):
    digits = {
        name: table.with_columns(
            pl.col(column).str.slice(1).cast(pl.Int64)
            for column in ("user_id", "query_id", "product_id")
            if column in table.columns
        )
        for name, table in tables.items()
    }
    numbers = Dataset.from_tables(spec, **digits)
    pipeline = FeaturePipeline(spec).fit(numbers, numbers.split().train)
    log = digits["impressions"]
    assert same(pipeline.transform(log), pipeline.transform(log.to_pandas()))
    texts = FeaturePipeline(spec).fit(dataset, dataset.split().train)
    left, right = pipeline.transform(log), texts.transform(tables["impressions"])
    np.testing.assert_array_equal(left.sparse_NF, right.sparse_NF)
    np.testing.assert_array_equal(left.history_NL, right.history_NL)


def test_impressions_alone_go_through(spec, tables):
    alone = spec.model_copy(
        update={"features": FeatureNames(sparse=("user_id", "query_id", "product_id", "position"))}
    )
    dataset = Dataset.from_tables(alone, impressions=tables["impressions"])
    split = dataset.split()
    pipeline = FeaturePipeline(alone).fit(dataset, split.train)
    examples = pipeline.transform(split.test)
    assert pipeline.product_ids_ == sorted(split.train["product_id"].unique())
    assert (examples.history_NL == -1).all() and examples.dense_NC.shape == (24, 0)
    assert examples.sparse_NF[:3, 3].tolist() != [0, 0, 0]


def test_missing_columns_are_named(dataset, fitted):
    with pytest.raises(ValueError, match=r"lack the column user_id, time; .*product_id"):
        fitted.transform(dataset.table("impressions").drop("user_id", "time"))


def test_wrong_types_are_named(dataset, fitted):
    log = dataset.table("impressions")
    with pytest.raises(ValueError, match=r"impressions\.time: the type is String"):
        fitted.transform(log.with_columns(pl.col("time").cast(pl.String)))
    with pytest.raises(ValueError, match=r"clicked, row 2: the value is 5"):
        fitted.transform(log.with_columns(clicked=pl.Series([0, 1, 5] + [0] * 117)))


def test_a_number_that_is_none_is_named_with_column_and_row(dataset, spec):
    dense = spec.model_copy(update={"features": FeatureNames(sparse=("user_id",), dense=("age",))})
    log = dataset.table("impressions").with_columns(age=pl.int_range(pl.len()).cast(pl.Float64))
    pipeline = FeaturePipeline(dense).fit(dataset, log)
    broken = log.with_columns(age=pl.Series([1.0, 2.0, float("nan")] + [0.0] * 117))
    with pytest.raises(ValueError, match="'age' is nan in row 2"):
        pipeline.transform(broken)


def test_a_broken_number_of_a_product_never_shown_is_found_at_fit(spec, tables):
    products = pl.concat(
        [tables["products"], tables["products"][:1].with_columns(product_id=pl.lit("p9"))]
    ).with_columns(price=pl.Series([1.0] * 6 + [float("inf")]))
    dataset = Dataset.from_tables(spec, **{**tables, "products": products})
    with pytest.raises(ValueError, match=r"'products\.price' is inf in row 6"):
        FeaturePipeline(spec).fit(dataset, dataset.split().train)


def test_features_without_their_table_or_column_are_refused(spec, tables):
    dataset = Dataset.from_tables(spec, impressions=tables["impressions"])
    with pytest.raises(ValueError, match=r"feature products\.brand needs products"):
        FeaturePipeline(spec).fit(dataset, dataset.split().train)
    tables["products"] = tables["products"].drop("brand")
    dataset = Dataset.from_tables(spec, **tables)
    with pytest.raises(ValueError, match=r"products\.brand: table products has no column 'brand'"):
        FeaturePipeline(spec).fit(dataset, dataset.split().train)


def test_no_training_rows_are_refused(dataset, spec):
    with pytest.raises(ValueError, match="have no rows"):
        FeaturePipeline(spec).fit(dataset, dataset.table("impressions")[:0])
