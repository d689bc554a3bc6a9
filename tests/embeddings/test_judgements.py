import numpy as np
import polars as pl
import pytest
import torch

from embeddings.judgements import Judgements
from embeddings.pqc import UNKNOWN
from embeddings.soft_labels import class_chances, rating_chances, source_weights

PRODUCTS = [f"p{i}" for i in range(6)]
QUERIES = pl.DataFrame({"query_id": ["a", "b", "A"], "query": ["red cup", "box", "Red cup "]})


COLUMNS = ["query_id", "product_id", "label", "source", "p0", "p1", "p2"]


def judge(rows, groups=range(6), queries=QUERIES, weights=None):
    columns = COLUMNS[: len(rows[0])] if rows else COLUMNS[:3]
    relevance = pl.DataFrame(rows, schema=columns, orient="row")
    rng = np.random.default_rng(0)
    return Judgements(relevance, queries, PRODUCTS, np.array(groups), rng, weights)


def labels(judged, query, product):
    """The likeliest label of each pair, ``UNKNOWN`` where nobody judged."""
    query, product = np.array(query), np.array(product)
    targets = judged.targets(query, product, torch.device("cpu"))
    known = judged.judged(query, product)
    return np.where(known, targets.likeliest_BM.numpy(), UNKNOWN).tolist()


def test_labels_by_hand_with_equal_texts_and_groups_merged():
    # p1 and p2 are one item, judged 0 and 2 for the same query under two ids: the 2 stands.
    judged = judge(
        [("a", "p1", 0), ("A", "p2", 2), ("b", "p3", 1), ("b", "p0", 0)], [0, 1, 1, 3, 4, 5]
    )
    assert judged.texts == ["red cup", "box"]
    assert labels(judged, [0, 1], range(6)) == [
        [UNKNOWN, 2, 2, UNKNOWN, UNKNOWN, UNKNOWN],
        [0, UNKNOWN, UNKNOWN, 1, UNKNOWN, UNKNOWN],
    ]
    assert judged.trainable.tolist() == [0, 1]


def test_a_pair_judged_twice_counts_once_with_its_mean():
    judged = judge([("a", "p0", 2), ("a", "p0", 1), ("b", "p1", 0), ("b", "p1", 1), ("b", "p1", 0)])
    targets = judged.targets(np.array([0, 1]), np.array([0, 1]), torch.device("cpu"))
    expected = [[[0, 0.5, 0.5], [1, 0, 0]], [[1, 0, 0], [2 / 3, 1 / 3, 0]]]
    np.testing.assert_allclose(targets.chance_BM3.numpy(), expected, atol=1e-6)
    assert targets.weight_BM.tolist() == [[1, 0], [0, 1]]
    # Of two classes as likely the higher stands: a known positive must not become a negative.
    assert labels(judged, [0, 1], [0, 1]) == [[2, -1], [-1, 0]]


def test_chances_count_instead_of_the_label_and_by_the_weight_of_their_source():
    rows = [
        ("a", "p0", 2, "human", None, None, None),
        ("a", "p0", 0, "judge", 0.5, 0.5, 0.0),
        ("a", "p1", 1, "judge", 0.1, 0.6, 0.3),
        ("b", "p2", 0, "rule", None, None, None),
    ]
    judged = judge(rows, weights={"judge": 0.25})
    targets = judged.targets(np.array([0, 1]), np.arange(3), torch.device("cpu"))
    np.testing.assert_allclose(targets.chance_BM3[0, :2], [[0.1, 0.1, 0.8], [0.1, 0.6, 0.3]])
    assert targets.weight_BM.tolist() == [[1, 0.25, 0], [0, 0, 1]]
    without = judge(rows, weights={"judge": 0})
    assert labels(without, [0, 1], range(3)) == [[2, -1, -1], [-1, -1, 0]]


def test_positives_are_those_of_label_1_and_2():
    judged = judge([("a", f"p{i}", label) for i, label in enumerate([0, 2, 1, 0, 2])])
    assert sorted(judged.positives(0).tolist()) == [1, 2, 4]
    assert judged.most_judged == 5


def test_the_class_ratio_is_kept_and_draws_go_round():
    rows = [("a", f"p{i}", label) for i, label in enumerate([2, 2, 2, 1, 0, 0])]
    judged = judge([*rows, ("b", "p0", 0)])
    seen = set()
    for turn in range(3):
        drawn = judged.draw(np.array([0]), (1, 2, 1), turn)
        label = np.array(labels(judged, [0], drawn)[0])
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


def test_certain_labels_are_chances_of_one():
    table = pl.DataFrame({"label": [2, 0, 1]})
    assert class_chances(table).tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert source_weights(table, {"human": 3}).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"p0": [0.5, 0.2], "p1": [0.5, 0.2], "p2": [0.0, 0.2]}, "row 1 has chances"),
        ({"p0": [1.5, 0.2], "p1": [-0.5, 0.2], "p2": [0.0, 0.6]}, "row 0 has chances"),
        ({"p0": [None, 0.2], "p1": [0.5, 0.2], "p2": [0.5, 0.6]}, "row 0 has chances"),
        ({"p0": [0.5, 0.2]}, "has p0 but not all"),
    ],
)
def test_chances_that_are_none_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        class_chances(pl.DataFrame({"label": [1, 2], **columns}))


def test_chances_of_ratings_by_hand_and_in_their_limits():
    # At a bound the classes beside it are as likely; one deviation below, the normal's .1587.
    soft = rating_chances([2.5, 2.25, 1.0], (1.8, 2.5), 0.25)
    assert soft.sum(axis=1) == pytest.approx(1)
    assert soft[0, 2] == pytest.approx(0.5)
    assert soft[1, 2] == pytest.approx(0.158655, abs=1e-6)
    assert soft[2, 0] > 0.999
    assert rating_chances([1.7, 2.0, 3.0], (1.8, 2.5), 1e-6).argmax(axis=1).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="must rise"):
        rating_chances([2.0], (2.5, 1.8), 0.25)
