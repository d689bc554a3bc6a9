"""Estimators of another policy's reward: by hand, against known worlds, on a published log."""

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.logged_policy import evaluate_policy, policy_of_log
from experiments.off_policy import (
    SupportLimits,
    clipped_ips,
    cross_fitted_rewards,
    doubly_robust,
    importance_weights,
    ips,
    snips,
    support_of,
)
from experiments.off_policy_config import OffPolicyConfig

OPEN_BANDIT = Path(__file__).parents[3] / "shared/data/open_bandit_small/impressions.parquet"
COLUMNS = OffPolicyConfig(action="a", propensity="p", reward="r", context=("x",))


def a_log(rows=20_000, seed=0, *, explore=0.5):
    """Two contexts, three actions, known reward chances: the log, a target and its value."""
    draw = np.random.default_rng(seed)
    reward_XA = np.array([[0.1, 0.3, 0.2], [0.4, 0.1, 0.1]])
    logging_XA = explore / 3 + (1 - explore) * np.array([[1.0, 0, 0], [0, 0, 1.0]])
    target_XA = np.array([[0.1, 0.8, 0.1], [0.7, 0.2, 0.1]])
    x = draw.integers(0, 2, rows)
    a = (draw.random((rows, 1)) > logging_XA.cumsum(1)[x]).sum(1).clip(max=2)
    r = (draw.random(rows) < reward_XA[x, a]).astype(float)
    log = pl.DataFrame({"x": x, "a": a, "r": r, "p": logging_XA[x, a]})
    target = pl.DataFrame(
        [{"x": i, "a": j, "probability": target_XA[i, j]} for i in (0, 1) for j in (0, 1, 2)]
    )
    return log, target, float((target_XA * reward_XA).sum(1).mean())


def test_the_estimators_by_hand():
    weight, reward = np.array([2.0, 0.5, 1.0, 0.5]), np.array([1.0, 0.0, 1.0, 0.0])
    assert ips(weight, reward).value == 0.75
    assert snips(weight, reward).value == 0.75
    assert clipped_ips(weight, reward, largest=1.5).value == 0.625
    model, target = np.array([0.5, 0.5, 0.0, 0.0]), np.full(4, 0.25)
    # .25 + (2 * .5 - .5 * .5 + 1 * 1 + 0) / 4
    assert doubly_robust(weight, reward, model, target).value == pytest.approx(0.6875)


def test_the_standard_error_by_hand():
    # Terms 2, 0, 1, 0 about .75: squares 1.5625 + .5625 + .0625 + .5625 = 2.75, times 4/3, over 4.
    found = ips(np.array([2.0, 0.5, 1.0, 0.5]), np.array([1.0, 0.0, 1.0, 0.0]))
    assert found.standard_error == pytest.approx(math.sqrt(2.75 * 4 / 3) / 4)
    assert found.high - found.value == pytest.approx(1.959964 * found.standard_error)


def test_a_policy_compared_with_itself_earns_what_it_earned():
    log, _, _ = a_log(2000)
    config = COLUMNS.model_copy(update={"context": ("x",)})
    chances = log.group_by("x", "a").agg(pl.col("p").first().alias("probability"))
    result = evaluate_policy(log, chances, config)
    for each in result.estimates:
        if each.name != "doubly_robust":
            assert each.value == pytest.approx(result.logged_reward, abs=1e-12)
            assert each.difference_low == pytest.approx(0, abs=1e-12)
    assert result.support.effective_rows == pytest.approx(2000)


def test_intervals_hold_the_truth_as_often_as_they_say():
    held = dict.fromkeys(("ips", "snips", "doubly_robust"), 0)
    for seed in range(100):
        log, target, truth = a_log(2500, seed)
        for each in evaluate_policy(log, target, COLUMNS).estimates:
            if each.name in held:
                held[each.name] += each.low <= truth <= each.high
    # 95 of 100 expected; five standard errors of a binomial below.
    assert min(held.values()) > 100 * 0.95 - 5 * math.sqrt(100 * 0.95 * 0.05)


def test_doubly_robust_is_right_when_either_part_is():
    log, target, truth = a_log(60_000)
    x, a, r, p = (log[name].to_numpy() for name in "xarp")
    reward_XA = np.array([[0.1, 0.3, 0.2], [0.4, 0.1, 0.1]])
    target_XA = target["probability"].to_numpy().reshape(2, 3)
    weight = target_XA[x, a] / p
    model = reward_XA[x, a], (target_XA * reward_XA).sum(1)[x]
    wrong = np.full(len(log), 0.9), np.full(len(log), 0.9)
    assert doubly_robust(weight, r, *model).value == pytest.approx(truth, abs=0.01)
    assert doubly_robust(weight, r, *wrong).value == pytest.approx(truth, abs=0.02)
    # With the right rewards wrong weights do no harm.
    assert doubly_robust(2 * weight, r, *model).value == pytest.approx(truth, abs=0.01)
    assert ips(2 * weight, r).value > 1.9 * truth
    assert doubly_robust(weight, r, *model).standard_error < ips(weight, r).standard_error


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(-3, 3))
def test_a_shift_of_all_rewards_shifts_snips_alike_and_clipping_high_is_ips(seed, shift):
    draw = np.random.default_rng(seed)
    weight, reward = draw.exponential(size=50), draw.random(50)
    assert snips(weight, reward + shift).value == pytest.approx(
        snips(weight, reward).value + shift, abs=1e-9
    )
    assert clipped_ips(weight, reward, largest=1e9).value == ips(weight, reward).value


def test_rows_of_one_cluster_are_not_independent():
    draw = np.random.default_rng(0)
    weight, reward = draw.exponential(size=40), draw.random(40)
    alone = ips(weight, reward)
    assert ips(weight, reward, cluster_N=np.arange(40)).standard_error == pytest.approx(
        alone.standard_error
    )
    # Every row five times over: no more is known than before.
    five = ips(np.tile(weight, 5), np.tile(reward, 5), cluster_N=np.tile(np.arange(40), 5))
    assert five.standard_error == pytest.approx(alone.standard_error)


def test_the_reward_model_never_saw_the_row_it_judges():
    draw = np.random.default_rng(0)
    context, action = draw.integers(0, 2, 200), draw.integers(0, 3, 200)
    reward, target = draw.random(200), np.full((2, 3), 1 / 3)
    before = cross_fitted_rewards(context, action, reward, target)[0]
    for row in (0, 17, 101):
        changed = reward.copy()
        changed[row] += 100
        assert cross_fitted_rewards(context, action, changed, target)[0][row] == before[row]


def test_effective_rows_by_hand():
    support = support_of(np.array([3.0, 1.0]), np.array([1.0, 1.0]), 0.0)
    assert support.effective_rows == pytest.approx(16 / 10)
    assert support.largest_weight_share == 0.75


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"explore": 0.004}, "effective sample size"),
        ({"propensity": 2.0}, "the mean weight is"),
        ({"missing": True}, "were never logged"),
        ({"rewards": 0.0}, "rewarded rows with weight"),
    ],
)
def test_too_little_support_is_refused(change, message):
    log, target, _ = a_log(5000, explore=change.get("explore", 0.5))
    if "propensity" in change:
        log = log.with_columns(p=pl.min_horizontal(pl.col("p") * change["propensity"], 1.0))
    if change.get("missing"):
        log = log.filter((pl.col("a") != 1) | (pl.col("x") == 1))
    if "rewards" in change:
        log = log.with_columns(r=pl.lit(change["rewards"]))
    with pytest.raises(ValueError, match=message):
        evaluate_policy(log, target, COLUMNS)


def test_what_is_wrong_is_named():
    log, target, _ = a_log(1000)
    with pytest.raises(ValueError, match="the log has no column 'product_id'"):
        evaluate_policy(log, target)
    with pytest.raises(ValueError, match=r"probabilities sum to 0\.9000 in \{'x': 0\}"):
        short = pl.Series("probability", [0.0, 0.8, 0.1, 1.0, 0.0, 0.0])
        evaluate_policy(log, target.with_columns(short), COLUMNS)
    with pytest.raises(ValueError, match=r"context \{'x': 0\}, for which the target"):
        evaluate_policy(log, target.filter(pl.col("x") == 1), COLUMNS)
    with pytest.raises(ValueError, match=r"names \{'x': 0, 'a': 0\} twice"):
        evaluate_policy(log, pl.concat([target, target[:1]]), COLUMNS)
    with pytest.raises(ValueError, match=r"propensity is 0\.0 in row 3"):
        importance_weights(np.full(5, 0.1), np.array([0.1, 0.1, 0.1, 0.0, 0.1]))
    with pytest.raises(ValueError, match="'r' is missing or not finite in row 0"):
        spoiled = log.with_columns(r=pl.when(pl.int_range(pl.len()) == 0).then(None).otherwise("r"))
        evaluate_policy(spoiled, target, COLUMNS)


def test_a_policy_is_read_off_its_log():
    log = pl.DataFrame({"x": [0, 0, 0, 1], "a": ["u", "u", "v", "v"]})
    policy = policy_of_log(log, COLUMNS)
    assert policy["probability"].to_list() == pytest.approx([2 / 3, 1 / 3, 1.0])
    alone = policy_of_log(log, COLUMNS.model_copy(update={"context": ()}))
    assert alone["probability"].to_list() == [0.5, 0.5]


@pytest.fixture(scope="module")
def open_bandit():
    if not OPEN_BANDIT.is_file():
        pytest.skip("the Open Bandit sample is not beside this project")
    log = pl.read_parquet(OPEN_BANDIT)
    return {policy: log.filter(pl.col("policy") == policy) for policy in ("random", "bts")}


PUBLISHED = OffPolicyConfig(
    action="item_id",
    propensity="propensity_score",
    reward="click",
    context=("campaign", "position"),
)


@pytest.mark.parametrize("campaign", [None, "men", "women"])
def test_random_choices_tell_what_thompson_sampling_earned(open_bandit, campaign):
    here = pl.lit(value=True) if campaign is None else pl.col("campaign") == campaign
    random, bts = (open_bandit[policy].filter(here) for policy in ("random", "bts"))
    result = evaluate_policy(random, policy_of_log(bts, PUBLISHED), PUBLISHED, target_log=bts)
    for each in result.estimates:
        assert each.low <= result.truth.value <= each.high


def test_the_way_back_has_no_support_and_is_refused(open_bandit):
    """Thompson sampling had all but given up on some items: one in 46,000 of its choices."""
    policy = policy_of_log(open_bandit["random"], PUBLISHED)
    with pytest.raises(ValueError, match=r"effective sample size 3\.4 of 20000 rows"):
        evaluate_policy(open_bandit["bts"], policy, PUBLISHED)
    lax = SupportLimits(min_effective_rows=1, min_effective_share=0, max_weight_share=1)
    result = evaluate_policy(
        open_bandit["bts"], policy, PUBLISHED.model_copy(update={"limits": lax})
    )
    assert result.support.effective_rows == pytest.approx(3.4, abs=0.1)


def test_the_command_prints_and_writes_what_python_returns(tmp_path, monkeypatch, capsys):
    from experiments.cli import main

    log, target, truth = a_log(4000)
    log.write_parquet(tmp_path / "log.parquet")
    target.write_csv(tmp_path / "target.csv")
    words = ["--action", "a", "--propensity", "p", "--reward", "r", "--context", "x"]
    files = [str(tmp_path / "log.parquet"), "--target", str(tmp_path / "target.csv")]
    figures = tmp_path / "figures.json"
    monkeypatch.setattr(
        "sys.argv", ["adtower", "off-policy", *files, *words, "--json", str(figures)]
    )
    main()
    assert "doubly_robust" in capsys.readouterr().out
    written = json.loads(figures.read_text())
    assert written == pytest.approx(evaluate_policy(log, target, COLUMNS).to_metrics())
    assert written["snips.low"] < truth < written["snips.high"]
    monkeypatch.setattr("sys.argv", ["adtower", "off-policy", files[0], *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "name the policy that is asked about" in capsys.readouterr().err
