import numpy as np
import polars as pl
import pytest

from embeddings.judgements import Judgements
from embeddings.pqc import UNKNOWN

PRODUCTS = [f"p{i}" for i in range(6)]
QUERIES = pl.DataFrame({"query_id": ["a", "b", "A"], "query": ["red cup", "box", "Red cup "]})


def judge(rows, groups=range(6), queries=QUERIES):
    relevance = pl.DataFrame(rows, schema=["query_id", "product_id", "label"], orient="row")
    return Judgements(relevance, queries, PRODUCTS, np.array(groups), np.random.default_rng(0))


def test_labels_by_hand_with_equal_texts_and_groups_merged():
    # p1 and p2 are one item, judged 0 and 2 for the same query under two ids: the 2 stands.
    judged = judge(
        [("a", "p1", 0), ("A", "p2", 2), ("b", "p3", 1), ("b", "p0", 0)], [0, 1, 1, 3, 4, 5]
    )
    assert judged.texts == ["red cup", "box"]
    assert judged.labels(np.array([0, 1]), np.arange(6)).tolist() == [
        [UNKNOWN, 2, 2, UNKNOWN, UNKNOWN, UNKNOWN],
        [0, UNKNOWN, UNKNOWN, 1, UNKNOWN, UNKNOWN],
    ]
    assert judged.trainable.tolist() == [0, 1]


def test_a_pair_judged_twice_counts_once_with_its_mean():
    judged = judge([("a", "p0", 2), ("a", "p0", 1), ("b", "p1", 0), ("b", "p1", 1), ("b", "p1", 0)])
    assert judged.labels(np.array([0, 1]), np.array([0, 1])).tolist() == [[2, -1], [-1, 0]]


def test_the_class_ratio_is_kept_and_draws_go_round():
    rows = [("a", f"p{i}", label) for i, label in enumerate([2, 2, 2, 1, 0, 0])]
    judged = judge([*rows, ("b", "p0", 0)])
    seen = set()
    for _ in range(3):
        drawn = judged.draw(np.array([0]), (1, 2, 1))
        label = judged.labels(np.array([0]), drawn)[0]
        # One of label 2, both wanted of label 1 but only one exists, one of label 0.
        assert sorted(label.tolist()) == [0, 1, 2]
        seen |= set(drawn[label == 2].tolist())
    assert seen == {0, 1, 2}
    assert judged.trainable.tolist() == [0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "p0", 3)], "row 0 has label 3"),
        ([("a", "p0", 2), ("z", "p0", 1)], "row 1 names query_id 'z'"),
        ([("a", "p9", 2)], "names product_id 'p9'"),
        ([("a", "p0", 2), ("b", "p1", 2)], "two classes"),
        ([], "empty"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        judge(rows)
