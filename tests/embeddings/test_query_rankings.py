import numpy as np
import polars as pl
import pytest

from embeddings.query_rankings import judge_rankings
from embeddings.scores import CosineScores
from embeddings.store import VectorStore


def scores(products, queries):
    stores = [
        VectorStore.from_arrays(
            [f"{letter}{i}" for i in range(len(rows))],
            np.array(rows, np.float32),
            kind="k",
            encoder_fingerprint="e",
        )
        for letter, rows in (("p", products), ("q", queries))
    ]
    return CosineScores(*stores)


def judged(rows):
    return pl.DataFrame(rows, schema=["query_id", "product_id", "label"], orient="row")


# From closest to furthest from q0: p0, p1, p2, p3.
LINE = [[1.0, 0], [0.8, 0.6], [0.6, 0.8], [0, 1.0]]


def test_a_ranking_by_hand():
    pairs = judged([("q0", "p0", 0), ("q0", "p1", 2), ("q0", "p2", 1), ("q0", "p3", 2)])
    row = judge_rankings(scores(LINE, [[1.0, 0]]), pairs, cutoffs=(2, 4)).row(0, named=True)
    assert row["recall@2"] == 0.5 and row["recall@4"] == 1
    assert row["mrr"] == 0.5
    assert row["map"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    best = 2 + 2 / np.log2(3) + 1 / np.log2(4)
    reached = 2 / np.log2(3) + 1 / np.log2(4) + 2 / np.log2(5)
    assert row["ndcg@4"] == pytest.approx(reached / best)


def test_a_product_nobody_judged_stands_in_the_way_of_the_catalogue_alone():
    row = judge_rankings(scores(LINE, [[1.0, 0]]), judged([("q0", "p1", 2)])).row(0, named=True)
    assert row["mrr"] == 0.5
    assert row["ndcg@10"] == pytest.approx(1 / np.log2(3)) and row["ndcg_judged@10"] == 1


def test_positives_that_are_no_targets_leave_the_ranking():
    pairs = judged([("q0", "p0", 2), ("q0", "p1", 2), ("q0", "p2", 0), ("q0", "p3", 2)])
    target = np.array([False, True, True, True])
    row = judge_rankings(scores(LINE, [[1.0, 0]]), pairs, target_N=target).row(0, named=True)
    # p0 is gone: p1 is first, p3 third behind the irrelevant p2.
    assert row["mrr"] == 1 and row["map"] == pytest.approx((1 + 2 / 3) / 2)


def test_queries_without_a_relevant_product_have_no_recall_and_those_without_positives_no_row():
    pairs = judged([("q0", "p1", 1), ("q1", "p1", 0), ("q2", "p3", 2)])
    ranked = judge_rankings(scores(LINE, [[1.0, 0]] * 3), pairs)
    assert ranked["query_id"].to_list() == ["q0", "q2"]
    assert ranked["recall@10"].to_list() == [None, 1.0]
    assert ranked["ndcg@10"].null_count() == 0
    assert judge_rankings(scores(LINE, [[1.0, 0]] * 3), pairs[1:2])["mrr"].mean() is None


def test_neither_the_order_of_products_nor_the_length_of_vectors_matters():
    rng = np.random.default_rng(0)
    # Small whole numbers, so that many cosines tie exactly.
    product, query = rng.integers(0, 2, (30, 4)).astype("f4"), np.eye(4, dtype="f4")[:3]
    rows = [(f"q{q}", f"p{p}", int(rng.integers(3))) for q in range(3) for p in range(0, 30, 2)]
    once = judge_rankings(scores(product, query), judged(rows))
    order = rng.permutation(30)
    name = {f"p{old}": f"p{new}" for new, old in enumerate(order)}
    moved = [(q, name[p], label) for q, p, label in rows]
    again = judge_rankings(scores(4 * product[order], 2 * query), judged(moved))
    for column in once.columns[1:]:
        np.testing.assert_allclose(once[column], again[column], atol=1e-9)


def test_a_product_that_nothing_ranks_is_refused():
    with pytest.raises(ValueError, match="nothing ranks product 'p9'"):
        judge_rankings(scores(LINE, [[1.0, 0]]), judged([("q0", "p9", 2)]))
