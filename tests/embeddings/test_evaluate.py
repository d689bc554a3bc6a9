import hashlib

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from embeddings.baselines import (
    off_the_shelf_products,
    off_the_shelf_queries,
    random_vectors,
    shuffled,
)
from embeddings.evaluate import (
    evaluate_embeddings,
    evaluate_tfidf,
    figure_data,
    relevance_aucs,
)
from embeddings.relevance_split import is_test_query, split_relevance
from embeddings.store import VectorStore
from embeddings.weights import find_text_weights


def store(ids, vectors):
    return VectorStore.from_arrays(ids, np.array(vectors), kind="k", encoder_fingerprint="e")


def test_aucs_agree_with_scikit_learn_ties_included():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 200)
    score = np.round(label * 0.3 + rng.normal(size=200), 1)
    aucs = relevance_aucs(score, label)
    for high, low in ((2, 0), (2, 1), (1, 0)):
        kept = (label == high) | (label == low)
        expected = roc_auc_score(label[kept] == high, score[kept])
        assert aucs[f"auc_{high}v{low}"] == pytest.approx(expected)
    assert relevance_aucs(score[label == 2], label[label == 2]) == {}


@pytest.fixture
def world():
    products = pl.DataFrame({"product_id": ["p0", "p1", "p2"], "title": ["a b", "a c", "d"]})
    queries = pl.DataFrame({"query_id": ["q0", "q1"], "query": ["a b", "d"]})
    relevance = pl.DataFrame(
        {
            "query_id": ["q0", "q0", "q0", "q1", "q1"],
            "product_id": ["p0", "p1", "p2", "p2", "p0"],
            "label": [2, 1, 0, 2, 0],
        }
    )
    return products, queries, relevance


def test_a_perfect_world_scores_one_and_a_flat_one_chance(world):
    perfect = evaluate_embeddings(
        store(["p0", "p1", "p2"], [[1.0, 0], [0.8, 0.6], [0, 1]]),
        store(["q0", "q1"], [[1.0, 0], [-0.6, 0.8]]),
        *world,
    )
    assert perfect["auc_2v0"] == perfect["auc_1v0"] == perfect["recall@10"] == 1
    assert perfect["ndcg@10"] == perfect["ndcg_judged@10"] == perfect["mrr"] == 1
    assert "category_f1" not in perfect
    flat = evaluate_embeddings(
        store(["p0", "p1", "p2"], np.zeros((3, 2))), store(["q0", "q1"], np.ones((2, 2))), *world
    )
    assert flat["auc_2v0"] == flat["auc_2v1"] == 0.5
    # One of three products is relevant, in any order: the mean of 1, 1/2 and 1/3.
    assert flat["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_word_matching_finds_equal_words(world):
    metrics = evaluate_tfidf(*world)
    assert metrics["auc_2v0"] == metrics["auc_2v1"] == metrics["mrr"] == 1


def test_figure_data_holds_the_cosines_by_class(world):
    data = figure_data(
        store(["p0", "p1", "p2"], [[1.0, 0], [0.8, 0.6], [0, 1]]),
        store(["q0", "q1"], [[2.0, 0], [0, 3.0]]),
        world[2],
    )
    assert sorted(data) == [0, 1, 2]
    for label, expected in enumerate([[0, 0], [0.8], [1, 1]]):
        assert data[label] == pytest.approx(expected, abs=1e-6)


def test_what_the_stores_lack_is_refused(world):
    products, queries, relevance = world
    vectors = store(["p0", "p1"], np.eye(2))
    with pytest.raises(ValueError, match="no vector of product 'p2'"):
        evaluate_embeddings(vectors, store(["q0", "q1"], np.eye(2)), products, queries, relevance)
    with pytest.raises(ValueError, match="is empty"):
        evaluate_embeddings(vectors, vectors, products, queries, relevance.clear())


def test_test_queries_are_those_whose_md5_says_so(world):
    texts = [f"query {i}" for i in range(2000)]
    expected = [int(hashlib.md5(t.encode()).hexdigest(), 16) % 10 in (0, 1) for t in texts]
    assert [is_test_query(t) for t in texts] == expected
    assert 0.17 < np.mean(expected) < 0.23
    _, queries, relevance = world
    train, test = split_relevance(relevance, queries)
    assert len(train) + len(test) == len(relevance)
    assert not set(train["query_id"]) & set(test["query_id"])
    with pytest.raises(ValueError, match="row 0 names query_id 'q0'"):
        split_relevance(relevance, queries.clear())


def test_baseline_vectors(tiny_weights, world):
    products, queries, _ = world
    weights = find_text_weights(str(tiny_weights))
    titled = products.with_columns(pl.Series("title", ["red cup", None, "old box"]))
    vectors = off_the_shelf_products(titled, weights=weights)
    np.testing.assert_allclose(np.linalg.norm(vectors.vectors_VD, axis=1), [1, 0, 1], atol=1e-3)
    words = off_the_shelf_queries(
        queries.with_columns(pl.Series("query", ["red cup", "pan"])), weights=weights
    )
    np.testing.assert_allclose(words.vectors_VD[0], vectors.vectors_VD[0], atol=1e-2)
    random = random_vectors(["x", "y"], 64, 0)
    np.testing.assert_array_equal(
        random.vectors_VD[::-1], random_vectors(["y", "x"], 64, 0).vectors_VD
    )
    assert abs(random.vectors_VD[0] @ random.vectors_VD[1]) < 0.5
    mixed = shuffled(random_vectors([str(i) for i in range(50)], 8, 0), 1)
    assert mixed.fingerprint != random_vectors([str(i) for i in range(50)], 8, 0).fingerprint
