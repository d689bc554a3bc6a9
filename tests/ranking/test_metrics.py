"""Metrics are checked by hand, against scikit-learn, and where the answer is forced."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from ranking.metrics import (
    auc,
    auc_by_group,
    calibration_ratio,
    equal_mass_bins,
    expected_calibration_error,
    grouped_auc,
    log_loss_nats,
    normalized_entropy,
    pr_auc,
)

ALL_METRICS = (
    auc,
    pr_auc,
    log_loss_nats,
    normalized_entropy,
    calibration_ratio,
    expected_calibration_error,
)


@pytest.fixture
def clicks():
    rng = np.random.default_rng(0)
    p_click_N = rng.beta(1, 9, size=4_000)
    label_N = (rng.random(4_000) < p_click_N).astype(np.float64)
    return label_N, p_click_N


def test_normalized_entropy_by_hand():
    # Click rate 1/2, so the reference is log 2; the model gives every label 3/4.
    label_N, p_click_N = np.array([1.0, 0.0]), np.array([0.75, 0.25])
    assert normalized_entropy(label_N, p_click_N) == pytest.approx(np.log(4 / 3) / np.log(2))


def test_predicting_the_click_rate_scores_exactly_one(clicks):
    label_N, _ = clicks
    assert normalized_entropy(label_N, np.full_like(label_N, label_N.mean())) == 1.0


def test_logits_are_refused(clicks):
    label_N, p_click_N = clicks
    for metric in (
        normalized_entropy,
        log_loss_nats,
        calibration_ratio,
        expected_calibration_error,
    ):
        with pytest.raises(ValueError, match="were logits passed"):
            metric(label_N, np.log(p_click_N))
        with pytest.raises(ValueError, match="were logits passed"):
            metric(label_N, 5 + p_click_N)


def test_auc_by_hand_with_a_tie():
    # Pairs (click, non-click): .9>.1, .9>.5, .5>.1 are won, .5=.5 is half: 3.5 of 4.
    assert auc([1, 1, 0, 0], [0.9, 0.5, 0.5, 0.1]) == 3.5 / 4


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=60).filter(
        lambda rows: 0 < sum(label for label, _ in rows) < len(rows)
    )
)
def test_auc_and_pr_auc_agree_with_sklearn_whatever_the_ties(rows):
    label_N = np.array([label for label, _ in rows], float)
    score_N = np.array([score for _, score in rows], float)
    assert auc(label_N, score_N) == pytest.approx(roc_auc_score(label_N, score_N), abs=1e-12)
    assert pr_auc(label_N, score_N) == pytest.approx(
        average_precision_score(label_N, score_N), abs=1e-12
    )


def test_auc_depends_on_the_order_alone(clicks):
    label_N, p_click_N = clicks
    assert auc(label_N, p_click_N) == auc(label_N, np.log(p_click_N))
    assert auc(label_N, p_click_N) + auc(label_N, -p_click_N) == pytest.approx(1.0, abs=1e-15)
    assert auc(label_N, np.zeros_like(p_click_N)) == 0.5
    assert auc(label_N, label_N) == 1.0


def test_log_loss_agrees_with_sklearn_and_a_certain_mistake_is_finite(clicks):
    assert log_loss_nats(*clicks) == pytest.approx(log_loss(*clicks), abs=1e-12)
    assert log_loss_nats([0.0], [1.0]) == pytest.approx(-np.log(1e-12), rel=1e-4)


def per_group_loop(label_N, score_N, group_N):
    total = weight = 0.0
    for group in np.unique(group_N):
        mask_N = group_N == group
        if 0 < label_N[mask_N].sum() < mask_N.sum():
            total += mask_N.sum() * roc_auc_score(label_N[mask_N], score_N[mask_N])
            weight += mask_N.sum()
    return total / weight, weight / len(label_N)


def test_grouped_auc_equals_one_sklearn_call_a_group():
    rng = np.random.default_rng(1)
    group_N = rng.zipf(1.5, size=5_000) % 400
    label_N = (rng.random(5_000) < 0.2).astype(float)
    score_N = rng.integers(0, 12, 5_000) / 12 + 0.1 * label_N.round()
    expected, coverage = per_group_loop(label_N, score_N, group_N)
    assert abs(grouped_auc(label_N, score_N, group_N) - expected) <= 1e-12
    groups = auc_by_group(label_N, score_N, group_N)
    assert groups.coverage == pytest.approx(coverage)
    assert 0 < coverage < 1, "the case should contain groups of one class"
    names_N = np.array([f"user {code}" for code in group_N], dtype=object)
    assert grouped_auc(label_N, score_N, names_N) == pytest.approx(expected, abs=1e-12)


def test_grouped_auc_by_hand():
    # Group 7 is right (AUC 1, 2 rows), group 3 wrong (AUC 0, 3 rows), group 5 has no click.
    label_N = [1, 0, 0, 0, 1, 0]
    score_N = [0.9, 0.1, 0.8, 0.7, 0.2, 0.5]
    group_N = [7, 7, 3, 3, 3, 5]
    assert grouped_auc(label_N, score_N, group_N) == pytest.approx((2 * 1 + 3 * 0) / 5)
    groups = auc_by_group(label_N, score_N, group_N)
    assert groups.group_G.tolist() == [3, 5, 7]
    np.testing.assert_array_equal(groups.auc_G, [0.0, np.nan, 1.0])
    assert groups.coverage == 5 / 6


def test_one_group_gives_the_plain_auc(clicks):
    label_N, p_click_N = clicks
    assert grouped_auc(label_N, p_click_N, np.zeros(len(label_N), int)) == auc(*clicks)


def test_grouped_auc_of_a_million_rows_takes_about_a_second():
    rng = np.random.default_rng(2)
    group_N = rng.integers(0, 50_000, 1_000_000)
    label_N = (rng.random(1_000_000) < 0.05).astype(float)
    score_N = rng.random(1_000_000)
    start = time.process_time()
    grouped_auc(label_N, score_N, group_N)
    # A loop over the groups takes about a minute; the allowance is for slow shared machines.
    assert time.process_time() - start < 3.0


def test_equal_mass_bins_keep_ties_together_and_are_equally_full():
    assert equal_mass_bins(np.array([0.1, 0.4, 0.2, 0.3]), 2).tolist() == [0, 1, 0, 1]
    assert len(set(equal_mass_bins(np.full(10, 0.3), 5))) == 1
    bin_N = equal_mass_bins(np.random.default_rng(0).random(1_000), 20)
    assert np.bincount(bin_N).tolist() == [50] * 20


def test_calibration_error_by_hand():
    # Two bins: predicted .15 against observed 0, predicted .8 against observed 1.
    label_N, p_click_N = [0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9]
    assert expected_calibration_error(label_N, p_click_N, bins=2) == pytest.approx(0.175)


def test_a_calibrated_model_has_ratio_one_and_a_scaled_one_its_factor(clicks):
    label_N, p_click_N = clicks
    assert calibration_ratio(label_N, np.full_like(label_N, label_N.mean())) == pytest.approx(1)
    assert calibration_ratio(label_N, p_click_N / 2) == pytest.approx(
        calibration_ratio(label_N, p_click_N) / 2
    )
    assert expected_calibration_error(label_N, np.full_like(label_N, label_N.mean())) < 1e-12


@pytest.mark.parametrize("metric", ALL_METRICS)
def test_bad_input_is_refused_by_name(metric):
    with pytest.raises(ValueError, match=r"label 2\.0 at row 1; only 0 .* and 1"):
        metric([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="score nan at row 1 is not finite"):
        metric([0, 1], [0.1, np.nan])
    with pytest.raises(ValueError, match=r"labels have shape \(2,\) and scores \(3,\)"):
        metric([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="no impressions"):
        metric([], [])


@pytest.mark.parametrize("metric", [auc, pr_auc, normalized_entropy, calibration_ratio])
def test_one_class_is_refused(metric):
    with pytest.raises(ValueError, match=r"all 2 labels are 0|none of the 2 impressions"):
        metric([0, 0], [0.1, 0.2])


def test_groups_without_both_classes_are_refused():
    with pytest.raises(ValueError, match="none of the 2 groups has both"):
        grouped_auc([0, 1], [0.1, 0.2], [1, 2])
    with pytest.raises(ValueError, match=r"groups have shape \(1,\)"):
        grouped_auc([0, 1], [0.1, 0.2], [1])
