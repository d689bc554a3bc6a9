"""Which arm of an experiment a user is in, and whether the arms came out as planned."""

from __future__ import annotations

import hashlib
from typing import Literal

from scipy import stats

BUCKETS = 10_000
SRM_THRESHOLD = 0.001
"""Below this p-value the split is taken to be broken: strict, because it is looked at in every
experiment (Fabijan et al. 2019, "Diagnosing Sample Ratio Mismatch in Online Controlled
Experiments")."""

Arm = Literal["control", "treatment"]


def assign_arm(user_id: str, salt: str, *, treatment_share: float = 0.5) -> Arm:
    """Put a user in an arm, always the same for one salt and independent between salts.

    Bucket = first 8 bytes of SHA-256("salt:user") modulo 10,000; the treatment takes the lowest
    buckets.

    Args:
        user_id: The unit of the experiment, not empty.
        salt: Names the experiment, not empty; another salt shuffles all users anew.
        treatment_share: Share of the users in the treatment, between 0 and 1, both excluded.

    Returns:
        "control" or "treatment".

    Raises:
        ValueError: If ``user_id`` or ``salt`` is empty, or the share leaves an arm empty.
    """
    if not user_id:
        raise ValueError(
            "a user without an id cannot be assigned; is user_id null for some requests? Fill in "
            "a session or device id, or leave those requests out"
        )
    if not salt:
        raise ValueError("the salt is empty; give each experiment its own, as 'dashclip-2026-05'")
    if not 1 / BUCKETS <= treatment_share <= 1 - 1 / BUCKETS:
        raise ValueError(
            f"treatment_share is {treatment_share}; it must lie between {1 / BUCKETS} and "
            f"{1 - 1 / BUCKETS}, or one arm has no bucket"
        )
    digest = hashlib.sha256(f"{salt}:{user_id}".encode()).digest()
    bucket = int.from_bytes(digest[:8], "big") % BUCKETS
    return "treatment" if bucket < round(treatment_share * BUCKETS) else "control"


def srm_check(control: int, treatment: int, *, treatment_share: float = 0.5) -> float:
    """Test whether the arms hold as many users as planned (sample-ratio mismatch).

    Args:
        control: Users seen in the control.
        treatment: Users seen in the treatment.
        treatment_share: Planned share of the treatment.

    Returns:
        The p-value of a chi-squared test. Below ``SRM_THRESHOLD`` the assignment or the logging
        is broken and no lift of the experiment should be believed.

    Raises:
        ValueError: If there are no users, or a count is negative.
    """
    users = control + treatment
    if min(control, treatment) < 0 or users == 0:
        raise ValueError(f"{control} and {treatment} users; both arms need a count, 0 or more")
    expected = [users * (1 - treatment_share), users * treatment_share]
    return float(stats.chisquare([control, treatment], expected).pvalue)
