"""Orders by hand, reversed, and by chance."""

import numpy as np
import pytest
from scipy import stats

from experiments.rank_agreement import mean_ranks, rank_agreement
from experiments.seed_agreement import agreement_of


def test_one_swapped_pair_of_three_by_hand():
    # Of the pairs (a, b), (a, c), (b, c) the second measure turns the first: tau = (2 - 1) / 3.
    result = rank_agreement([[3.0, 2.0, 1.0]], [[2.0, 3.0, 1.0]])
    assert result.kendall.value == pytest.approx(1 / 3)
    assert result.spearman.value == pytest.approx(1 - 6 * 2 / (3 * 8))
    assert result.pairs.value == pytest.approx(2 / 3)
    assert (result.kendall.low, result.kendall.high) == pytest.approx((1 / 3, 1 / 3))


def test_equal_orders_agree_and_reversed_ones_disagree_entirely():
    rng = np.random.default_rng(0)
    a_WV = rng.normal(size=(6, 5))
    same, reverse = rank_agreement(a_WV, 3 * a_WV + 1), rank_agreement(a_WV, -a_WV)
    assert (same.kendall.value, same.pairs.value, same.kendall_of_means.value) == (1, 1, 1)
    assert (reverse.kendall.value, reverse.pairs.value) == (-1, 0)
    assert (reverse.kendall.low, reverse.kendall.high) == (-1, -1)


def test_tau_and_rho_are_scipys_with_ties():
    rng = np.random.default_rng(3)
    a_V, b_V = rng.integers(4, size=(2, 9)).astype(float)
    result = rank_agreement([a_V], [b_V])
    assert result.kendall.value == pytest.approx(stats.kendalltau(a_V, b_V)[0])
    assert result.spearman.value == pytest.approx(stats.spearmanr(a_V, b_V)[0])


def test_measures_without_relation_have_an_interval_around_zero():
    rng = np.random.default_rng(1)
    result = rank_agreement(rng.normal(size=(40, 6)), rng.normal(size=(40, 6)))
    assert result.kendall.low < 0 < result.kendall.high
    assert result.pairs.low < 0.5 < result.pairs.high


def test_intervals_over_worlds_cover_the_expected_tau_of_many_worlds():
    rng = np.random.default_rng(2)

    def worlds(n):
        quality_WV = np.arange(4.0) + rng.normal(size=(n, 4))
        return quality_WV, quality_WV + rng.normal(size=(n, 4))

    truth = rank_agreement(*worlds(3000)).kendall.value
    hits = [
        spread.low <= truth <= spread.high
        for spread in (rank_agreement(*worlds(20), seed=i).kendall for i in range(100))
    ]
    # A percentile bootstrap of twenty worlds covers a little less than it says.
    assert 0.86 < np.mean(hits) <= 1.0


def test_the_best_has_rank_one_and_ties_share():
    assert mean_ranks(np.array([[0.3, 0.2, 0.2]])).tolist() == [1.0, 2.5, 2.5]
    nothing = rank_agreement([[1.0, 1.0]], [[1.0, 2.0]])
    assert (nothing.kendall.value, nothing.pairs.value) == (0.0, 0.5)


def test_what_cannot_be_put_in_order_is_refused():
    with pytest.raises(ValueError, match="at least two variants"):
        rank_agreement([[1.0]], [[1.0]])
    with pytest.raises(ValueError, match=r"shape \(1, 2\) and \(1, 3\)"):
        rank_agreement([[1.0, 2.0]], [[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="NaN or infinite"):
        rank_agreement([[1.0, np.nan]], [[1.0, 2.0]])


def test_standings_are_sorted_by_truth_and_every_figure_is_flat():
    worlds = [
        {"production": {"auc": 0.6, "ctr": 0.03, "true_ctr": 0.031 + 0.001 * w},
         "dashclip": {"auc": 0.7, "ctr": 0.029 + 0.002 * w, "true_ctr": 0.035}}
        for w in range(2)
    ]  # fmt: skip
    result = agreement_of(worlds, ("production", "dashclip"))
    assert [one.name for one in result.standings] == ["dashclip", "production"]
    metrics = result.to_metrics()
    assert metrics["dashclip.auc_mean_rank"] == 1.0
    # Clicks order the two right in one world and wrong in the other.
    assert metrics["auc_vs_ctr.kendall"] == 0.0
    assert metrics["auc_vs_true_ctr.kendall"] == 1.0
    assert "mean rank" in str(result.tables()[0].columns[2].header)
