"""A decision that is written down first, and cannot change afterwards."""

from dataclasses import replace

import pytest

from experiments.ab_result import AbResult
from experiments.always_valid import Look
from experiments.lift import Lift
from experiments.preregistration import REGISTRATION, Preregistration

RULE = Preregistration(
    control="production",
    treatment="dashclip",
    metric="ctr",
    test="delta",
    alpha=0.05,
    requests=1000,
    looks=0,
    salt="s",
    seed=7,
    calibration_requests=100,
    minimum_detectable=0.04,
)


def lift(value: float, p_value: float) -> Lift:
    low, high = (value - 0.01, value + 0.01) if p_value < 0.05 else (value - 9, value + 9)
    return Lift(
        name="ctr", control=1, treatment=1 + value, lift=value, low=low, high=high, p_value=p_value
    )


def result(rule: Preregistration, **more) -> AbResult:
    return AbResult(
        n_requests=1000,
        n_users=100,
        users_control=50,
        users_treatment=50,
        srm_p_value=1.0,
        confidence=0.95,
        salt="s",
        registration=rule,
        registration_sha256=rule.sha256,
        **{"lifts": {"ctr": lift(0.1, 0.01)}, **more},
    )


def test_the_same_rule_has_the_same_bytes_and_another_rule_another_hash(tmp_path):
    RULE.write_(tmp_path)
    again = Preregistration.model_validate_json((tmp_path / REGISTRATION).read_bytes())
    assert again == RULE
    assert again.sha256 == RULE.sha256
    for change in ({"metric": "rpm"}, {"alpha": 0.1}, {"test": "cuped"}, {"requests": 2000}):
        assert RULE.model_copy(update=change).sha256 != RULE.sha256


def test_a_registered_rule_cannot_be_replaced(tmp_path):
    RULE.write_(tmp_path)
    RULE.write_(tmp_path)
    with pytest.raises(ValueError, match=r"registers another decision .*nothing was simulated"):
        RULE.model_copy(update={"metric": "rpm"}).write_(tmp_path)


def test_a_rule_that_was_changed_while_the_experiment_ran_voids_it(tmp_path):
    RULE.write_(tmp_path)
    RULE.check(tmp_path)
    file = tmp_path / REGISTRATION
    file.write_text(file.read_text().replace('"ctr"', '"rpm"'))
    with pytest.raises(ValueError, match="its result is void"):
        RULE.check(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="is now no file"):
        RULE.check(tmp_path)


def test_the_registered_figure_decides_and_no_other():
    assert result(RULE).decision == "ship"
    assert result(RULE, lifts={"ctr": lift(-0.1, 0.01)}).decision == "do not ship"
    assert result(RULE, lifts={"ctr": lift(0.1, 0.2)}).decision == "undecided"
    other = {"ctr": lift(0.1, 0.2), "rpm": lift(0.9, 1e-9)}
    assert result(RULE, lifts=other).decision == "undecided"
    adjusted = RULE.model_copy(update={"test": "cuped"})
    assert result(adjusted, lifts={"ctr": lift(0.1, 0.2)}, cuped={"ctr": lift(0.1, 0.01)}
                  ).decision == "ship"  # fmt: skip
    assert "Decision: ship, by ctr (delta" in result(RULE).decided()
    assert replace(result(RULE), registration=None).decision is None


def test_the_first_look_that_excludes_zero_decides_a_sequential_test():
    rule = RULE.model_copy(update={"test": "always_valid", "looks": 2})
    none = Look(share=0.5, lift=0.1, error=0.1, low=-0.1, high=0.3, p_value=0.5)
    worse = Look(share=0.7, lift=-0.1, error=0.1, low=-0.2, high=-0.05, p_value=0.01)
    better = Look(share=1.0, lift=0.1, error=0.1, low=0.05, high=0.2, p_value=0.01)
    assert result(rule, looks={"ctr": (none, worse, better)}).decision == "do not ship"
    assert result(rule, looks={"ctr": (none, better)}).decision == "ship"
    assert result(rule, looks={"ctr": (none,)}).decision == "undecided"


def test_a_broken_split_voids_whatever_was_registered():
    broken = replace(result(RULE), srm_p_value=1e-6)
    assert broken.decision == "void"
    assert "No lift of this test should be believed" in broken.verdict()
