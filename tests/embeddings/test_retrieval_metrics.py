import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from embeddings.retrieval_metrics import average_precision, ndcg, places, recall, reciprocal_rank


def test_places_by_hand():
    found = places(np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.arange(5))
    assert found.above_M.tolist() == [0, 1, 1, 1, 4]
    assert found.equal_M.tolist() == [1, 3, 3, 3, 1]


def test_ties_count_as_the_mean_of_their_orders_by_hand():
    # One relevant product, tied with one other, below a third: rank 2 or 3.
    found = places(np.array([0.9, 0.5, 0.5]), np.array([1]))
    assert recall(found, 2) == 0.5
    assert recall(found, 1) == 0 and recall(found, 3) == 1
    assert reciprocal_rank(found) == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert average_precision(found) == pytest.approx((1 / 2 + 1 / 3) / 2)
    discounts = 1 / np.log2([3, 4])
    assert ndcg(found, np.array([2.0]), 3) == pytest.approx(discounts.mean())


def over_all_orders(score, relevant, measure):
    """The mean of a measure over every order that the scores allow."""
    values = []
    for order in itertools.permutations(range(len(score))):
        if all(score[a] >= score[b] for a, b in itertools.pairwise(order)):
            rank = {item: place for place, item in enumerate(order, 1)}
            values.append(measure(sorted(rank[item] for item in relevant)))
    return np.mean(values)


@pytest.mark.parametrize("seed", range(8))
def test_every_measure_is_the_mean_over_all_orders_of_ties(seed):
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 3, 7).astype(float)
    relevant = rng.choice(7, int(rng.integers(1, 5)), replace=False)
    found = places(score, relevant)
    expected = {
        recall: lambda ranks: np.mean([rank <= 3 for rank in ranks]),
        reciprocal_rank: lambda ranks: 1 / ranks[0],
        average_precision: lambda ranks: np.mean([(i + 1) / r for i, r in enumerate(ranks)]),
    }
    assert recall(found, 3) == pytest.approx(over_all_orders(score, relevant, expected[recall]))
    for measure in (reciprocal_rank, average_precision):
        mean = over_all_orders(score, relevant, expected[measure])
        assert measure(found) == pytest.approx(mean), measure


@pytest.mark.parametrize("levels", [3, 10**6])
def test_ndcg_agrees_with_scikit_learn_ties_included(levels):
    rng = np.random.default_rng(levels)
    for _ in range(20):
        score, gain = rng.integers(0, levels, 30).astype(float), rng.integers(0, 3, 30)
        with_gain = np.flatnonzero(gain)
        found = places(score, with_gain)
        for cutoff in (1, 5, 30):
            expected = ndcg_score(gain[None], score[None], k=cutoff)
            assert ndcg(found, gain[with_gain].astype(float), cutoff) == pytest.approx(expected)


def test_average_precision_agrees_with_scikit_learn_where_nothing_ties():
    rng = np.random.default_rng(1)
    for _ in range(20):
        score, relevant = rng.permutation(40).astype(float), rng.random(40) < 0.2
        relevant[0] = True
        expected = average_precision_score(relevant, score)
        assert average_precision(places(score, np.flatnonzero(relevant))) == pytest.approx(expected)


def test_a_constant_score_earns_what_chance_does_wherever_the_products_stand():
    for of in ([0, 1], [98, 99]):
        found = places(np.zeros(100), np.array(of))
        assert recall(found, 10) == pytest.approx(0.1)
        assert ndcg(found, np.array([2.0, 2.0]), 100) < 0.5
    # Another scale, or another order of the products, changes nothing.
    rng = np.random.default_rng(2)
    score, order = rng.integers(0, 9, 50).astype(float), rng.permutation(50)
    there = np.argsort(order)[:5]
    assert average_precision(places(score * 7, np.arange(5))) == pytest.approx(
        average_precision(places(score[order], there))
    )


def test_long_ties_stay_within_bounds():
    found = places(np.zeros(200_000), np.arange(3))
    assert 0 < average_precision(found) < reciprocal_rank(found) < 0.01
