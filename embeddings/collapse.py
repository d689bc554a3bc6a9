"""Signs that contrastive training has died, measured on the embeddings of a batch.

Shape letters: B rows of a batch, D embedding size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

CHECK_EVERY = 20
"""Steps from one check to the next."""
PATIENCE = 3
"""Checks in a row that must fail before the run is stopped."""
MIN_GROUPS = 8
"""Batches of fewer product groups say too little."""


@torch.no_grad()
def effective_rank(vector_BD: Tensor) -> float:
    """How many directions the vectors use: 1.0 if all are equal, at most min(B, D).

    Source:
        Roy and Vetterli 2007: the exponential of the entropy of the singular values.
    """
    value_X = torch.linalg.svdvals(F.normalize(vector_BD.float(), dim=1))
    share_X = value_X / value_X.sum().clamp_min(1e-12)
    return float(torch.exp(-(share_X * share_X.clamp_min(1e-12).log()).sum()))


@torch.no_grad()
def uniformity(vector_BD: Tensor) -> float:
    """How evenly the vectors fill the sphere: 0 if all are equal, about -4 at best.

    Source:
        Wang and Isola 2020, arXiv:2005.10242: log of the mean of exp(-2 |x - y|^2), x not y.
    """
    unit_BD = F.normalize(vector_BD.float(), dim=1)
    squared_BB = (2 - 2 * unit_BD @ unit_BD.T).clamp_min(0)
    other_BB = ~torch.eye(len(unit_BD), dtype=torch.bool, device=unit_BD.device)
    return float((-2 * squared_BB[other_BB]).exp().mean().log())


@torch.no_grad()
def modality_gap(image_BD: Tensor, text_BD: Tensor) -> float:
    """Distance between the mean unit image vector and the mean unit text vector, 0 to 2.

    Source:
        Liang et al. 2022, arXiv:2203.02053.
    """
    mean_image_D = F.normalize(image_BD.float(), dim=1).mean(0)
    mean_text_D = F.normalize(text_BD.float(), dim=1).mean(0)
    return float((mean_image_D - mean_text_D).norm())


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a living run stays within; measured runs keep far away from all of them."""

    min_effective_rank: float = 1.5
    max_uniformity: float = -0.05
    max_modality_gap: float = 1.8
    max_drift: float = 0.7
    """Of the queue's keys; see ``KeyQueue.drift``."""


@dataclass
class Alarm:
    """Watches a run and raises when it has been dead for ``PATIENCE`` checks."""

    limits: Limits = field(default_factory=Limits)
    failed: int = 0
    """Checks in a row that failed; part of what a resumed run needs."""

    def check(
        self,
        image_BD: Tensor,
        text_BD: Tensor,
        group_B: Tensor,
        *,
        drift: float = math.nan,
        armed: bool = True,
        where: str,
    ) -> dict[str, float]:
        """Measure a batch.

        Args:
            image_BD: Image embeddings, shape (B, D).
            text_BD: Text embeddings, shape (B, D).
            group_B: Product groups, shape (B,).
            drift: Of the queue, if there is one.
            armed: False only measures: early steps look like a collapse.
            where: Names the step in the error.

        Returns:
            The measures by name.

        Raises:
            ValueError: If this was the last of ``PATIENCE`` failed checks in a row.
        """
        measures = {
            "effective_rank_image": effective_rank(image_BD),
            "effective_rank_text": effective_rank(text_BD),
            "uniformity_image": uniformity(image_BD),
            "uniformity_text": uniformity(text_BD),
            "modality_gap": modality_gap(image_BD, text_BD),
        }
        measures["queue_drift"] = 0.0 if math.isnan(drift) else drift
        if not armed or len(torch.unique(group_B)) < MIN_GROUPS:
            return measures
        broken = self._broken(measures)
        self.failed = self.failed + 1 if broken else 0
        if self.failed >= PATIENCE:
            raise ValueError(
                f"training has collapsed at {where}: {'; '.join(broken)}, for {PATIENCE} checks "
                f"{CHECK_EVERY} steps apart. Lower the learning rates or lengthen the warm-up; "
                "with a queue, make it smaller or the momentum lower"
            )
        return measures

    def _broken(self, measures: dict[str, float]) -> list[str]:
        limits = self.limits
        bounds = [
            ("effective_rank_image", ">=", limits.min_effective_rank),
            ("effective_rank_text", ">=", limits.min_effective_rank),
            ("uniformity_image", "<=", limits.max_uniformity),
            ("uniformity_text", "<=", limits.max_uniformity),
            ("modality_gap", "<=", limits.max_modality_gap),
            ("queue_drift", "<=", limits.max_drift),
        ]
        return [
            f"{name} is {measures[name]:.3g}, and should be {sign} {bound}"
            for name, sign, bound in bounds
            if not (measures[name] >= bound if sign == ">=" else measures[name] <= bound)
        ]
