"""Users are assigned for good, evenly, and independently between experiments."""

import numpy as np
import pytest
from scipy import stats

from experiments.assignment import assign_arm, srm_check


def test_arms_are_stable_balanced_and_independent_between_salts():
    users = [f"user-{code}" for code in range(20_000)]
    first = np.array([assign_arm(user, "first") == "treatment" for user in users])
    second = np.array([assign_arm(user, "second") == "treatment" for user in users])
    assert srm_check(int((~first).sum()), int(first.sum())) > 0.001
    table = np.array(
        [
            [(first & second).sum(), (first & ~second).sum()],
            [(~first & second).sum(), (~first & ~second).sum()],
        ]
    )
    assert stats.chi2_contingency(table).pvalue > 0.001
    # By shell: sha256 of "first:alice" begins 2af32bbce7a563fd, which is 4669 modulo 10,000.
    assert assign_arm("alice", "first") == "treatment"
    share = np.mean([assign_arm(u, "x", treatment_share=0.1) == "treatment" for u in users])
    assert share == pytest.approx(0.1, abs=0.01)


def test_a_broken_split_has_a_tiny_p_value():
    assert srm_check(50_000, 50_000) == 1.0
    # 49.5% against 50.5% of 100,000: chi-squared is 10 with one degree of freedom.
    assert srm_check(49_500, 50_500) == pytest.approx(stats.chi2.sf(10, 1))
    assert srm_check(90, 10, treatment_share=0.1) == 1.0


def test_units_and_shares_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="a user without an id"):
        assign_arm("", "salt")
    with pytest.raises(ValueError, match="treatment_share is 1"):
        assign_arm("u", "salt", treatment_share=1)
    with pytest.raises(ValueError, match="0 and 0 users"):
        srm_check(0, 0)
