"""Whether what a server fed its model is what the same requests give offline.

Every request of a served log is computed again, and each feature and score compared: a changed
vocabulary, a shifted clock or two swapped columns show under their own names.

Shape letters: K candidates of a request, L history length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranking.score import Scorer
from ranking.served_log import HISTORY, ServedLine, features_of, read_served

FEATURE_TOLERANCE = 1e-6
"""Dense values and cosines further apart than this differ; ids and histories must be equal."""

SCORE_TOLERANCE = 1e-6
SCORE = "p_click"


@dataclass(frozen=True, kw_only=True)
class SkewExample:
    """The first difference of a feature."""

    line: int
    """Of the log, from 1."""
    product_id: str | None
    """None where the feature is the whole request's."""
    served: Any
    offline: Any
    """None where one of the two computations lacks the feature."""


@dataclass(kw_only=True)
class FeatureSkew:
    """How one feature, or the score, differs."""

    name: str
    values: int = 0
    """Compared: one a candidate, of the history one a request."""
    differing: int = 0
    largest_difference: float | None = None
    """Of numbers; None where they all agree or the values are no quantities."""
    example: SkewExample | None = None

    @property
    def share(self) -> float:
        """Of the values that differ."""
        return self.differing / self.values if self.values else 0.0


@dataclass(kw_only=True)
class SkewReport:
    """What a replay found."""

    requests: int = 0
    candidates: int = 0
    other_bundle: int = 0
    """Requests that another bundle than this one answered; they are compared all the same."""
    refused: dict[str, int] = field(default_factory=dict)
    """Why requests that were served cannot be scored offline, and how many."""
    features: dict[str, FeatureSkew] = field(default_factory=dict)
    """By name, ``p_click`` the last."""

    @property
    def skewed(self) -> list[FeatureSkew]:
        """What differs, most often first."""
        differing = [skew for skew in self.features.values() if skew.differing]
        return sorted(differing, key=lambda skew: -skew.share)

    @property
    def clean(self) -> bool:
        """Whether nothing differs."""
        return not self.skewed and not self.refused

    def to_metrics(self) -> dict[str, float]:
        """Return flat figures, for ``--json``."""
        metrics = {
            "requests": float(self.requests),
            "candidates": float(self.candidates),
            "other_bundle": float(self.other_bundle),
            "refused": float(sum(self.refused.values())),
            "skewed_features": float(len(self.skewed)),
        }
        for name, skew in self.features.items():
            metrics[f"{name}.differing"] = float(skew.differing)
            metrics[f"{name}.share"] = skew.share
            if skew.largest_difference is not None:
                metrics[f"{name}.largest_difference"] = skew.largest_difference
        return metrics


def find_skew(
    scorer: Scorer, log: str | Path, *, progress: Callable[[int], None] | None = None
) -> SkewReport:
    """Compute every request of a log again and compare.

    Args:
        scorer: The bundle that stands for "offline".
        log: What ``adtower serve --log`` wrote; see ``ranking.served_log`` for the format.
        progress: Called with the number of requests compared so far.

    Raises:
        ValueError: If the log is missing, empty, or holds a line that is none.
    """
    report = SkewReport()
    for number, line in read_served(log):
        _compare_(report, scorer, number, line)
        if progress is not None:
            progress(report.requests)
    if report.requests == 0:
        raise ValueError(f"{log} holds no request")
    if SCORE in report.features:
        report.features[SCORE] = report.features.pop(SCORE)
    return report


def _compare_(report: SkewReport, scorer: Scorer, number: int, line: ServedLine) -> None:
    report.requests += 1
    report.candidates += len(line.request.candidates)
    report.other_bundle += line.bundle != scorer.bundle.fingerprint
    try:
        prepared = scorer.prepare(line.request)
        p_click_K = scorer.score_prepared(prepared).p_click_K
    except ValueError as error:
        report.refused[str(error)] = report.refused.get(str(error), 0) + 1
        return
    served = {**line.features, SCORE: line.p_click}
    offline: dict[str, NDArray] = {**features_of(prepared, scorer), SCORE: p_click_K}
    for name in dict.fromkeys([*served, *offline]):
        skew = report.features.setdefault(name, FeatureSkew(name=name))
        ids = [candidate.product_id for candidate in line.request.candidates]
        if name not in served or name not in offline:
            value = served[name] if name in served else offline[name].tolist()
            pair = (value, None) if name in served else (None, value)
            skew.values += len(ids)
            _differs_(skew, len(ids), SkewExample(
                line=number, product_id=None, served=pair[0], offline=pair[1]
            ))  # fmt: skip
        elif name == HISTORY:
            skew.values += 1
            pair = served[name], offline[name].tolist()
            if pair[0] != pair[1]:
                _differs_(skew, 1, SkewExample(
                    line=number, product_id=None, served=pair[0], offline=pair[1]
                ))  # fmt: skip
        else:
            _compare_column_(skew, number, ids, served[name], offline[name])


def _compare_column_(
    skew: FeatureSkew, number: int, ids: list[str], served: Any, offline_K: NDArray
) -> None:
    """Compare one value a candidate; ``served`` may be the one value that all share."""
    count = len(ids)
    skew.values += count
    values = served if isinstance(served, list) else [served] * count
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if len(values) != count or not numbers:
        _differs_(skew, count, SkewExample(
            line=number, product_id=None, served=served, offline=offline_K.tolist()
        ))  # fmt: skip
        return
    served_K = np.array(values, np.float64)
    distance_K = np.abs(served_K - offline_K.astype(np.float64))
    whole = np.issubdtype(offline_K.dtype, np.integer)
    tolerance = SCORE_TOLERANCE if skew.name == SCORE else 0.0 if whole else FEATURE_TOLERANCE
    differs_K = distance_K > tolerance
    if not differs_K.any():
        return
    place = int(np.argmax(differs_K))
    _differs_(skew, int(differs_K.sum()), SkewExample(
        line=number, product_id=ids[place], served=values[place], offline=offline_K[place].item()
    ))  # fmt: skip
    if not whole:
        skew.largest_difference = max(skew.largest_difference or 0.0, float(distance_K.max()))


def _differs_(skew: FeatureSkew, count: int, example: SkewExample) -> None:
    skew.differing += count
    skew.example = skew.example or example
