"""The calibration gate reads the order of scores and nothing else."""

import numpy as np
import pytest
from scipy.special import expit, logit

from experiments.distortions import DISTORTIONS
from experiments.recalibration import Recalibration


def traffic(rows: int = 20_000, seed: int = 0):
    rng = np.random.default_rng(seed)
    p_N = expit(-2 + rng.normal(size=rows))
    return (rng.random(rows) < p_N).astype(float), p_N, rng


@pytest.mark.parametrize("name", list(DISTORTIONS))
def test_a_bent_model_passes_as_the_model_itself_to_the_bit(name):
    label_N, p_N, rng = traffic()
    bend = DISTORTIONS[name]
    new_M = expit(-2 + rng.normal(size=5_000))
    plain_M = Recalibration.fit(label_N, p_N).probability(new_M)
    bent_M = Recalibration.fit(label_N, bend(p_N)).probability(bend(new_M))
    assert np.array_equal(plain_M, bent_M)


def test_the_gate_makes_calibrated_probabilities_of_any_scale():
    label_N, p_N, rng = traffic(40_000)
    new_M = expit(-2 + rng.normal(size=20_000))
    through_M = Recalibration.fit(label_N, 100 * logit(p_N) - 7).probability(100 * logit(new_M) - 7)
    assert through_M.mean() == pytest.approx(new_M.mean(), rel=0.03)
    top_M = new_M > np.quantile(new_M, 0.9)
    assert through_M[top_M].mean() == pytest.approx(new_M[top_M].mean(), rel=0.05)


def test_the_order_is_kept_strictly_even_where_clicks_contradict_it():
    label_N, p_N, _ = traffic(4_000)
    gate = Recalibration.fit(label_N, -p_N)
    probability_N = gate.probability(np.sort(-p_N))
    assert (np.diff(probability_N) > 0).all()
    # A model that orders clicks backwards gains nothing by it: hardly any spread is left.
    assert probability_N.std() < 0.02


def test_the_fit_is_the_maximum_of_its_likelihood():
    label_N, p_N, _ = traffic(5_000)
    gate = Recalibration.fit(label_N, p_N)
    probability_N = gate.probability(p_N)
    # The intercept is not penalised, so predicted and observed clicks agree at the maximum.
    assert probability_N.sum() == pytest.approx(label_N.sum(), rel=1e-3)


def test_too_few_clicks_and_scores_that_are_no_numbers_are_refused():
    label_N, p_N, _ = traffic(1_000)
    with pytest.raises(ValueError, match="5 clicks on 1000 calibration impressions"):
        Recalibration.fit(np.arange(1_000) < 5, p_N)
    with pytest.raises(ValueError, match="one finite score a label"):
        Recalibration.fit(label_N, np.where(p_N < 0.1, np.nan, p_N))
