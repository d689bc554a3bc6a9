"""Vectors judged from the command line's side, in worlds where the right figures are known."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import silhouette_score

from embeddings.baselines import TfidfScores
from embeddings.evaluate import evaluate_scores
from embeddings.query_bootstrap import Estimate
from embeddings.relevance_split import split_relevance
from embeddings.scores import CosineScores
from embeddings.stage1_config import Stage1Config
from embeddings.stage2_config import Stage2Config
from embeddings.store import VectorStore
from experiments import commands
from experiments.config import EmbedConfig
from experiments.embed_evaluation import judge_vectors
from experiments.embed_evaluation_config import JudgeVectorsConfig
from experiments.judged_vectors import find_judged
from experiments.judgement import measures_of, shown, shown_delta
from experiments.marketplace.world import make_world
from experiments.progress import Silent
from experiments.true_relevance import true_aucs
from features.dataset import Dataset

QUICK = JudgeVectorsConfig(text_weights="random", draws=20)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("w") / "world", products=150, requests=300, seed=0)


@pytest.fixture(scope="module")
def dataset(world):
    return Dataset.open(world)


def write(folder, products, queries, encoder="e"):
    """Write stores of two mappings from id to vector."""
    for name, vectors in (("products", products), ("queries", queries)):
        VectorStore.write_(
            folder / name,
            list(vectors),
            np.array(list(vectors.values()), np.float32),
            kind=f"{name}/test",
            encoder_fingerprint=encoder,
        )
    return folder


@pytest.fixture(scope="module")
def told(dataset):
    """Product vectors that tell the category, and query vectors between those they like."""
    products, rng = dataset.table("products"), np.random.default_rng(0)
    codes = {name: i for i, name in enumerate(products["category"].unique().sort())}
    axes = rng.normal(size=(len(codes), 16))
    product = {
        key: axes[codes[category]] + 0.3 * rng.normal(size=16)
        for key, category in products.select("product_id", "category").iter_rows()
    }
    query = {key: rng.normal(size=16) for key in dataset.table("queries")["query_id"]}
    for query_id, product_id, label in (
        dataset.table("relevance").select("query_id", "product_id", "label").iter_rows()
    ):
        query[query_id] = query[query_id] + label * product[product_id]
    return product, query


@pytest.fixture(scope="module")
def judged(world, told, tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("v") / "vectors", *told)
    out = tmp_path_factory.mktemp("o") / "out"
    return judge_vectors(folder, world, out, QUICK), out, folder


def values(judgement, name="vectors"):
    return {key: one.value for key, one in judgement.measures[name].items()}


def test_everything_that_costs_no_training_stands_beside_the_vectors(judged):
    judgement, out, _ = judged
    assert list(judgement.measures) == ["vectors", "off_the_shelf", "random", "tfidf", "bm25"]
    assert judgement.subject == "vectors"
    assert values(judgement)["auc_2v0"] > 0.9 > values(judgement, "random")["auc_2v0"] + 0.2
    for name in ("figure_4.png", "figure_5.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "evaluation.json").read_text()) == json.loads(
        json.dumps(judgement.to_json())
    )
    page = (out / "evaluation.md").read_text()
    assert page == judgement.to_markdown()
    assert "| off the shelf |" in page and "Difference to off the shelf" in page


def test_figures_agree_with_those_of_a_run(judged, dataset, told):
    judgement, _, folder = judged
    stores = [VectorStore.open(folder / name) for name in ("products", "queries")]
    queries = dataset.table("queries")
    _, test = split_relevance(dataset.table("relevance"), queries)
    for name, scores in (
        ("vectors", CosineScores(*stores)),
        ("tfidf", TfidfScores(dataset.table("products"), queries)),
    ):
        expected = evaluate_scores(scores, test)
        for key in ("auc_2v0", "auc_2v1", "auc_1v0", "recall@10", "ndcg@10", "mrr"):
            assert values(judgement, name)[key] == pytest.approx(expected[key], abs=1e-6), key
    truth = true_aucs(dataset, *stores, test)
    assert {k: v for k, v in values(judgement).items() if k in truth} == pytest.approx(truth)
    assert len(truth) == 3


def test_the_silhouette_is_scikit_learns_in_the_original_space(judged, told, dataset):
    judgement, _, _ = judged
    products = dataset.table("products")
    top = products["category"].value_counts().filter(pl.col("count") > 1)
    top = top.sort("count", "category", descending=[True, False])["category"][:10]
    some = products.filter(pl.col("category").is_in(top.to_list()))
    vectors = np.array([told[0][key] for key in some["product_id"]])
    expected = silhouette_score(vectors, some["category"].to_list(), metric="cosine")
    assert values(judgement)["category.silhouette"] == pytest.approx(expected, abs=1e-4)


def test_the_same_command_gives_the_same_bytes(judged, world, tmp_path):
    _, out, folder = judged
    judge_vectors(folder, world, tmp_path / "again", QUICK)
    for name in ("evaluation.json", "evaluation.md", "figure_4.png", "figure_5.png"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name


def test_neither_order_nor_length_of_vectors_moves_what_ranks(judged, world, told, tmp_path):
    product, query = told
    order = np.random.default_rng(1).permutation(list(product))
    folder = write(
        tmp_path / "v",
        {key: 3 * product[key] for key in order},
        {k: 2 * v for k, v in query.items()},
    )
    again = values(judge_vectors(folder, world, tmp_path / "o", QUICK))
    once = values(judged[0])
    for key in once:
        if "norm" not in key and "mlp" not in key:
            assert again[key] == pytest.approx(once[key], abs=1e-3), key
    assert again["geometry.norm_mean"] == pytest.approx(3 * once["geometry.norm_mean"], rel=1e-5)


def test_vectors_equal_to_off_the_shelf_differ_by_nothing_at_all(world, told, tmp_path):
    run = tmp_path / "run" / "embeddings"
    for name in ("off_the_shelf", "dashclip"):
        write(run / name, *told)
    judgement = judge_vectors(run.parent, world, tmp_path / "o", QUICK)
    assert judgement.subject == "dashclip"
    compared = [m for m in judgement.measures["dashclip"].values() if m.delta is not None]
    assert len(compared) > 15
    assert all(m.delta == m.delta_low == m.delta_high == 0 for m in compared)
    assert all(m.delta is None for m in judgement.measures["off_the_shelf"].values())


def test_cells_are_counted_and_those_too_small_are_named(world, dataset, told, tmp_path):
    pairs = dataset.table("relevance")
    # Every second query, and none of the pairs of every third product, trained the vectors.
    seen_query = pl.col("query_id").str.slice(1).cast(pl.Int64) % 2 == 0
    seen_product = pl.col("product_id").str.slice(1).cast(pl.Int64) % 3 != 0
    trained = pairs.filter(seen_query & seen_product)
    trained.write_parquet(tmp_path / "trained.parquet")
    text = dict(dataset.table("queries").select("query_id", "query").iter_rows())
    group = dict(dataset.table("products").select("product_id", "group_id").iter_rows())
    seen_texts = {text[key] for key in trained["query_id"]}
    seen_groups = {group[key] or key for key in trained["product_id"]}
    expected = {}
    for query_id, product_id, label in pairs.select("query_id", "product_id", "label").iter_rows():
        if label:
            query = "seen" if text[query_id] in seen_texts else "unseen"
            product = "seen" if (group[product_id] or product_id) in seen_groups else "unseen"
            expected.setdefault(f"{query}_queries.{product}_products", set()).add(query_id)
    folder = write(tmp_path / "v", *told)
    config = QUICK.model_copy(
        update={"trained_on": tmp_path / "trained.parquet", "queries": 20, "modalities": False}
    )
    judgement = judge_vectors(folder, world, tmp_path / "o", config)
    assert set(expected) == {
        f"{q}_queries.{p}_products" for q in ("seen", "unseen") for p in ("seen", "unseen")
    }
    for cell, queries in expected.items():
        assert judgement.counts[f"{cell}.queries"] == len(queries)
        assert (f"{cell}.map" in judgement.measures["bm25"]) == (len(queries) >= 20), cell
    assert any("a sample of 20 of" in note for note in judgement.notes)
    whole = values(judge_vectors(folder, world, tmp_path / "p", QUICK))
    assert "unseen_queries.unseen_products.map" not in whole
    assert whole["unseen_queries.seen_products.map"] == whole["map"]
    notes = (tmp_path / "p" / "evaluation.md").read_text()
    assert "unseen queries and unseen products: 0 queries have a positive there, too few" in notes


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w, v: (w / "relevance.parquet").unlink(), "relevance"),
        (lambda w, v: relabel(w, pl.lit(2)), "labels of the relevance table are 2"),
        (lambda w, v: relabel(w, pl.col("label"), rows=0), "has no rows"),
        (lambda w, v: shutil.rmtree(v / "queries"), "no vectors to judge"),
        (lambda w, v: rewrite(v, "products", slice(1, None)), "1 of 150 products have no vector"),
        (lambda w, v: rewrite(v, "queries", slice(0, 5)), "no vector of query"),
        (lambda w, v: rewrite(v, "queries", slice(None), width=8), "16 dimensions and query"),
    ],
)
def test_what_cannot_be_judged_is_refused(world, told, tmp_path, spoil, message):
    shutil.copytree(world, tmp_path / "world")
    folder = write(tmp_path / "v", *told)
    spoil(tmp_path / "world", folder)
    with pytest.raises(ValueError, match=message):
        judge_vectors(folder, tmp_path / "world", tmp_path / "o", QUICK)
    assert not (tmp_path / "o").exists()


def relabel(world, label, rows=None):
    path = world / "relevance.parquet"
    table = pl.read_parquet(path).with_columns(label.cast(pl.Int8).alias("label"))
    table.head(len(table) if rows is None else rows).write_parquet(path)


def rewrite(folder, name, kept, width=None):
    store = VectorStore.open(folder / name)
    VectorStore.write_(
        folder / name,
        store.ids[kept],
        np.array(store.vectors_VD[kept, :width]),
        kind="k",
        encoder_fingerprint="e",
    )


def test_training_pairs_that_leave_nothing_to_judge_are_refused(world, dataset, told, tmp_path):
    folder = write(tmp_path / "v", *told)
    path = tmp_path / "all.parquet"
    config = QUICK.model_copy(update={"trained_on": path})
    dataset.table("relevance").write_parquet(path)
    with pytest.raises(ValueError, match="trained on every query"):
        judge_vectors(folder, world, tmp_path / "o", config)
    dataset.table("relevance").drop("product_id").write_parquet(path)
    with pytest.raises(ValueError, match="lacks the columns \\['product_id'\\]"):
        judge_vectors(folder, world, tmp_path / "o", config)
    with pytest.raises(ValueError, match="is a file"):
        judge_vectors(folder, world, path, QUICK)


TINY_STAGE1 = Stage1Config(
    text_weights="random", image_width=24, image_layers=1, steps=2, batch=16, warmup_steps=1
)


def test_each_modality_of_stage_1_is_embedded_apart(tmp_path):
    small = make_world(tmp_path / "world", products=60, requests=100, seed=0)
    run, sources = tmp_path / "run", ("stage1",)
    commands.embed(
        EmbedConfig(data=small, out=run, sources=sources, stage1=TINY_STAGE1, track=False)
    )
    settings = {"text_weights": "random", "seed": 0, "progress": Silent()}
    found = find_judged(run, Dataset.open(small), modalities=True, **settings)
    names = ("stage1", "stage1_text_only", "stage1_image_only")
    both, text, image = (found.by_name[name].products.vectors_VD for name in names)
    # Before alignment both together are the mean direction of the two.
    mean = (text + image) / np.linalg.norm(text + image, axis=1, keepdims=True)
    np.testing.assert_allclose(both, mean, atol=1e-3)
    assert np.abs(text - image).max() > 0.1
    without = find_judged(run, Dataset.open(small), modalities=False, **settings)
    assert list(without.by_name) == ["stage1", "off_the_shelf", "random", "tfidf", "bm25"]
    (run / "embeddings" / "model_stage1" / "model.json").write_text("{}")
    broken = find_judged(run, Dataset.open(small), modalities=True, **settings)
    assert broken.by_name.keys() == without.by_name.keys()
    assert "stage1 was not judged by modality" in broken.notes[0]


@pytest.mark.slow
def test_each_modality_of_a_run_is_judged_apart(world, tmp_path):
    commands.embed(
        EmbedConfig(
            data=world,
            out=tmp_path / "run",
            sources=("stage1", "dashclip"),
            stage1=TINY_STAGE1,
            stage2=Stage2Config(steps=4, batch=16, warmup_steps=1),
            track=False,
        )
    )
    judgement = judge_vectors(tmp_path / "run", world, tmp_path / "o", QUICK)
    assert list(judgement.measures)[:3] == ["dashclip", "text_only", "image_only"]
    assert {"stage1", "stage1_text_only", "stage1_image_only"} <= judgement.measures.keys()
    values_of = [values(judgement, n) for n in ("dashclip", "text_only", "image_only")]
    assert len({one["auc_2v0"] for one in values_of}) == 3
    # A model that made other vectors must not pass for the one that made these.
    stage1 = tmp_path / "run" / "embeddings" / "model_stage1"
    shutil.rmtree(stage1)
    shutil.copytree(stage1.with_name("model_stage2"), stage1)
    other = judge_vectors(tmp_path / "run", world, tmp_path / "q", QUICK)
    assert "stage1_text_only" not in other.measures
    assert any("another model made its vectors" in note for note in other.notes)


def test_measures_by_hand_and_as_they_are_shown():
    estimates = {
        "off_the_shelf": {"map": Estimate(value=0.5, draw_R=np.array([0.4, 0.6]))},
        "ours": {
            "map": Estimate(value=0.75, draw_R=np.array([0.65, 0.85])),
            "mrr": Estimate(value=float("nan"), draw_R=np.full(2, np.nan)),
        },
    }
    measures = measures_of(estimates, "off_the_shelf", 0.9)
    assert set(measures["ours"]) == {"map"}
    ours = measures["ours"]["map"]
    assert (ours.value, ours.low, ours.high) == pytest.approx((0.75, 0.66, 0.84))
    # Each draw differs by a quarter, so the difference is certain though neither figure is.
    assert (ours.delta, ours.delta_low, ours.delta_high) == pytest.approx((0.25, 0.25, 0.25))
    assert shown(ours) == "0.750 [0.660, 0.840]"
    assert shown_delta(ours) == "+0.250 [+0.250, +0.250]"
    assert shown(None) == shown_delta(measures["off_the_shelf"]["map"]) == ""


def test_flat_figures_are_named_by_vectors_and_figure(judged):
    metrics = judged[0].to_metrics()
    for key in ("vectors.auc_2v1", "bm25.recall@10", "off_the_shelf.map"):
        assert metrics[f"{key}.low"] <= metrics[key] <= metrics[f"{key}.high"]
    assert metrics["bm25.map.delta.low"] <= metrics["bm25.map.delta"]
    assert "off_the_shelf.map.delta" not in metrics
    assert all(np.isfinite(value) for value in metrics.values())
