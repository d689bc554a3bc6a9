"""The exchange rate by hand, against scipy, and honest about few points."""

import numpy as np
import pytest
from scipy import stats

from experiments.compare import compare_variants
from experiments.exchange_rate import exchange_rate, exchange_rates


def test_points_on_a_line_by_hand():
    # Recall from 0.1 to 0.3 goes with AUC from 0.60 to 0.64: a point of recall buys 0.002.
    rate = exchange_rate(
        "recall@10", {"a": 0.1, "b": 0.2, "c": 0.3}, {"a": 0.60, "b": 0.62, "c": 0.64}
    )
    assert rate is not None
    assert rate.slope / 100 == pytest.approx(0.002)
    assert rate.low == pytest.approx(rate.high)
    assert rate.correlation == pytest.approx(1.0)
    assert "a point of recall@10 (0.01) buys +0.00200 click AUC" in rate.in_words()


def test_slope_and_interval_are_scipys():
    rng = np.random.default_rng(0)
    metric = {str(i): float(x) for i, x in enumerate(rng.random(7))}
    auc = {name: 0.6 + 0.1 * x + 0.02 * rng.normal() for name, x in metric.items()}
    rate = exchange_rate("auc_2v1", metric, auc)
    theirs = stats.linregress(list(metric.values()), [auc[name] for name in metric])
    assert rate is not None
    assert (rate.slope, rate.p_value) == pytest.approx((theirs.slope, theirs.pvalue))
    margin = stats.t.isf(0.025, 5) * theirs.stderr
    assert (rate.low, rate.high) == pytest.approx((theirs.slope - margin, theirs.slope + margin))


def test_a_slope_that_rests_on_one_point_shows_it():
    metric = {"random": 0.0, "shuffled": 0.001, "stage1": 0.002, "dashclip": 0.5}
    auc = {"random": 0.6, "shuffled": 0.601, "stage1": 0.599, "dashclip": 0.65}
    rate = exchange_rate("recall@10", metric, auc)
    assert rate is not None and rate.low > 0
    # Without dashclip, the line falls.
    assert rate.lowest_without_one < 0


def test_too_few_points_and_equal_metrics_have_no_rate():
    assert exchange_rate("m", {"a": 0.1, "b": 0.2}, {"a": 0.6, "b": 0.7}) is None
    same = dict.fromkeys("abcd", 0.5)
    assert exchange_rate("m", same, {"a": 0.6, "b": 0.7, "c": 0.65, "d": 0.6}) is None
    unknown = {"a": 0.1, "b": float("nan"), "c": 0.3}
    assert exchange_rate("m", unknown, dict.fromkeys("abc", 1.0)) is None
    with pytest.raises(ValueError, match="confidence is 2"):
        exchange_rate("m", same, same, confidence=2)


def test_the_interval_covers_a_true_slope():
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(400):
        x = rng.random(6)
        y = 0.6 + 0.1 * x + 0.01 * rng.normal(size=6)
        names = list("abcdef")
        rate = exchange_rate(
            "m", dict(zip(names, x, strict=True)), dict(zip(names, y, strict=True))
        )
        hits.append(rate.low <= 0.1 <= rate.high)
    assert 0.915 < np.mean(hits) < 0.985


def test_every_known_measure_has_its_rate_in_the_comparison():
    rng = np.random.default_rng(2)
    label_N = (rng.random(400) < 0.3).astype(float)
    user_N = np.arange(400) // 4
    p_click = {name: [rng.random(400)] for name in ("production", "a", "b", "c", "other")}
    embedding = {
        name: {"recall@10": 0.1 * i, "mrr": 0.2, "auc_2v1": 0.5 + 0.1 * i}
        for i, name in enumerate(("a", "b", "c", "other"))
    }
    result = compare_variants(
        label_N, user_N, p_click, embedding=embedding, exchanged=("a", "b", "c")
    )
    assert [rate.measure for rate in result.exchange] == ["recall@10", "auc_2v1"]
    assert result.exchange[0].points == ("a", "b", "c")
    assert result.to_metrics()["exchange.recall@10.slope"] == result.exchange[0].slope
    assert exchange_rates({}, {}) == ()
