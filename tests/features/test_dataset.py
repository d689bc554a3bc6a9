import polars as pl
import pytest

from features.dataset import Dataset, write_dataset, write_into_dataset
from features.schema import DatasetSpec, load_spec


def test_what_was_written_is_read(tmp_path, spec, tables):
    folder = write_dataset(tmp_path / "shop", spec, **tables)
    dataset = Dataset.open(folder)
    assert dataset.spec.features == spec.features
    for name, table in tables.items():
        assert dataset.table(name).rows() == table.rows()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shop"]


def test_memory_and_folder_split_alike(tmp_path, spec, tables, dataset):
    opened = Dataset.open(write_dataset(tmp_path / "shop", spec, **tables))
    assert opened.split().test.equals(dataset.split().test)


def test_pandas_and_arrow_tables_are_welcome(spec, tables):
    dataset = Dataset.from_tables(
        spec,
        impressions=tables["impressions"].to_pandas(),
        queries=tables["queries"].to_arrow(),
    )
    assert dataset.table("impressions")["clicked"].sum() == tables["impressions"]["clicked"].sum()
    assert dataset.table("impressions").schema["time"] == pl.Datetime("us", "UTC")
    assert dataset.has("queries") and not dataset.has("products")


def test_uris_of_fsspec_are_read(spec, tables):
    import fsspec

    memory = fsspec.filesystem("memory")
    try:
        with memory.open("/shop/dataset.toml", "wb") as file:
            file.write(b'name = "x"\n[tables]\nqueries = "queries.parquet"\n')
        with memory.open("/shop/queries.parquet", "wb") as file:
            tables["queries"].write_parquet(file)
        dataset = Dataset.open("memory://shop")
        assert dataset.table("queries").equals(tables["queries"])
        assert len(dataset.fingerprint()) == 64
    finally:
        memory.store.clear()


def test_a_folder_of_parts_is_one_table(tmp_path, tables):
    parts = tmp_path / "log"
    parts.mkdir()
    tables["impressions"][:60].write_parquet(parts / "0.parquet")
    tables["impressions"][60:].write_parquet(parts / "1.parquet")
    (tmp_path / "dataset.toml").write_text('name = "x"\n[tables]\nimpressions = "log"\n')
    assert Dataset.open(tmp_path).table("impressions")["time"].equals(tables["impressions"]["time"])


def test_a_missing_table_names_what_needs_it(dataset, spec, tables):
    dataset.require("products", "impressions", needed_for="x")
    alone = Dataset.from_tables(spec, impressions=tables["impressions"])
    with pytest.raises(ValueError, match=r"the dashclip variant needs products and relevance, .*"):
        alone.require("products", "relevance", "impressions", needed_for="the dashclip variant")
    with pytest.raises(ValueError, match="unknown table clicks"):
        alone.has("clicks")
    with pytest.raises(ValueError, match="unknown table clicks"):
        Dataset.from_tables(spec, clicks=tables["impressions"])


def test_a_table_named_but_absent_is_refused_at_once(tmp_path):
    (tmp_path / "dataset.toml").write_text('name = "x"\n[tables]\nproducts = "gone.parquet"\n')
    with pytest.raises(ValueError, match=r"table products is missing: .*gone\.parquet"):
        Dataset.open(tmp_path)
    with pytest.raises(ValueError, match="a dataset is a folder"):
        Dataset.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("impressions", lambda t: t.drop("user_id"), "impressions.user_id: the column is missing"),
        ("impressions", lambda t: t.with_columns(time=pl.lit("today")), "the type is String"),
        ("impressions", lambda t: t.with_columns(clicked=pl.lit(3)), "clicked, row 0: .* is 3"),
        ("relevance", lambda t: t.with_columns(label=pl.lit(3)), r"label, row 0: .* \(5 rows in"),
        ("products", lambda t: pl.concat([t, t[:1]]), "product_id, row 6: the key 'p0'"),
        ("impressions", lambda t: t[:0], "impressions of dataset 'tiny' has no rows"),
    ],
)
def test_fatal_faults_stop_the_reading(spec, tables, table, change, message):
    dataset = Dataset.from_tables(spec, **{**tables, table: change(tables[table])})
    with pytest.raises(ValueError, match=message):
        dataset.table(table)


def test_clicks_of_one_class_stop_the_split(spec, tables):
    log = tables["impressions"].with_columns(clicked=pl.lit(0))
    with pytest.raises(ValueError, match="nothing can be learned or measured from one class"):
        Dataset.from_tables(spec, impressions=log).split()


def test_what_is_not_parquet_is_named(tmp_path):
    (tmp_path / "dataset.toml").write_text('name = "x"\n[tables]\nqueries = "q.parquet"\n')
    (tmp_path / "q.parquet").write_text("query_id,query\n")
    with pytest.raises(ValueError, match=r"q\.parquet cannot be read as parquet"):
        Dataset.open(tmp_path).table("queries")
    with pytest.raises(ValueError, match=r"q\.parquet cannot be read as parquet"):
        Dataset.open(tmp_path).column_names("queries")


def test_the_fingerprint_follows_the_data(tmp_path, spec, tables):
    one = Dataset.open(write_dataset(tmp_path / "one", spec, **tables)).fingerprint()
    same = Dataset.open(write_dataset(tmp_path / "same", spec, **tables)).fingerprint()
    tables["events"] = tables["events"][:2]
    other = Dataset.open(write_dataset(tmp_path / "other", spec, **tables)).fingerprint()
    assert one == same != other
    in_memory = Dataset.from_tables(spec, **tables)
    assert in_memory.fingerprint() == Dataset.from_tables(spec, **tables).fingerprint()


def test_an_existing_folder_is_not_overwritten_unasked(tmp_path, spec, tables):
    folder = write_dataset(tmp_path / "shop", spec, queries=tables["queries"])
    with pytest.raises(ValueError, match="exists already"):
        write_dataset(folder, spec, products=tables["products"])
    assert Dataset.open(folder).has("queries")
    write_dataset(folder, spec, overwrite=True, products=tables["products"])
    assert not Dataset.open(folder).has("queries")
    assert [p.name for p in tmp_path.iterdir()] == ["shop"]


def test_a_folder_that_is_no_dataset_is_never_overwritten(tmp_path, spec, tables):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files"):
        write_dataset(tmp_path, spec, overwrite=True, queries=tables["queries"])
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("write", [write_dataset, write_into_dataset])
def test_a_failed_write_leaves_what_was_there(tmp_path, spec, tables, write):
    folder = write_dataset(tmp_path / "shop", spec, queries=tables["queries"])
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    options = {"overwrite": True} if write is write_dataset else {}
    with pytest.raises(ValueError, match="a table of type str"):
        write(folder, spec, **options, queries=tables["queries"][:1], products="no table")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["shop"]


def test_tables_can_be_added(tmp_path, spec, tables):
    folder = write_dataset(tmp_path / "shop", spec, queries=tables["queries"])
    simulated = spec.model_copy(update={"simulated": True})
    write_into_dataset(folder, simulated, impressions=tables["impressions"])
    dataset = Dataset.open(folder)
    assert dataset.has("queries") and dataset.has("impressions") and dataset.spec.simulated
    assert load_spec(folder / "dataset.toml").tables.impressions == "impressions.parquet"
    with pytest.raises(ValueError, match="does not exist"):
        write_into_dataset(tmp_path / "none", spec, queries=tables["queries"])


def test_columns_are_known_without_reading_rows(tmp_path, spec, tables):
    dataset = Dataset.open(write_dataset(tmp_path / "shop", spec, **tables))
    assert dataset.column_names("queries") == ["query_id", "query"]
    assert not dataset._raw


def test_no_table_is_no_dataset(tmp_path):
    with pytest.raises(ValueError, match="no table"):
        write_dataset(tmp_path / "x", DatasetSpec(name="x"))
