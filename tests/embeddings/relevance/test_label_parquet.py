"""A file of pairs becomes a relevance table, part by part, and says what it could not label."""

import polars as pl
import pytest

from embeddings.bm25 import Bm25Scores
from embeddings.relevance import label_parquet as module
from embeddings.relevance.extend import extend_labels
from embeddings.relevance.judge import Judge
from embeddings.relevance.label_parquet import label_parquet
from embeddings.relevance_split import is_test_query
from features.columns import column_violations


@pytest.fixture
def pairs(split, tmp_path):
    path = tmp_path / "pairs.parquet"
    split[1].select("query_id", "product_id").head(50).write_parquet(path)
    return path


def test_a_file_is_labelled_as_its_pairs_are(judge, products, queries, pairs, tmp_path):
    seen = []
    done = label_parquet(
        judge[0], products, queries, pairs, tmp_path / "o" / "labels.parquet", part_rows=20,
        progress=lambda *now: seen.append(now),
    )  # fmt: skip
    table = pl.read_parquet(done.path)
    whole = judge[0].label(products, queries, pl.read_parquet(pairs))
    keys = ["query_id", "product_id", "label"]
    assert table.select(keys).equals(whole.select(keys))
    # Other batches round otherwise.
    assert (table["p2"] - whole["p2"]).abs().max() < 0.02
    assert not column_violations("relevance", table)
    assert (done.rows, done.not_labelled, seen[-1]) == (50, None, (50, 50))
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["labels.parquet"]


def test_an_interrupted_file_goes_on_where_it_stopped(
    judge, products, queries, pairs, tmp_path, monkeypatch
):
    out, labelled = tmp_path / "labels.parquet", []
    whole = label_parquet(judge[0], products, queries, pairs, out, part_rows=20).path.read_bytes()

    def counted(self, products, queries, part):
        if len(labelled) == 2:
            raise RuntimeError("cut off")
        labelled.append(len(part))
        return original(self, products, queries, part)

    original = Judge.label
    monkeypatch.setattr(Judge, "label", counted)
    with pytest.raises(RuntimeError, match="cut off"):
        label_parquet(judge[0], products, queries, pairs, out, part_rows=20)
    assert out.read_bytes() == whole, "the earlier table stays until the new one is whole"
    labelled.clear()
    label_parquet(judge[0], products, queries, pairs, out, part_rows=20)
    assert labelled == [10]
    assert out.read_bytes() == whole


def test_parts_of_another_judge_or_file_are_not_used(judge, products, queries, pairs, tmp_path):
    out = tmp_path / "labels.parquet"
    arguments = (products, queries, pairs)
    module._open_parts_(out.with_name(".labels.parquet-parts"), judge[0], *arguments, 20)
    stale = out.with_name(".labels.parquet-parts") / "000000000000.parquet"
    stale.write_bytes(b"of another order of pairs")
    reversed_pairs = pl.read_parquet(pairs).reverse()
    reversed_pairs.write_parquet(pairs)
    done = label_parquet(judge[0], *arguments, out, part_rows=20)
    assert pl.read_parquet(done.path)["query_id"].equals(reversed_pairs["query_id"])


def test_what_it_could_not_label_is_named(judge, products, queries, pairs, tmp_path):
    blank = pl.read_parquet(pairs)["product_id"][0]
    without = products.with_columns(
        title=pl.when(pl.col("product_id") == blank).then(None).otherwise("title")
    )
    done = label_parquet(judge[0], without, queries, pairs, tmp_path / "labels.parquet")
    missing = pl.read_parquet(done.not_labelled)
    assert missing["product_id"].unique().to_list() == [blank]
    assert "no text" in missing["why"][0]
    assert done.not_labelled_rows == len(missing) and done.rows == 50 - len(missing)
    again = label_parquet(judge[0], products, queries, pairs, tmp_path / "labels.parquet")
    assert again.not_labelled is None and not done.not_labelled.exists()


def test_pairs_that_cannot_be_labelled_stop_it_before_it_begins(judge, products, queries, tmp_path):
    path, out = tmp_path / "pairs.parquet", tmp_path / "labels.parquet"
    cases = {"names product_id 'nothing', which": [("q0", "p0"), ("q0", "nothing")], "no row": []}
    for message, rows in cases.items():
        schema = {"query_id": pl.String, "product_id": pl.String}
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(path)
        with pytest.raises(ValueError, match=message):
            label_parquet(judge[0], products, queries, path, out)
    pl.DataFrame({"query": ["red"]}).write_parquet(path)
    with pytest.raises(ValueError, match="no column query_id"):
        label_parquet(judge[0], products, queries, path, out)
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        label_parquet(judge[0], products, queries, path, out)
    assert not out.exists()


def test_labels_are_extended_to_new_pairs_of_training_queries(judge, products, queries, split):
    reverse = products.with_columns(title=pl.col("title").str.split(" ").list.first())
    retrievers = {"bm25": Bm25Scores(products, queries), "colour": Bm25Scores(reverse, queries)}
    labelled = split[0].sample(fraction=0.3, seed=0)
    arguments = (judge[0], products, queries, labelled, retrievers)
    found = extend_labels(*arguments, budget=60, seed=1)
    assert len(found) == 60 and set(found["source"]) == {"judge"}
    assert not len(found.join(labelled, on=["query_id", "product_id"], how="inner"))
    text_of = dict(queries.select("query_id", "query").iter_rows())
    assert not any(is_test_query(text_of[query_id]) for query_id in found["query_id"])
    assert not column_violations("relevance", found)
    assert found.equals(extend_labels(*arguments, budget=60, seed=1))
    likeliest = pl.max_horizontal("p0", "p1", "p2")
    middle = found.select(likeliest.median()).item()
    sure = extend_labels(*arguments, budget=60, seed=1, min_share=middle)
    assert 0 < len(sure) < 60 and sure.select(likeliest.min()).item() >= middle
    with pytest.raises(ValueError, match="lower min_share"):
        extend_labels(*arguments, budget=60, seed=1, min_share=1.01)


def test_extending_refuses_a_budget_of_nothing_and_test_queries_alone(
    judge, products, queries, split
):
    retrievers = {"a": Bm25Scores(products, queries), "b": Bm25Scores(products, queries)}
    with pytest.raises(ValueError, match="budget=0"):
        extend_labels(judge[0], products, queries, split[0], retrievers, budget=0)
    held = queries.filter(pl.col("query").map_elements(is_test_query, return_dtype=pl.Boolean))
    with pytest.raises(ValueError, match="are test queries"):
        extend_labels(judge[0], products, held, split[0], retrievers, budget=5)
