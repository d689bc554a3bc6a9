"""Numeric features: brought to one scale on training rows, with missing values marked.

NaN and infinities are refused, never repaired: null is how a table says "missing".
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.feature_spec import SCALINGS

MAX_DEVIATIONS = 10.0
"""Values further from the mean count as this far, so one absurd price cannot drown a batch."""

QUANTILES = 256
"""Steps of the quantile scale."""

LARGEST = 1e100
"""What lies beyond is taken for a mistake."""

SKEW_FOR_LOG = 1.0
"""Moment skewness beyond which a column is taken on the log scale; an exponential has 2."""


class DenseTransform:
    """One numeric column made fit for a network.

    Columns of one sign's long tail (skewness above 1 on the training rows, as prices and counts
    have) go through ``sign(x) log(1 + |x|)``; then the training mean is subtracted and the
    training standard deviation divided out. Null becomes 0, the mean, and where training rows had
    nulls a second column says so.

    Args:
        name: Of the column, for messages and ``output_names``.
        scaling: ``log`` and ``standard`` do or leave the logarithm whatever the skewness;
            ``quantile`` takes the share of training values below instead, which no outlier moves.
    """

    def __init__(self, name: str, *, scaling: str | None = None) -> None:
        if scaling is not None and scaling not in SCALINGS:
            raise ValueError(
                f"scaling of {name!r} is {scaling!r}; must be one of {', '.join(SCALINGS)}"
            )
        self.name = name
        self.scaling = scaling
        self.quantiles_: list[float] = []
        self.log_ = False
        self.mean_ = 0.0
        self.scale_ = 1.0
        self.has_missing_ = False

    def fit(self, values: pl.Series | NDArray[np.float64]) -> Self:
        """Learn scale and location from the training rows, shape (N,), as ``finite_numbers``.

        Raises:
            ValueError: If the type is not a number, or a value is NaN, infinite or too large.
        """
        value_N, missing_N = finite_numbers(values, self.name)
        present = value_N[~missing_N]
        self.has_missing_ = len(present) < len(values)
        if self.scaling == "quantile" and len(present):
            edges = np.quantile(present, np.linspace(0, 1, QUANTILES + 1))
            self.quantiles_ = edges.tolist()
        elif self.scaling is None:
            self.log_ = _skewness(present) > SKEW_FOR_LOG
        else:
            self.log_ = self.scaling == "log"
        scaled = self._unscaled(present)
        if len(scaled):
            self.mean_ = float(scaled.mean())
            # A column that never changes says nothing: it becomes 0, whatever its value.
            spread = float(scaled.std())
            self.scale_ = spread if spread > 1e-12 * max(1.0, abs(self.mean_)) else 1.0
        return self

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the columns that ``transform`` returns."""
        return (self.name, f"{self.name}.missing") if self.has_missing_ else (self.name,)

    def transform(self, values: pl.Series | NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the standardised column and, if there is one, the missing mask, shape (N, 1 or 2).

        Args:
            values: As ``finite_numbers``.

        Raises:
            ValueError: If the type is not a number, or a value is NaN or infinite.
        """
        value_N, missing_N = finite_numbers(values, self.name)
        value_N = self._unscaled(np.where(missing_N, 0.0, value_N))
        value_N = np.clip((value_N - self.mean_) / self.scale_, -MAX_DEVIATIONS, MAX_DEVIATIONS)
        value_N = np.where(missing_N, 0.0, value_N)
        columns = [value_N, missing_N] if self.has_missing_ else [value_N]
        return np.stack(columns, axis=1).astype(np.float32)

    def _unscaled(self, value_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values as mean and scale are counted in."""
        if self.quantiles_:
            return _shares_below(value_N, np.array(self.quantiles_))
        return _signed_log(value_N) if self.log_ else value_N

    def to_dict(self) -> dict[str, Any]:
        """Return the fitted transform as JSON-ready data."""
        scaling: dict[str, Any] = {"scaling": self.scaling} if self.scaling is not None else {}
        if self.quantiles_:
            scaling["quantiles"] = self.quantiles_
        return scaling | {
            "name": self.name,
            "log": self.log_,
            "mean": self.mean_,
            "scale": self.scale_,
            "has_missing": self.has_missing_,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the transform that ``to_dict`` described."""
        transform = cls(data["name"], scaling=data.get("scaling"))
        transform.quantiles_ = [float(edge) for edge in data.get("quantiles", [])]
        transform.log_ = bool(data["log"])
        transform.mean_ = float(data["mean"])
        transform.scale_ = float(data["scale"])
        transform.has_missing_ = bool(data["has_missing"])
        return transform


def finite_numbers(
    values: pl.Series | NDArray[np.float64], name: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return a numeric column, undefined where a value is missing, and where that is, each (N,).

    By numpy: a request has few rows and many columns, and each question to polars takes as long as
    a thousand rows of them.

    Args:
        values: A column, null where a value is missing; or an array, NaN where one is.
        name: For messages.

    Raises:
        ValueError: If the type is not a number, or a value of a column is NaN, or one is infinite
            or beyond 1e100.
    """
    if not isinstance(values, pl.Series):
        return _refuse_beyond(values, np.isnan(values), name)
    if not (values.dtype.is_numeric() or values.dtype in (pl.Boolean, pl.Null)):
        raise ValueError(
            f"dense feature {name!r} has type {values.dtype}; it must be a number "
            "(list it under sparse if it is a category)"
        )
    numbers = values.cast(pl.Float64)
    missing_N = np.zeros(len(numbers), bool)
    if numbers.null_count():
        missing_N = numbers.is_null().to_numpy()
    return _refuse_beyond(numbers.to_numpy(), missing_N, name)


def _refuse_beyond(
    value_N: NDArray[np.float64], missing_N: NDArray[np.bool_], name: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    # Not "beyond", for NaN is neither.
    wrong_N = ~((np.abs(value_N) <= LARGEST) | missing_N)
    if wrong_N.any():
        row = int(np.argmax(wrong_N))
        raise ValueError(
            f"dense feature {name!r} is {value_N[row]} in row {row} ({int(wrong_N.sum())} such "
            "rows in all); a missing value must be null, and a number finite (a division by zero?)"
        )
    return value_N, missing_N


def _shares_below(value_N: NDArray[np.float64], edges: NDArray) -> NDArray[np.float64]:
    """Where each value lies among the quantiles, 0 to 1.

    A value that many rows share spans several quantiles; it gets the middle of them. So
    interpolates scikit-learn's ``QuantileTransformer``.
    """
    level = np.linspace(0, 1, len(edges))
    up_N = np.interp(value_N, edges, level)
    return 0.5 * (up_N - np.interp(-value_N, -edges[::-1], -level[::-1]))


def _signed_log(value_N: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(value_N) * np.log1p(np.abs(value_N))


def _skewness(value_N: NDArray[np.float64]) -> float:
    """Third standardised moment; 0 for a symmetric or constant column."""
    if len(value_N) == 0 or value_N.max() == value_N.min():
        return 0.0
    # Scaled first: cubes of large numbers overflow.
    centred_N = (value_N - value_N.mean()) / np.abs(value_N).max()
    square_N = centred_N**2
    spread = float(np.sqrt(np.mean(square_N)))
    # By multiplication: numpy takes third powers by logarithm, ten times as long.
    return float(np.mean(square_N * centred_N)) / spread**3 if spread > 0 else 0.0
