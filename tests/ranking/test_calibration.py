"""Calibrators mend what is bent, keep the order, and travel as plain numbers."""

import json

import numpy as np
import pytest
from scipy import optimize, special
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from ranking.calibration import (
    Isotonic,
    Platt,
    Temperature,
    calibrator_from_dict,
    reliability_curve,
)
from ranking.metrics import auc, calibration_ratio, expected_calibration_error, log_loss_nats


@pytest.fixture
def bent():
    """Clicks, and predictions that are overconfident and too high."""
    rng = np.random.default_rng(0)
    logit_N = rng.normal(-2, 1, size=20_000)
    label_N = (rng.random(20_000) < special.expit(logit_N)).astype(float)
    return label_N, special.expit(2 * logit_N + 1)


def test_platt_recovers_the_bend_and_agrees_with_sklearn(bent):
    label_N, p_click_N = bent
    fitted = Platt.fit(label_N, p_click_N)
    assert fitted.slope == pytest.approx(0.5, abs=0.03)
    assert fitted.intercept == pytest.approx(-0.5, abs=0.06)
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(special.logit(p_click_N)[:, None], label_N)
    assert fitted.slope == pytest.approx(oracle.coef_[0, 0], abs=1e-4)
    assert fitted.intercept == pytest.approx(oracle.intercept_[0], abs=1e-4)


@pytest.mark.parametrize("kind", [Platt, Isotonic])
def test_calibration_mends_the_ratio_and_the_log_loss(bent, kind):
    label_N, p_click_N = bent
    half = slice(0, 10_000), slice(10_000, None)
    calibrated_N = kind.fit(label_N[half[0]], p_click_N[half[0]]).calibrate(p_click_N[half[1]])
    label_N, p_click_N = label_N[half[1]], p_click_N[half[1]]
    assert abs(calibration_ratio(label_N, p_click_N) - 1) > 0.1
    assert calibration_ratio(label_N, calibrated_N) == pytest.approx(1, abs=0.07)
    assert expected_calibration_error(label_N, calibrated_N) < 0.02
    assert log_loss_nats(label_N, calibrated_N) < log_loss_nats(label_N, p_click_N)


def test_on_the_fitted_rows_both_are_calibrated_exactly(bent):
    label_N, p_click_N = bent
    for kind in (Platt, Isotonic):
        calibrated_N = kind.fit(label_N, p_click_N).calibrate(p_click_N)
        assert calibration_ratio(label_N, calibrated_N) == pytest.approx(1, abs=1e-9)


def test_a_temperature_cools_what_was_heated_and_agrees_with_a_search(bent):
    label_N, _ = bent
    rng = np.random.default_rng(0)
    hot_N = special.expit(1.7 * rng.normal(-2, 1, size=20_000))
    fitted = Temperature.fit(label_N, hot_N)
    assert fitted.temperature == pytest.approx(1.7, abs=0.05)
    found = optimize.minimize_scalar(
        lambda t: log_loss_nats(label_N, special.expit(special.logit(hot_N) / t)),
        bounds=(0.5, 4),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fitted.temperature == pytest.approx(found.x, abs=1e-4)
    assert auc(label_N, fitted.calibrate(hot_N)) == auc(label_N, hot_N)
    assert Temperature(temperature=2.0).calibrate([0.9]) == pytest.approx(0.75)


def test_platt_keeps_the_auc_and_isotonic_the_weak_order(bent):
    label_N, p_click_N = bent
    assert auc(label_N, Platt.fit(label_N, p_click_N).calibrate(p_click_N)) == auc(*bent)
    ascending_N = np.sort(p_click_N)
    assert (np.diff(Isotonic.fit(label_N, p_click_N).calibrate(ascending_N)) >= 0).all()


def test_a_calibrated_model_is_left_about_alone():
    rng = np.random.default_rng(1)
    p_click_N = rng.beta(1, 9, 50_000)
    label_N = (rng.random(50_000) < p_click_N).astype(float)
    fitted = Platt.fit(label_N, p_click_N)
    assert fitted.slope == pytest.approx(1, abs=0.05)
    assert fitted.intercept == pytest.approx(0, abs=0.12)


def test_isotonic_equals_sklearn_everywhere(bent):
    label_N, p_click_N = bent
    oracle = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p_click_N, label_N)
    new_N = np.linspace(0, 1, 1_001)
    np.testing.assert_allclose(
        Isotonic.fit(label_N, p_click_N).calibrate(new_N), oracle.predict(new_N), atol=1e-12
    )


@pytest.mark.parametrize("kind", [Platt, Isotonic, Temperature])
def test_calibrators_survive_json(bent, kind):
    fitted = kind.fit(*bent)
    again = calibrator_from_dict(json.loads(json.dumps(fitted.to_dict())))
    p_click_N = np.array([0.0, 1e-9, 0.2, 0.999, 1.0])
    np.testing.assert_array_equal(again.calibrate(p_click_N), fitted.calibrate(p_click_N))


def test_what_cannot_be_calibrated_is_refused(bent):
    label_N, p_click_N = bent
    with pytest.raises(ValueError, match="order the clicks backwards"):
        Platt.fit(label_N, 1 - p_click_N)
    with pytest.raises(ValueError, match=r"temperature is -1\.0; it must be positive"):
        Temperature.fit(label_N, 1 - p_click_N)
    with pytest.raises(ValueError, match="Did the model learn nothing"):
        Temperature.fit(label_N, np.full_like(p_click_N, 0.1))
    with pytest.raises(ValueError, match="Did the model learn nothing"):
        Platt.fit(label_N, np.full_like(p_click_N, 0.1))
    with pytest.raises(ValueError, match="separate clicks from non-clicks perfectly"):
        Platt.fit([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4])
    with pytest.raises(ValueError, match="were logits passed"):
        Isotonic.fit(label_N, special.logit(p_click_N))
    with pytest.raises(ValueError, match="all 3 labels are 0"):
        Isotonic.fit([0, 0, 0], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="kind 'beta'; 'platt', 'isotonic' and 'temp"):
        calibrator_from_dict({"kind": "beta"})
    with pytest.raises(ValueError, match="a calibrator without 'slope'"):
        calibrator_from_dict({"kind": "platt"})
    with pytest.raises(ValueError, match="values fall somewhere"):
        calibrator_from_dict({"kind": "isotonic", "predicted": [0, 1], "calibrated": [1, 0]})


def test_reliability_by_hand_with_wilsons_interval():
    # One bin of 10 with 2 clicks: Wilson's 95% interval is 5.67% to 50.98% (Newcombe 1998).
    label_N = [1, 1] + [0] * 8
    curve = reliability_curve(label_N, [0.3] * 10)
    assert curve.impressions_B.tolist() == [10]
    assert curve.predicted_B[0] == pytest.approx(0.3)
    assert curve.observed_B[0] == 0.2
    assert curve.low_B[0] == pytest.approx(0.0567, abs=1e-4)
    assert curve.high_B[0] == pytest.approx(0.5098, abs=1e-4)


def test_the_curve_of_a_calibrated_model_lies_on_the_diagonal():
    rng = np.random.default_rng(2)
    p_click_N = rng.beta(1, 4, 20_000)
    curve = reliability_curve(rng.random(20_000) < p_click_N, p_click_N, bins=20, confidence=0.999)
    assert len(curve.predicted_B) == 20
    assert (np.diff(curve.predicted_B) > 0).all()
    assert ((curve.low_B < curve.predicted_B) & (curve.predicted_B < curve.high_B)).all()
    assert (curve.low_B <= curve.observed_B).all()
    assert (curve.observed_B <= curve.high_B).all()
    with pytest.raises(ValueError, match="bins is 0"):
        reliability_curve([0, 1], [0.1, 0.2], bins=0)
