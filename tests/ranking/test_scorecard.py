"""The scorecard holds every metric, whole and by slice."""

import numpy as np
import pytest

from ranking import metrics
from ranking.scorecard import click_metrics, sliced_metrics


@pytest.fixture
def clicks():
    rng = np.random.default_rng(0)
    p_click_N = rng.beta(1, 4, size=2_000)
    label_N = (rng.random(2_000) < p_click_N).astype(np.float64)
    return label_N, p_click_N, rng.integers(0, 100, 2_000)


def test_the_card_repeats_the_single_metrics(clicks):
    label_N, p_click_N, user_N = clicks
    card = click_metrics(label_N, p_click_N, user_N)
    assert card["auc"] == metrics.auc(label_N, p_click_N)
    assert card["log_loss"] == metrics.log_loss_nats(label_N, p_click_N)
    assert card["grouped_auc"] == metrics.grouped_auc(label_N, p_click_N, user_N)
    assert card["clicks"] == label_N.sum()
    assert all(type(value) is float for value in card.values())
    assert "grouped_auc" not in click_metrics(label_N, p_click_N)


def test_a_slice_is_the_metric_of_its_rows(clicks):
    label_N, p_click_N, user_N = clicks
    cold_N = np.arange(len(label_N)) % 3 == 0
    out = sliced_metrics(
        label_N, p_click_N, {"cold": cold_N, "none": np.zeros_like(cold_N)}, user_N
    )
    expected = click_metrics(label_N[cold_N], p_click_N[cold_N], user_N[cold_N])
    assert {k.removeprefix("cold."): v for k, v in out.items() if k.startswith("cold.")} == expected
    assert out["none.impressions"] == 0.0
    assert "none.auc" not in out


def test_row_numbers_are_not_taken_for_a_mask(clicks):
    label_N, p_click_N, _ = clicks
    with pytest.raises(ValueError, match="slice 'cold' has dtype int64"):
        sliced_metrics(label_N, p_click_N, {"cold": np.arange(10)})


def test_groups_of_one_class_leave_the_grouped_auc_out():
    card = click_metrics([0, 1], [0.2, 0.4], ["a", "b"])
    assert card["grouped_auc_coverage"] == 0.0
    assert "grouped_auc" not in card
