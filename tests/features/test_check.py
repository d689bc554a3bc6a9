from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from features.check import check_dataset, refuse_errors
from features.dataset import Dataset, write_dataset
from features.schema import DatasetSpec, FeatureNames, SplitRule


def with_row(frame: pl.DataFrame, row: int, **values) -> pl.DataFrame:
    """The table with some values of one row replaced."""
    place = pl.int_range(pl.len()) == row
    return frame.with_columns(
        pl.when(place).then(pl.lit(value)).otherwise(column).alias(column)
        for column, value in values.items()
    )


def found_in(spec, tables, **options):
    return check_dataset(Dataset.from_tables(spec, **tables), **options)


def only(violations):
    assert len(violations) == 1, [str(v) for v in violations]
    return violations[0]


def test_a_sound_dataset_has_no_violation(dataset):
    assert check_dataset(dataset) == []


def test_every_table_alone_is_sound(spec, tables):
    plain = spec.model_copy(update={"features": FeatureNames()})
    for name, table in tables.items():
        assert found_in(plain, {name: table}) == []


@pytest.mark.parametrize(
    ("table", "row", "values", "column", "problem"),
    [
        ("impressions", 5, {"product_id": "gone"}, "product_id", "'gone' is not in table products"),
        ("impressions", 5, {"query_id": "gone"}, "query_id", "'gone' is not in table queries"),
        ("relevance", 3, {"product_id": "gone"}, "product_id", "'gone' is not in table products"),
        ("relevance", 3, {"query_id": "gone"}, "query_id", "'gone' is not in table queries"),
        ("events", 1, {"product_id": "gone"}, "product_id", "'gone' is not in table products"),
        ("relevance", 4, {"label": 3}, "label", "is 3"),
        ("impressions", 8, {"position": 0}, "position", "is 0"),
        ("impressions", 8, {"clicked": 2}, "clicked", "is 2"),
        ("queries", 2, {"query_id": "q1"}, "query_id", "'q1' was there before"),
        ("relevance", 1, {"product_id": "p0"}, "query_id", "an earlier row has the same query_id"),
        ("products", 4, {"image": b"no image"}, "image", "product 'p4' cannot be decoded"),
        ("products", 4, {"price": float("nan")}, "price", "'products.price' is nan in row 4"),
        ("events", 2, {"time": datetime(1970, 1, 2, tzinfo=UTC)}, "time", "1970-01-02"),
    ],
)
def test_a_fault_is_named_by_table_column_and_row(
    spec, tables, table, row, values, column, problem
):
    changed = {**tables, table: with_row(tables[table], row, **values)}
    if table == "queries":
        changed["relevance"] = tables["relevance"].filter(pl.col("query_id") != "q2")
        changed["impressions"] = tables["impressions"].with_columns(query_id=pl.lit("q0"))
    violation = only(found_in(spec, changed))
    assert (violation.table, violation.column) == (table, column)
    assert (violation.row, violation.count, violation.severity) == (row, 1, "error")
    assert problem in violation.problem
    with pytest.raises(ValueError, match=f"{table}.{column}, row {row}: "):
        refuse_errors([violation])


def test_all_faults_are_reported_together(spec, tables):
    tables["relevance"] = with_row(tables["relevance"], 0, label=9, product_id="gone")
    tables["products"] = tables["products"].drop("title")
    tables["impressions"] = with_row(tables["impressions"], 3, position=-1)
    tables["events"] = tables["events"].with_columns(kind=pl.lit("look"))
    places = {(v.table, v.column, v.row, v.count) for v in found_in(spec, tables)}
    assert places == {
        ("relevance", "label", 0, 1),
        ("relevance", "product_id", 0, 1),
        ("products", "title", None, 1),
        ("impressions", "position", 3, 1),
        ("events", "kind", 0, 3),
    }


def test_a_wrong_type_does_not_hide_other_faults(spec, tables):
    tables["impressions"] = with_row(tables["impressions"], 7, product_id="gone").with_columns(
        time=pl.lit("yesterday"), clicked=pl.col("clicked").cast(pl.Float64)
    )
    columns = [v.column for v in found_in(spec, tables)]
    assert columns == ["time", "clicked", "product_id"]


def test_an_impression_twice_is_found_but_two_slots_are_allowed(spec, tables):
    log = tables["impressions"]
    tables["impressions"] = pl.concat([log, log[-1:]])
    violation = only(found_in(spec, tables))
    assert (violation.row, violation.column) == (120, "request_id")
    tables["impressions"] = pl.concat([log, with_row(log[-1:], 0, position=4)])
    assert found_in(spec, tables) == []


def test_an_empty_table_is_a_violation(spec, tables):
    for name in ("products", "impressions", "events"):
        found = found_in(spec, {**tables, name: tables[name][:0]})
        assert any(v.table == name and "no rows" in v.problem for v in found)


def test_no_tables_at_all():
    assert only(found_in(DatasetSpec(name="x"), {})).problem == "there are no tables"


def test_an_unreadable_table_is_a_violation(tmp_path, spec, tables):
    folder = write_dataset(tmp_path / "shop", spec, **tables)
    (folder / "events.parquet").write_bytes(b"PAR1 cut short")
    violation = only(check_dataset(Dataset.open(folder)))
    assert violation.table == "events" and "cannot be read as parquet" in violation.problem


def test_image_paths_are_followed_from_the_dataset_folder(tmp_path, spec, tables):
    images = tables["products"]["image"].to_list()
    tables["products"] = tables["products"].with_columns(
        image=pl.Series([f"pictures/{i}.png" if image else None for i, image in enumerate(images)])
    )
    folder = write_dataset(tmp_path / "shop", spec, **tables)
    (folder / "pictures").mkdir()
    for i, image in enumerate(images):
        if image and i != 3:
            (folder / "pictures" / f"{i}.png").write_bytes(image)
    violation = only(check_dataset(Dataset.open(folder)))
    assert (violation.row, violation.count) == (3, 1) and "pictures/3.png" in violation.problem


def test_images_can_be_left_for_later(spec, tables):
    tables["products"] = with_row(tables["products"], 4, image=b"no image")
    assert found_in(spec, tables, max_images=0) == []
    assert found_in(spec, tables, max_images=4) == []
    assert len(found_in(spec, tables, max_images=5)) == 1


def test_clicks_of_one_class(spec, tables):
    tables["impressions"] = tables["impressions"].with_columns(clicked=pl.lit(0))
    violation = only(found_in(spec, tables))
    assert violation.column == "clicked" and "0 in all 84 rows" in violation.problem


def test_labels_of_one_class(spec, tables):
    tables["relevance"] = tables["relevance"].with_columns(label=pl.lit(2))
    violation = only(found_in(spec, tables))
    assert (violation.table, violation.column, violation.count) == ("relevance", "label", 5)


def test_a_log_out_of_order_is_a_warning(spec, tables):
    log = tables["impressions"]
    tables["impressions"] = pl.concat([log[3:6], log[:3], log[6:]])
    violation = only(found_in(spec, tables))
    assert (violation.column, violation.row, violation.severity) == ("time", 3, "warning")
    refuse_errors([violation])


def test_request_ids_used_again_are_an_error(spec, tables):
    tables["impressions"] = with_row(tables["impressions"], 8, request_id="r0", position=9)
    violation = only(found_in(spec, tables))
    assert (violation.column, violation.row, violation.severity) == ("request_id", 8, "error")


def test_a_request_in_two_splits_is_found(spec, tables):
    log = tables["impressions"]
    rule = SplitRule(
        validation_start=log["time"][60] + timedelta(seconds=2),
        test_start=log["time"][99],
    )
    tables["impressions"] = log.with_columns(
        time=pl.col("time") + pl.duration(seconds=pl.col("position"))
    )
    violation = only(found_in(spec.model_copy(update={"split": rule}), tables))
    assert (violation.column, violation.row, violation.count) == ("request_id", 61, 2)
    assert "two splits" in violation.problem and violation.severity == "warning"


@pytest.mark.parametrize(
    ("features", "column", "problem"),
    [
        ({"sparse": ("shop",)}, "shop", "feature 'shop' has no column"),
        ({"sparse": ("products.colour",)}, "colour", "feature 'products.colour' has no column"),
        ({"sparse": ("products.price",)}, "price", "has type Float64"),
        ({"dense": ("products.brand",)}, "brand", "has type String"),
    ],
)
def test_features_that_cannot_be_had_are_found(tables, features, column, problem):
    spec = DatasetSpec(name="x", features=FeatureNames(**features))
    violation = only(found_in(spec, tables))
    assert violation.column == column and problem in violation.problem


def test_a_feature_of_a_missing_table_names_the_table(spec, tables):
    found = found_in(spec, {"impressions": tables["impressions"]})
    assert {(v.table, v.column) for v in found} == {("products", None)}
    assert "'products.brand' needs this table" in found[0].problem


def test_bags_and_keys_are_looked_at_too(spec, tables):
    names = FeatureNames(bags={"products.tags": 1}, target_statistics=("shop",))
    tags = pl.Series([["a"], ["a", "b"], None, [], ["c"], ["d"]])
    tables = {**tables, "products": tables["products"].with_columns(tags=tags)}
    dataset = Dataset.from_tables(spec.model_copy(update={"features": names}), **tables)
    said = [str(violation) for violation in check_dataset(dataset)]
    assert any("products.tags" in text and "its cap is 1" in text for text in said)
    assert any("'shop' has no column" in text for text in said)
