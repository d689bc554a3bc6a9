"""Calibration traffic: each arm's gate, fitted to it, and the panel of distortions, judged on it.

The traffic is requests whose candidates chance has ranked, as a share of production traffic often
is: no arm chose what was shown, so neither profits.

Shape letters: R requests, K candidates, S slots, N shown impressions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.ab_counts import (
    Counts,
    Draws,
    Outcome,
    defined_metrics,
    drawn_clicks,
    expected_counts,
    true_lift,
)
from experiments.distortions import DISTORTIONS, DistortionRow
from experiments.recalibration import Recalibration
from experiments.scored_requests import Marketplace, Scorer, score_candidates

SEED = 2_000_003
"""Added to the experiment's seed: requests that it does not see again."""
STREAM = 72
"""Sets these draws apart from every other use of the run's seed."""


@dataclass(frozen=True, kw_only=True)
class CalibrationTraffic:
    """Requests ranked by chance, their clicks, and what each arm's model says of them."""

    drawn: Any
    shown_RS: NDArray[np.integer]
    clicked_N: NDArray[np.bool_]
    """Of the filled slots, row by row."""
    score_RK: Mapping[str, NDArray[np.float64]]
    """By arm."""

    @classmethod
    def draw(
        cls, world: Marketplace, arms: Mapping[str, Scorer], requests: int, seed: int
    ) -> CalibrationTraffic:
        """Serve ``requests`` requests in random order and let every arm's model score them."""
        drawn = world.draw_requests(requests, seed + SEED)
        rng = np.random.default_rng([seed, STREAM])
        present_RK = np.asarray(drawn.candidate_RK) >= 0
        outcome = world.run(drawn, np.where(present_RK, rng.random(present_RK.shape), 0.0))
        shown_RS = np.asarray(outcome.shown_RS)
        clicked_RS = drawn_clicks(outcome, Draws.draw(shown_RS.shape, rng))
        table = world.candidate_table(drawn)
        return cls(
            drawn=drawn,
            shown_RS=shown_RS,
            clicked_N=clicked_RS[shown_RS >= 0],
            score_RK={
                arm: score_candidates(arm, model, table, drawn.candidate_RK)
                for arm, model in arms.items()
            },
        )

    def fit(self, score_RK: NDArray[np.float64]) -> Recalibration:
        """Fit the gate of one model's scores of this traffic.

        Raises:
            ValueError: If there are too few clicks.
        """
        score_RS = np.take_along_axis(score_RK, np.maximum(self.shown_RS, 0), axis=1)
        return Recalibration.fit(self.clicked_N, score_RS[self.shown_RS >= 0])

    def distort(self, world: Marketplace) -> tuple[DistortionRow, ...]:
        """Bend each arm's scores and compare with the arm itself, with the gate and without.

        A gate is fitted anew to every bent model, as it would be to a model that came that way.
        """
        rows = []
        for arm, score_RK in self.score_RK.items():
            gate = self.fit(score_RK)
            plain, gated = self._expect(world, score_RK), self._expect(world, score_RK, gate)
            for name, bend in DISTORTIONS.items():
                bent_RK = bend(score_RK)
                bent_gate = self.fit(bent_RK)
                rows.append(
                    DistortionRow(
                        arm=arm,
                        distortion=name,
                        raw=_true_lifts(plain, self._expect(world, bent_RK)),
                        gated=_true_lifts(gated, self._expect(world, bent_RK, bent_gate)),
                    )
                )
        return tuple(rows)

    def _expect(
        self, world: Marketplace, score_RK: NDArray[np.float64], gate: Recalibration | None = None
    ) -> Counts:
        score_RK = behind_gate(gate, score_RK, self.drawn.candidate_RK)
        outcome: Outcome = world.run(self.drawn, score_RK)
        return expected_counts(outcome, score_RK)


def behind_gate(
    gate: Recalibration | None, score_RK: NDArray[np.float64], candidate_RK: NDArray
) -> NDArray[np.float64]:
    """Return what a gate lets through, 0 where there is no candidate; without one, the scores."""
    if gate is None:
        return score_RK
    return np.where(np.asarray(candidate_RK) >= 0, gate.probability(score_RK), 0.0)


def _true_lifts(control: Counts, treatment: Counts) -> dict[str, float]:
    names = defined_metrics(control, treatment)
    return {name: true_lift(name, control, treatment) for name in names}
