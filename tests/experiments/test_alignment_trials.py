"""Settings of the alignment are compared on validation queries, by labels and by the truth."""

import numpy as np
import polars as pl
import pytest

from embeddings.relevance_split import is_test_query, query_tenth
from embeddings.stage1 import train_stage1
from embeddings.stage1_config import Stage1Config
from embeddings.stage2_config import Stage2Config
from embeddings.store import VectorStore
from experiments import alignment_trials
from experiments.alignment_trials import compare_alignments, ratio_settings
from experiments.marketplace.world import make_world
from experiments.true_relevance import true_aucs, true_labels
from features.dataset import Dataset


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "w"
    return Dataset.open(make_world(folder, products=120, requests=150, seed=3))


def test_the_truth_is_what_the_labels_are_but_for_their_noise(world):
    relevance = world.table("relevance")
    truth = true_labels(world, relevance)
    same = pl.Series(truth) == relevance["label"]
    by_rule = relevance["source"] == "rule"
    assert same.filter(by_rule).all()
    # One human label in ten is wrong.
    assert same.filter(~by_rule).mean() == pytest.approx(0.9, abs=0.03)


def test_nobody_knows_the_truth_of_other_datasets(world):
    relevance = world.table("relevance")
    own = Dataset(world.spec.model_copy(update={"name": "my shop"}), folder=world.folder, frames={})
    assert true_labels(own, relevance) is None
    frames = {"queries": world.table("queries").reverse()}
    other = Dataset(world.spec, folder=world.folder, frames=frames)
    assert true_labels(other, relevance) is None


def test_each_setting_is_trained_on_training_queries_alone(world, monkeypatch):
    seen = []
    train = alignment_trials.train_stage2

    def spy(model, products, queries, relevance, config, **given):
        text = dict(zip(queries["query_id"], queries["query"], strict=True))
        seen.append({text[key] for key in relevance["query_id"].to_list()})
        return train(model, products, queries, relevance, config, **given)

    monkeypatch.setattr(alignment_trials, "train_stage2", spy)
    products = world.table("products")
    model = train_stage1(products, Stage1Config(text_weights="random", steps=1, batch=8), seed=0)
    base = Stage2Config(steps=2, batch=8, query_layers=1, warmup_steps=0)
    settings = ratio_settings(("2:1:1", "1:0:2"), base)
    found = compare_alignments(world, model, settings, seeds=(0, 1))
    assert found["setting"].to_list() == ["2:1:1", "2:1:1", "1:0:2", "1:0:2"]
    assert found["seed"].to_list() == [0, 1, 0, 1]
    aucs = found.select(pl.col("^(true_)?auc_.*$"))
    assert aucs.width == 6
    assert aucs.min_horizontal().min() > 0
    for queries in seen:
        assert not any(is_test_query(text) or query_tenth(text) in (2, 3) for text in queries)


def test_by_the_truth_noise_costs_nothing(world):
    # Vectors whose cosine is the true class: one axis a query, products by their class on it.
    relevance = world.table("relevance").head(300)
    truth = true_labels(world, relevance)
    products = relevance["product_id"].unique(maintain_order=True).to_list()
    queries = relevance["query_id"].unique(maintain_order=True).to_list()
    vector = np.zeros((len(products), len(queries) + 1), np.float32)
    for (query, product), label in zip(
        relevance.select("query_id", "product_id").iter_rows(), truth, strict=True
    ):
        vector[products.index(product), queries.index(query)] = label
    # The last axis gives every product the same length, so that classes of two queries compare.
    vector[:, -1] = np.sqrt(4 * len(queries) - (vector[:, :-1] ** 2).sum(1))
    made_by = {"kind": "k", "encoder_fingerprint": "e"}
    axis = np.eye(len(queries), len(queries) + 1, dtype=np.float32)
    stores = (
        VectorStore.from_arrays(products, vector, **made_by),
        VectorStore.from_arrays(queries, axis, **made_by),
    )
    found = true_aucs(world, *stores, relevance)
    assert found == {"true_auc_2v0": 1.0, "true_auc_2v1": 1.0, "true_auc_1v0": 1.0}


@pytest.mark.parametrize("ratio", ["2:1", "2:1:x", "0:0:1"])
def test_ratios_that_are_none_are_refused(ratio):
    with pytest.raises(ValueError, match=r"not three counts|class_ratio"):
        ratio_settings((ratio,), Stage2Config())


def test_a_ratio_changes_nothing_else():
    base = Stage2Config(steps=7, bank=3)
    settings = ratio_settings(("1:2:3",), base)
    assert settings["1:2:3"] == base.model_copy(update={"class_ratio": (1, 2, 3)})
