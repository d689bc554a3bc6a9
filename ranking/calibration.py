"""Make predicted probabilities match observed click rates, and show how well they do.

A calibrator is fitted on validation rows only: on training rows it would learn the model's
overconfidence there, and test rows are read once. Fitted calibrators are plain numbers
(``to_dict``), so that an exported model can carry them without this code.

Shape letters: N impressions, K knots of the isotonic function, B bins of the reliability curve,
W weights of a fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ranking.metrics import (
    SMALLEST_PROBABILITY,
    check_probabilities,
    count_classes,
    equal_mass_bins,
)

NEWTON_STEPS = 100


class Calibrator(Protocol):
    """A rising function from predicted to calibrated click probability."""

    def calibrate(self, p_click_N: ArrayLike) -> NDArray[np.float64]:
        """Return calibrated probabilities, shape (N,)."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the fitted numbers as JSON can hold them; ``calibrator_from_dict`` reads them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Platt:
    """p' = sigmoid(slope · logit(p) + intercept): two numbers, safe on few clicks.

    It keeps the order of the predictions strictly, and hence the AUC.

    Source:
        Platt 1999, "Probabilistic Outputs for Support Vector Machines", on the logit of p.
    """

    slope: float
    """Below 1 where the model was overconfident; positive."""
    intercept: float
    """Shifts the base rate, as after negative down-sampling."""

    def __post_init__(self) -> None:
        if not (self.slope > 0 and np.isfinite([self.slope, self.intercept]).all()):
            raise ValueError(
                f"slope {self.slope} and intercept {self.intercept}: the slope must be positive "
                "and both finite. Do the validation scores order the clicks backwards?"
            )

    @classmethod
    def fit(cls, label_N: ArrayLike, p_click_N: ArrayLike) -> Platt:
        """Fit slope and intercept by maximum likelihood on validation rows.

        Args:
            label_N: 1 where clicked, else 0, shape (N,).
            p_click_N: Predicted click probability, shape (N,), within [0, 1].

        Raises:
            ValueError: If labels or predictions are invalid, all labels are the same, the
                predictions are all the same, separate the classes perfectly, or run backwards.
        """
        label_N, p_click_N = _checked(label_N, p_click_N)
        logit_N = _logit(p_click_N)
        x_N2 = np.stack([logit_N, np.ones_like(logit_N)], axis=1)
        slope, intercept = _logistic_fit(x_N2, label_N)
        return cls(slope=slope, intercept=intercept)

    def calibrate(self, p_click_N: ArrayLike) -> NDArray[np.float64]:
        """Return sigmoid(slope · logit(p) + intercept), shape (N,)."""
        p_click_N = np.asarray(p_click_N, np.float64)
        return _sigmoid(self.slope * _logit(p_click_N) + self.intercept)

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"kind": "platt", "slope": ..., "intercept": ...}``."""
        return {"kind": "platt", "slope": self.slope, "intercept": self.intercept}


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """p' = sigmoid(logit(p) / temperature): one number that cools or heats, and no shift.

    It mends overconfidence where the base rate is right, and needs fewer clicks than any other.

    Source:
        Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 4.2.
    """

    temperature: float
    """Above 1 where the model was overconfident; positive."""

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and np.isfinite(self.temperature)):
            raise ValueError(
                f"temperature is {self.temperature}; it must be positive and finite. Do the "
                "validation scores order the clicks backwards?"
            )

    @classmethod
    def fit(cls, label_N: ArrayLike, p_click_N: ArrayLike) -> Temperature:
        """Fit the temperature by maximum likelihood on validation rows.

        Args:
            label_N: 1 where clicked, else 0, shape (N,).
            p_click_N: Predicted click probability, shape (N,), within [0, 1].

        Raises:
            ValueError: As ``Platt.fit``.
        """
        label_N, p_click_N = _checked(label_N, p_click_N)
        logit_N = _logit(p_click_N)
        # Newton's method in the inverse, in which the loss is convex.
        (inverse,) = _logistic_fit(logit_N[:, None], label_N)
        return cls(temperature=1 / inverse if inverse > 0 else -1.0)

    def calibrate(self, p_click_N: ArrayLike) -> NDArray[np.float64]:
        """Return sigmoid(logit(p) / temperature), shape (N,)."""
        return _sigmoid(_logit(np.asarray(p_click_N, np.float64)) / self.temperature)

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"kind": "temperature", "temperature": ...}``."""
        return {"kind": "temperature", "temperature": self.temperature}


@dataclass(frozen=True, kw_only=True)
class Isotonic:
    """The best rising function, linear between knots: any shape, but it needs thousands of clicks.

    Flat pieces turn different predictions into ties, so the AUC can move a little.

    Source:
        Zadrozny and Elkan 2002, "Transforming Classifier Scores into Accurate Multiclass
        Probability Estimates".
    """

    predicted_K: NDArray[np.float64]
    """Knots, strictly ascending."""
    calibrated_K: NDArray[np.float64]
    """Probability at each knot, never falling."""

    def __post_init__(self) -> None:
        same_shape = self.predicted_K.shape == self.calibrated_K.shape
        if not (same_shape and len(self.predicted_K) and (np.diff(self.predicted_K) > 0).all()):
            raise ValueError(
                f"knots of shape {self.predicted_K.shape} and values of shape "
                f"{self.calibrated_K.shape}: both must be equally many and the knots ascending"
            )
        if (np.diff(self.calibrated_K) < 0).any():
            raise ValueError("calibrated values fall somewhere; an isotonic function never falls")

    @classmethod
    def fit(cls, label_N: ArrayLike, p_click_N: ArrayLike) -> Isotonic:
        """Fit by pooling adjacent violators on validation rows.

        Args:
            label_N: 1 where clicked, else 0, shape (N,).
            p_click_N: Predicted click probability, shape (N,), within [0, 1].

        Raises:
            ValueError: If labels or predictions are invalid, or all labels are the same.
        """
        # Only fitting needs scikit-learn; a served bundle calibrates without it.
        from sklearn.isotonic import IsotonicRegression

        label_N, p_click_N = check_probabilities(label_N, p_click_N)
        count_classes(label_N)
        fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(p_click_N, label_N)
        return cls(
            predicted_K=np.asarray(fitted.X_thresholds_, np.float64),
            calibrated_K=np.asarray(fitted.y_thresholds_, np.float64),
        )

    def calibrate(self, p_click_N: ArrayLike) -> NDArray[np.float64]:
        """Interpolate between knots; beyond the outermost ones the function is flat, shape (N,)."""
        p_click_N = np.asarray(p_click_N, np.float64)
        return np.interp(p_click_N, self.predicted_K, self.calibrated_K)

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"kind": "isotonic", "predicted": [...], "calibrated": [...]}``."""
        return {
            "kind": "isotonic",
            "predicted": self.predicted_K.tolist(),
            "calibrated": self.calibrated_K.tolist(),
        }


def calibrator_from_dict(data: Mapping[str, Any]) -> Platt | Isotonic | Temperature:
    """Read what a calibrator's ``to_dict`` wrote.

    Raises:
        ValueError: If ``kind`` is not "platt", "isotonic" or "temperature", a number is missing,
            or the numbers are not those of a rising function.
    """
    try:
        if data["kind"] == "temperature":
            return Temperature(temperature=float(data["temperature"]))
        if data["kind"] == "platt":
            return Platt(slope=float(data["slope"]), intercept=float(data["intercept"]))
        if data["kind"] == "isotonic":
            return Isotonic(
                predicted_K=np.array(data["predicted"], np.float64),
                calibrated_K=np.array(data["calibrated"], np.float64),
            )
    except KeyError as missing:
        raise ValueError(f"a calibrator without {missing}: it holds {sorted(data)}") from missing
    raise ValueError(
        f"calibrator kind {data['kind']!r}; 'platt', 'isotonic' and 'temperature' are known"
    )


@dataclass(frozen=True, kw_only=True)
class ReliabilityCurve:
    """Observed against predicted click rate over equally filled bins, for a figure.

    A calibrated model's points lie on the diagonal, within their intervals.
    """

    predicted_B: NDArray[np.float64]
    """Mean prediction of each bin, ascending."""
    observed_B: NDArray[np.float64]
    """Share of each bin's impressions that were clicked."""
    low_B: NDArray[np.float64]
    """Lower end of the Wilson interval of ``observed_B``."""
    high_B: NDArray[np.float64]
    """Upper end of the Wilson interval of ``observed_B``."""
    impressions_B: NDArray[np.int64]
    """Impressions in each bin, at least 1."""


def reliability_curve(
    label_N: ArrayLike, p_click_N: ArrayLike, *, bins: int = 20, confidence: float = 0.95
) -> ReliabilityCurve:
    """Compare predicted with observed click rates, bin by bin.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        p_click_N: Predicted click probability, shape (N,), within [0, 1].
        bins: Number of bins of equal mass; ties share a bin, so fewer may come out.
        confidence: Of the Wilson intervals, between 0 and 1. They take impressions for
            independent, so they are somewhat narrow where users have many.

    Returns:
        One point a bin that is not empty.

    Raises:
        ValueError: If labels or predictions are invalid, ``bins`` is below 1, or ``confidence``
            is not between 0 and 1.

    Source:
        Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".
    """
    label_N, p_click_N = check_probabilities(label_N, p_click_N)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95")
    bin_N = equal_mass_bins(p_click_N, bins)
    impressions_B = np.bincount(bin_N)
    kept_B = impressions_B > 0
    impressions_B = impressions_B[kept_B]
    predicted_B = np.bincount(bin_N, p_click_N)[kept_B] / impressions_B
    observed_B = np.bincount(bin_N, label_N)[kept_B] / impressions_B
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    shrink_B = 1 + z**2 / impressions_B
    centre_B = (observed_B + z**2 / (2 * impressions_B)) / shrink_B
    spread_B = observed_B * (1 - observed_B) / impressions_B + z**2 / (4 * impressions_B**2)
    half_B = z * np.sqrt(spread_B) / shrink_B
    return ReliabilityCurve(
        predicted_B=predicted_B,
        observed_B=observed_B,
        low_B=np.maximum(centre_B - half_B, 0.0),
        high_B=np.minimum(centre_B + half_B, 1.0),
        impressions_B=impressions_B,
    )


def _logit(p_click_N: NDArray[np.float64]) -> NDArray[np.float64]:
    p_click_N = np.clip(p_click_N, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return np.log(p_click_N) - np.log1p(-p_click_N)


def _sigmoid(logit_N: NDArray[np.float64]) -> NDArray[np.float64]:
    # In this form no logit, however large, overflows.
    return np.exp(-np.logaddexp(0.0, -logit_N))


def _checked(
    label_N: ArrayLike, p_click_N: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels and predictions that a slope can be fitted to."""
    label_N, p_click_N = check_probabilities(label_N, p_click_N)
    count_classes(label_N)
    if np.ptp(_logit(p_click_N)) == 0:
        raise ValueError(
            f"all {len(p_click_N)} predictions are {p_click_N[0]:.6g}: a slope cannot be fitted. "
            "Did the model learn nothing?"
        )
    click_N = label_N == 1
    if p_click_N[click_N].min() >= p_click_N[~click_N].max():
        raise ValueError(
            "the predictions separate clicks from non-clicks perfectly, so the slope has no "
            "bound. Are there too few validation rows, or does a feature leak the label?"
        )
    return label_N, p_click_N


def _logistic_fit(x_NW: NDArray[np.float64], label_N: NDArray[np.float64]) -> tuple[float, ...]:
    """Newton's method from the first column as it is, halving steps that do not help."""
    weight_W = np.zeros(x_NW.shape[1])
    weight_W[0] = 1.0
    loss = _logistic_loss(x_NW @ weight_W, label_N)
    for _ in range(NEWTON_STEPS):
        p_N = _sigmoid(x_NW @ weight_W)
        gradient_W = x_NW.T @ (p_N - label_N)
        hessian_WW = (x_NW * (p_N * (1 - p_N))[:, None]).T @ x_NW
        step_W = np.linalg.solve(hessian_WW, gradient_W)
        scale = 1.0
        while scale > 1e-6:
            trial_W = weight_W - scale * step_W
            trial_loss = _logistic_loss(x_NW @ trial_W, label_N)
            if trial_loss <= loss:
                break
            scale /= 2
        else:
            break
        weight_W, change, loss = trial_W, np.abs(scale * step_W).max(), trial_loss
        if change < 1e-12 * max(1.0, np.abs(weight_W).max()):
            break
    return tuple(float(weight) for weight in weight_W)


def _logistic_loss(logit_N: NDArray[np.float64], label_N: NDArray[np.float64]) -> float:
    return float((np.logaddexp(0.0, logit_N) - label_N * logit_N).sum())
