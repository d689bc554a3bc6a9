"""Labels of a judge or a language model join a dataset's own in training, and only there."""

import polars as pl
import pytest

from embeddings.relevance_split import is_test_query
from embeddings.stage1_config import Stage1Config
from embeddings.stage2_config import Stage2Config
from experiments import commands, embed_evaluation, vectors
from experiments.config import EmbedConfig, RunConfig
from experiments.label_files import labels_digests
from experiments.marketplace.world import make_world
from experiments.more_labels import with_more_labels
from features.dataset import Dataset

QUERIES = pl.DataFrame({"query": [f"query {n}" for n in range(40)]}).with_columns(
    query_id=pl.format("q{}", pl.int_range(40))
)
HELD = [is_test_query(query) for query in QUERIES["query"]]
OWN = pl.DataFrame({"query_id": ["q0"], "product_id": ["p0"], "label": [2]})


@pytest.fixture
def judged(tmp_path):
    """A product of each query, as `adtower label judge` writes them; one had nothing to read."""
    labels = pl.DataFrame(
        {
            "query_id": QUERIES["query_id"],
            "product_id": "p1",
            "label": [None, *[1] * 39],
            "source": "judge",
            "p0": [None, *[0.2] * 39],
            "p1": [None, *[0.5] * 39],
            "p2": [None, *[0.3] * 39],
            "rating": [None, *[2.1] * 39],
        },
        schema_overrides={"label": pl.Int8},
    )
    labels.write_parquet(tmp_path / "relevance.parquet")
    return tmp_path / "relevance.parquet"


def test_held_out_queries_and_pairs_without_a_label_are_left_out(judged):
    assert any(HELD) and not HELD[0]
    found = with_more_labels(OWN, [judged], QUERIES)
    assert found.columns == ["query_id", "product_id", "label", "source", "p0", "p1", "p2"]
    assert found.row(0) == ("q0", "p0", 2, "human", None, None, None)
    assert found["source"].to_list()[1:] == ["judge"] * (len(found) - 1)
    trained = [q for q, held in zip(QUERIES["query_id"], HELD, strict=True) if not held]
    assert found["query_id"].to_list()[1:] == trained[1:]
    assert found.row(1)[4:] == (0.2, 0.5, 0.3)


def test_labels_alone_join_as_they_are(tmp_path):
    OWN.with_columns(source=pl.lit("llm")).write_parquet(tmp_path / "llm.parquet")
    found = with_more_labels(OWN.with_columns(p0=0.0, p1=0.1, p2=0.9), [tmp_path / "llm.parquet"],
                             QUERIES)  # fmt: skip
    assert found.rows() == [
        ("q0", "p0", 2, "human", 0.0, 0.1, 0.9),
        ("q0", "p0", 2, "llm", None, None, None),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.parquet", None, r"none\.parquet'?: there is no such file; `adtower label judge`"),
        ("text.parquet", b"query_id,label", "is not parquet"),
        ("few.parquet", OWN, "lacks the columns source; it has query_id, product_id, label"),
    ],
)
def test_files_that_are_no_labels_are_refused(tmp_path, name, content, message):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        content.write_parquet(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        with_more_labels(OWN, [tmp_path / name], QUERIES)
    with pytest.raises(ValueError, match=message):
        labels_digests([tmp_path / name])


@pytest.mark.parametrize("kind", [EmbedConfig, RunConfig])
def test_what_the_files_say_makes_the_run_another_and_not_where_they_lie(kind, judged, tmp_path):
    plain, told = (kind(data=tmp_path, out=tmp_path, labels=files) for files in ((), (judged,)))
    moved = tmp_path / "moved.parquet"
    moved.write_bytes(judged.read_bytes())
    assert told.identity("d") == kind(data=tmp_path, out=tmp_path, labels=(moved,)).identity("d")
    assert told.identity("d") != plain.identity("d")
    pl.read_parquet(moved).head(9).write_parquet(moved)
    assert told.identity("d") != kind(data=tmp_path, out=tmp_path, labels=(moved,)).identity("d")


def test_alignment_learns_from_them_and_its_judgement_knows(tmp_path, monkeypatch):
    world = make_world(tmp_path / "world", products=100, requests=300, seed=0)
    dataset = Dataset.open(world)
    queries, products = dataset.table("queries"), dataset.table("products")
    some = pl.DataFrame(
        {"query_id": queries["query_id"][:60], "product_id": products["product_id"][:60]}
    )
    some.with_columns(label=pl.lit(1), source=pl.lit("llm")).write_parquet(tmp_path / "llm.parquet")
    learned = []
    train = vectors.train_stage2

    def spy(model, products, queries, relevance, *given, **options):
        learned.append(relevance)
        return train(model, products, queries, relevance, *given, **options)

    monkeypatch.setattr(vectors, "train_stage2", spy)
    config = EmbedConfig(
        data=world,
        out=tmp_path / "vectors",
        sources=("dashclip",),
        labels=(tmp_path / "llm.parquet",),
        stage1=Stage1Config(text_weights="random", image_width=24, image_layers=1, steps=2),
        stage2=Stage2Config(steps=2, batch=16, warmup_steps=1),
        track=False,
    )
    commands.embed(config)
    (relevance,) = learned
    more = relevance.filter(source="llm")
    held = {q for q, text in queries.select("query_id", "query").rows() if is_test_query(text)}
    assert more["query_id"].to_list() == [q for q in some["query_id"] if q not in held]
    # Were people's labels of held-out queries alone, what the file names would still be seen.
    pairs = dataset.table("relevance").filter(pl.col("query_id").is_in(list(held)))
    split = embed_evaluation._split(dataset, pairs, None, config.out)
    assert split.seen_product_N.any() and not split.seen_query_N.any()
    named = set(more["product_id"].to_list())
    seen = [key in named for key in pairs["product_id"]]
    assert all(split.seen_product_N[seen]) and not split.seen_product_N.all()
