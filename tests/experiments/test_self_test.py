"""The test of the A/B test: deterministic, made of the simulator's own parts, and able to fail."""

import json
from dataclasses import replace

import numpy as np
import pytest

from experiments.ab_counts import METRICS
from experiments.cli_simulate import simulate
from experiments.self_test import MetricHonesty, SelfTest, _experiment, run_self_test
from experiments.self_test_market import CONTROL_NOISE, REQUESTS, TREATMENT_NOISE, SmallMarket


@pytest.fixture(scope="module")
def small() -> SelfTest:
    return run_self_test(20, seed=1)


def test_every_metric_is_judged_and_the_same_seed_gives_the_same_figures(small):
    assert set(small.metrics) == set(METRICS)
    assert _experiment(3) == _experiment(3)
    assert _experiment(3) != _experiment(4)


def test_a_useful_past_takes_a_third_of_the_variance_and_power_is_foretold(small):
    assert small.metrics["ctr"].cuped_variance_reduction > 0.3
    for honesty in small.metrics.values():
        assert honesty.power == pytest.approx(honesty.predicted_power, abs=0.3)
        assert honesty.false_positive_rate < 0.3


def test_figures_are_named_by_metric(small):
    figures = small.to_metrics()
    for name in METRICS:
        for key in ("false_positive_rate", "coverage", "sequential_false_positive_rate",
                    "power", "predicted_power", "p_uniformity", "cuped.coverage"):  # fmt: skip
            assert 0 <= figures[f"{name}.{key}"] <= 1
    assert figures["cuped.variance_reduction"] == figures["ctr.cuped.variance_reduction"]
    assert figures["experiments"] == 20.0
    json.dumps(figures, allow_nan=False)


def test_a_record_survives_its_file(small):
    assert SelfTest.from_json(small.to_json()) == small


def test_the_figures_that_come_with_this_version_are_honest_and_of_2000_experiments(small):
    stored = SelfTest.stored()
    if stored is None:
        pytest.skip("no figures come with this version")
    assert (stored.experiments, stored.failures()) == (2000, [])
    assert set(stored.metrics) == set(small.metrics)


def test_a_dishonest_figure_is_named():
    honest = dict.fromkeys(
        ("false_positive_rate", "cuped_false_positive_rate", "sequential_false_positive_rate"), 0.04
    ) | dict.fromkeys(("coverage", "cuped_coverage"), 0.95)
    rest = dict.fromkeys(
        ("naive_sequential_false_positive_rate", "power", "predicted_power", "p_uniformity",
         "cuped_power", "cuped_variance_reduction"), 0.5
    )  # fmt: skip
    good = MetricHonesty(**honest, **rest)
    assert SelfTest(experiments=2000, metrics={"ctr": good}).failures() == []
    for change, words in (
        ({"false_positive_rate": 0.08}, "false_positive_rate is 0.080"),
        ({"coverage": 0.9}, "coverage is 0.900, not 0.935 to 0.965"),
        ({"sequential_false_positive_rate": 0.06}, "sequential_false_positive_rate is 0.060"),
        ({"cuped_variance_reduction": 0.2}, "CUPED takes 20%"),
    ):
        bad = SelfTest(experiments=2000, metrics={"ctr": replace(good, **change)})
        assert any(words in found for found in bad.failures())
        assert bad.verdict().startswith("Not honest")
    # Of 200 experiments 8% is three a hundred too many, as chance will have it now and then.
    unlucky = {"ctr": replace(good, false_positive_rate=0.08)}
    assert SelfTest(experiments=200, metrics=unlucky).failures() == []


def test_the_better_model_of_a_small_market_is_better_in_truth():
    market = SmallMarket.draw(7)
    requests = market.world.draw_requests(REQUESTS, 1)
    draws = market.draws(1)
    worse, better = (
        market.serve(requests, noise, draws)[0] for noise in (CONTROL_NOISE, TREATMENT_NOISE)
    )
    assert better["clicks"].sum() > 1.02 * worse["clicks"].sum()
    expected, seen = market.serve(requests, CONTROL_NOISE, draws)
    assert seen["clicks"].sum() == pytest.approx(
        expected["clicks"].sum(), abs=4 * np.sqrt(expected["clicks"].sum())
    )


def test_the_command_writes_the_figures(tmp_path, capsys):
    simulate(selftest=True, experiments=20, json=tmp_path / "honesty.json")
    figures = json.loads((tmp_path / "honesty.json").read_text())
    assert {"ctr.false_positive_rate", "rpm.coverage", "cuped.variance_reduction"} <= set(figures)
    assert "Self-test, 20 experiments" in capsys.readouterr().out
    with pytest.raises(ValueError, match="at least 20 are needed"):
        simulate(selftest=True, experiments=3)


@pytest.mark.slow
def test_over_many_experiments_every_figure_is_within_its_limits():
    found = run_self_test(2000)
    assert found.failures() == []
