"""A simulated A/B test from the shelf: variants, runs and bundles as arms, and what is refused."""

import json

import numpy as np
import pytest

from experiments import commands
from experiments.ab_result import AbResult
from experiments.config import AbConfig, RunConfig
from experiments.marketplace.parameters import WorldParameters
from experiments.marketplace.world import make_world
from experiments.preregistration import REGISTRATION
from experiments.simulate_config import SimulateConfig
from experiments.simulation import simulate_arms

SMALL = {
    "control": "logistic",
    "treatment": "lightgbm",
    "requests": 700,
    "calibration_requests": 700,
    "distortions": False,
}


def run(data, out, seed=0):
    config = RunConfig(
        data=data,
        out=out,
        variants=("logistic", "lightgbm"),
        seed=seed,
        simulate=False,
        track=False,
        ab=AbConfig(requests=100),
    )
    commands.train(config)
    return out


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    often = WorldParameters(click_rate_by_class=(0.1, 0.2, 0.4), purchase_rate=0.4)
    return {
        "home": make_world(folder / "home", products=200, requests=900, parameters=often),
        "abroad": make_world(
            folder / "abroad",
            products=200,
            requests=900,
            parameters=often.model_copy(update={"currency": "EUR"}),
        ),
        "later": make_world(folder / "later", products=200, requests=900, seed=5),
    }


@pytest.fixture(scope="module")
def runs(worlds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made = {name: run(world, folder / name) for name, world in worlds.items()}
    return made | {"second": run(worlds["home"], folder / "second", seed=9)}


def test_two_variants_of_a_run_are_tested_and_everything_is_written(runs, tmp_path):
    result, folder = simulate_arms(
        SimulateConfig(**SMALL), run_folder=runs["home"], out=tmp_path / "ab"
    )
    assert AbResult.from_json((folder / "ab.json").read_text()) == result
    registered = json.loads((folder / REGISTRATION).read_text())
    assert (registered["control"], registered["metric"]) == ("logistic", "ctr")
    assert result.registration_sha256 is not None
    assert (result.currency, result.n_requests) == ("USD", 700)
    assert set(result.lifts) == set(result.raw) == set(result.cuped)
    assert result.decision in ("ship", "do not ship", "undecided")
    again, _ = simulate_arms(SimulateConfig(**SMALL), run_folder=runs["home"], out=tmp_path / "ab")
    assert again == result


def test_another_question_needs_another_experiment(runs, tmp_path):
    settings = {"run_folder": runs["home"], "out": tmp_path / "ab"}
    simulate_arms(SimulateConfig(**SMALL), **settings)
    rpm = SimulateConfig(**SMALL, metric="rpm")
    with pytest.raises(ValueError, match="registers another decision"):
        simulate_arms(rpm, **settings)
    result, _ = simulate_arms(rpm, **settings, overwrite=True)
    assert result.registration is not None
    assert result.registration.metric == "rpm"


def test_arms_may_come_from_two_runs_on_the_same_data(runs, tmp_path):
    same = SimulateConfig(**{**SMALL, "treatment": "logistic"})
    result, _ = simulate_arms(
        same, run_folder=runs["home"], treatment_run=runs["second"], out=tmp_path / "ab"
    )
    # Logistic regression has no seed: both runs hold the same model.
    assert all(lift.true == 0.0 for lift in result.lifts.values())


def test_swapped_models_and_users_turn_the_sign_of_a_run_too(runs, tmp_path):
    one, _ = simulate_arms(SimulateConfig(**SMALL), run_folder=runs["home"], out=tmp_path / "a")
    back = {**SMALL, "control": "lightgbm", "treatment": "logistic", "swap": True}
    other, _ = simulate_arms(SimulateConfig(**back), run_folder=runs["home"], out=tmp_path / "b")
    for name, lift in one.lifts.items():
        assert (lift.control, lift.treatment) == (
            other.lifts[name].treatment,
            other.lifts[name].control,
        )
        assert np.log1p(lift.true) == pytest.approx(-np.log1p(other.lifts[name].true), rel=1e-12)


def test_other_rules_and_binding_budgets_can_be_tried(runs, tmp_path):
    market = tmp_path / "market.json"
    market.write_text('{"parameters": {"pricing": "first_price", "bid_sd": 0.1}}')
    config = SimulateConfig(**SMALL, market=market, budget_share=0.5)
    result, _ = simulate_arms(config, run_folder=runs["home"], out=tmp_path / "ab")
    plain, _ = simulate_arms(SimulateConfig(**SMALL), run_folder=runs["home"], out=tmp_path / "p")
    assert result.lifts["cpc"].control > 1.1 * plain.lifts["cpc"].control
    assert result.budgets is not None
    assert "ab.budgets.budget_split.rpm.lift" in result.to_metrics()


def test_arms_that_cannot_be_compared_are_refused(runs, worlds, tmp_path):
    config = SimulateConfig(**SMALL)
    out = tmp_path / "ab"
    with pytest.raises(ValueError, match=r"'logistic' bids in USD and treatment .* in EUR"):
        simulate_arms(config, run_folder=runs["home"], treatment_run=runs["abroad"], out=out)
    with pytest.raises(ValueError, match="come from different data: control 'logistic' from"):
        simulate_arms(config, run_folder=runs["home"], treatment_run=runs["later"], out=out)
    with pytest.raises(ValueError, match="tested on"):
        simulate_arms(config, run_folder=runs["home"], data=worlds["later"], out=out)
    with pytest.raises(ValueError, match="has no variant 'dashclip'; it has logistic, lightgbm"):
        simulate_arms(
            config.model_copy(update={"treatment": "dashclip"}), run_folder=runs["home"], out=out
        )
    with pytest.raises(ValueError, match="the control arm has no model: name a run folder, or"):
        simulate_arms(config, out=out)
    assert not out.exists()


def test_settings_that_decide_nothing_are_refused():
    for wrong, words in (
        ({"metric": "auc"}, "metric is 'auc'; ctr, cvr"),
        ({"test": "cuped", "pre_period": False}, "needs the pre-period"),
        ({"test": "always_valid", "looks": 0}, "nothing to look at"),
        ({"budget_share": 0.5, "budgets": "x.csv"}, "not both"),
        ({"budget_share": -1}, "greater than 0"),
    ):
        with pytest.raises(ValueError, match=words):
            SimulateConfig.model_validate(wrong)


def test_an_exported_bundle_serves_an_arm_as_its_variant_does(runs, worlds, tmp_path):
    bundle = commands.export(runs["home"], tmp_path / "bundle", variants=["lightgbm"])
    config = SimulateConfig(**{**SMALL, "control": "lightgbm"})
    result, _ = simulate_arms(
        config, run_folder=runs["home"], treatment_bundle=bundle, out=tmp_path / "ab"
    )
    assert all(abs(lift.true) < 1e-3 for lift in result.lifts.values())
    both = {"control_bundle": bundle, "treatment_bundle": bundle, "out": tmp_path / "both"}
    alone, _ = simulate_arms(config, **both, data=worlds["home"])
    assert all(lift.true == 0.0 for lift in alone.lifts.values())
    with pytest.raises(ValueError, match="nobody knows what other rankings would have earned"):
        simulate_arms(config, **both)
    with pytest.raises(ValueError, match="come from different data"):
        simulate_arms(config, **both, data=worlds["later"])
    with pytest.raises(ValueError, match="give --out"):
        simulate_arms(config, **{**both, "out": None}, data=worlds["home"])
