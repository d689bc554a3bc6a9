"""A comparison claims exactly what its tests allow, and says so in words."""

import json

import numpy as np
import pytest
from rich.console import Console

from experiments.compare import Comparison, compare_variants
from ranking.intervals import auc_components, auc_difference
from ranking.metrics import auc


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def clicks_and_logits(users=400, rows_a_user=5, seed=0):
    rng = np.random.default_rng(seed)
    user_N = np.repeat(np.arange(users), rows_a_user)
    logit_N = 1.5 * rng.normal(size=len(user_N)) + 0.5 * rng.normal(size=users)[user_N] - 1.5
    label_N = (rng.random(len(user_N)) < sigmoid(logit_N)).astype(float)
    return rng, label_N, user_N, logit_N


@pytest.fixture
def inputs():
    """The less noise a model adds to the true logit, the better it is."""
    rng, label_N, user_N, logit_N = clicks_and_logits()

    def models(noise, seeds=2):
        shared_N = noise * rng.normal(size=len(logit_N))
        return [
            sigmoid(logit_N + shared_N + 0.1 * rng.normal(size=len(logit_N))) for _ in range(seeds)
        ]

    p_click = {
        "dashclip": models(0.2),
        "production": models(2.0),
        "random_vectors": models(1.9),
        "shuffled_vectors": models(1.95),
        "stage1": models(1.9),
        "logistic": models(6.0, seeds=1),
    }
    return label_N, user_N, p_click


@pytest.fixture
def comparison(inputs):
    return compare_variants(*inputs)


def test_rows_hold_means_over_seeds_and_the_baseline_comes_first(inputs, comparison):
    label_N, user_N, p_click = inputs
    assert [row.name for row in comparison.rows][:2] == ["production", "dashclip"]
    row = comparison["dashclip"]
    assert row.auc == pytest.approx(np.mean([auc(label_N, p) for p in p_click["dashclip"]]))
    assert row.auc_low < row.auc < row.auc_high
    assert row.seeds == 2
    assert comparison.users == 400
    assert comparison.clicks == label_N.sum()
    estimate = auc_difference(
        label_N,
        auc_components(label_N, p_click["dashclip"]),
        auc_components(label_N, p_click["production"]),
        user_N,
    )
    assert row.delta_auc == pytest.approx(estimate.value)
    # At least as wide as unadjusted.
    low, high = estimate.interval(0.95)
    assert row.delta_auc_low <= low
    assert row.delta_auc_high >= high


def test_the_better_placebo_is_the_one_with_the_higher_auc(comparison):
    random, shuffled = comparison["random_vectors"], comparison["shuffled_vectors"]
    better = max(random, shuffled, key=lambda row: row.auc)
    assert comparison.placebo == better.name
    row = comparison["dashclip"]
    assert row.delta_placebo == pytest.approx(row.auc - better.auc)
    assert better.delta_placebo == 0
    # The baseline's difference to the placebo is what the placebo gains, turned.
    assert comparison["production"].delta_placebo == -better.delta_auc
    assert comparison["production"].delta_placebo_low == -better.delta_auc_high
    assert comparison["production"].delta_auc == 0


def test_only_a_variant_above_both_references_ships(comparison):
    assert [row.name for row in comparison.rows if row.ships] == ["dashclip"]
    assert not comparison["stage1"].ships
    verdict = comparison.verdict()
    assert verdict.startswith("dashclip ships: test AUC 0.")
    assert "above production, and" in verdict
    assert "logistic loses to production." in verdict
    assert f"Capacity alone ({comparison.placebo}, vectors without meaning) is worth" in verdict


def test_a_gain_that_placebos_share_is_capacity_and_does_not_ship():
    rng, label_N, user_N, logit_N = clicks_and_logits(seed=3)
    better_N = sigmoid(logit_N)

    def jitter():
        return [sigmoid(logit_N + 0.02 * rng.normal(size=len(logit_N))) for _ in range(2)]

    production_N = sigmoid(logit_N + 2 * rng.normal(size=len(logit_N)))
    result = compare_variants(
        label_N,
        user_N,
        {
            "production": [production_N],
            "random_vectors": jitter(),
            "shuffled_vectors": jitter(),
            "stage1": [better_N],
        },
    )
    row = result["stage1"]
    assert row.above_baseline
    assert not row.above_placebo
    assert not row.ships
    assert result.verdict().startswith("Nothing ships: the best, stage1,")
    assert "does not tell it from" in result.verdict()
    assert result.capacity is not None
    assert result.to_metrics()["capacity.delta_auc"] == result.capacity.delta_auc > 0.05


def test_shuffled_vectors_that_beat_random_ones_are_called_a_leak(inputs):
    label_N, user_N, p_click = inputs
    leaky = p_click | {"shuffled_vectors": p_click["dashclip"]}
    result = compare_variants(label_N, user_N, leaky)
    assert "look for a leak" in str(result.leak_warning())
    assert "look for a leak" in result.verdict()
    assert compare_variants(label_N, user_N, p_click).leak_warning() is None


def test_without_placebos_nothing_is_said_about_them(inputs):
    label_N, user_N, p_click = inputs
    alone = {name: p_click[name] for name in ("production", "dashclip")}
    result = compare_variants(label_N, user_N, alone)
    assert result.placebo is None
    assert result["dashclip"].delta_placebo is None
    assert not result["dashclip"].ships
    assert result.verdict().startswith("No verdict is possible without a placebo")
    assert not any("placebo" in key or "capacity" in key for key in result.to_metrics())
    only = compare_variants(label_N, user_N, {"production": p_click["production"]})
    assert only.verdict() == "Nothing ships: no variant was compared with production."


def test_a_variant_equal_to_the_baseline_differs_by_nothing(inputs):
    label_N, user_N, p_click = inputs
    same = p_click["production"][:1]
    result = compare_variants(label_N, user_N, {"production": same, "dashclip": same})
    row = result["dashclip"]
    assert (row.delta_auc, row.delta_auc_low, row.delta_auc_high) == (0.0, 0.0, 0.0)
    assert row.p_value_holm == 1.0


def test_metrics_are_flat_finite_and_named(comparison):
    metrics = comparison.to_metrics()
    assert all(type(value) is float and np.isfinite(value) for value in metrics.values())
    for name in ("production", "random_vectors", "dashclip"):
        for key in ("auc", "delta_auc", "delta_placebo"):
            assert {f"{name}.{key}", f"{name}.{key}_low", f"{name}.{key}_high"} <= set(metrics)
        assert {f"{name}.log_loss", f"{name}.normalized_entropy"} <= set(metrics)


def test_the_order_of_rows_and_the_names_of_users_do_not_matter(inputs, comparison):
    label_N, user_N, p_click = inputs
    order_N = np.random.default_rng(1).permutation(len(label_N))
    again = compare_variants(
        label_N[order_N],
        np.array([f"user {code}" for code in user_N])[order_N],
        {name: [p[order_N] for p in seeds] for name, seeds in p_click.items()},
    )
    assert again.to_metrics() == pytest.approx(comparison.to_metrics(), rel=1e-9, abs=1e-12)


def test_a_comparison_survives_json(comparison):
    assert Comparison.from_json(comparison.to_json()) == comparison
    broken = json.loads(comparison.to_json())
    broken["rows"][0]["surprise"] = 1
    with pytest.raises(ValueError, match="not a comparison of this version"):
        Comparison.from_json(json.dumps(broken))


def test_the_table_shows_every_variant_and_its_brackets(comparison):
    console = Console(width=200, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(comparison.table())
    text = capture.get()
    assert "random_vectors (placebo)" in text
    row = comparison["dashclip"]
    assert f"{row.delta_auc:+.4f} [{row.delta_auc_low:+.4f}, {row.delta_auc_high:+.4f}]" in text


def test_sets_that_cannot_be_compared_are_refused(inputs):
    label_N, user_N, p_click = inputs
    without = {name: p for name, p in p_click.items() if name != "production"}
    with pytest.raises(ValueError, match="the baseline 'production' is not among"):
        compare_variants(label_N, user_N, without)
    with pytest.raises(ValueError, match="both baseline and control"):
        compare_variants(label_N, user_N, p_click, baseline="random_vectors")
    with pytest.raises(ValueError, match=r"variant 'dashclip': labels have shape .* scores"):
        compare_variants(label_N, user_N, p_click | {"dashclip": [p_click["dashclip"][0][:-1]]})
    with pytest.raises(ValueError, match="one a seed; was a single array passed"):
        compare_variants(label_N, user_N, p_click | {"dashclip": p_click["dashclip"][0]})
    with pytest.raises(ValueError, match="variant 'dashclip': no scores"):
        compare_variants(label_N, user_N, p_click | {"dashclip": []})
    with pytest.raises(ValueError, match="were logits passed"):
        compare_variants(label_N, user_N, p_click | {"dashclip": [10 * label_N - 5]})
    with pytest.raises(ValueError, match="'dashclp' was not compared; the set is"):
        compare_variants(label_N, user_N, p_click)["dashclp"]


def test_slices_are_compared_as_the_whole_is(inputs, comparison):
    label_N, user_N, p_click = inputs
    rng = np.random.default_rng(5)
    masks = {
        "everything": np.ones(len(label_N), bool),
        "half": rng.random(len(label_N)) < 0.5,
        "few": np.arange(len(label_N)) < 20,
    }
    result = compare_variants(label_N, user_N, p_click, slices=masks)
    found = {(part.slice, part.variant): part for part in result.slices}
    assert len(found) == 3 * len(p_click)
    whole, row = found["everything", "dashclip"], comparison["dashclip"]
    assert (whole.auc, whole.auc_low) == (row.auc, row.auc_low)
    assert whole.delta_auc == pytest.approx(row.delta_auc)
    assert whole.delta_placebo == pytest.approx(row.delta_placebo)
    own = {name: [p[masks["half"]] for p in seeds] for name, seeds in p_click.items()}
    estimate = auc_difference(
        label_N[masks["half"]],
        auc_components(label_N[masks["half"]], own["stage1"]),
        auc_components(label_N[masks["half"]], own["production"]),
        user_N[masks["half"]],
    )
    half = found["half", "stage1"]
    assert (half.delta_auc_low, half.delta_auc_high) == pytest.approx(estimate.interval())
    assert half.q_value >= estimate.p_value
    # Four users say nothing about an interval.
    few = found["few", "dashclip"]
    assert (few.impressions, few.auc, few.delta_auc) == (20, None, None)
    metrics = result.to_metrics()
    assert metrics["stage1.slice.half.delta_auc"] == half.delta_auc
    assert "dashclip.slice.few.auc" not in metrics
    assert Comparison.from_json(result.to_json()) == result


def test_one_seed_is_said_to_leave_training_noise_out(inputs, comparison):
    label_N, user_N, p_click = inputs
    single = compare_variants(label_N, user_N, {name: p[:1] for name, p in p_click.items()})
    assert "One seed each" in single.verdict()
    assert "One seed each" not in comparison.verdict()
    assert comparison.to_metrics()["dashclip.auc_seed_sd"] == pytest.approx(
        np.std([auc(label_N, p) for p in p_click["dashclip"]], ddof=1)
    )


def test_intervals_cover_the_true_difference_users_and_seeds_included():
    # Users have levels of their own, and each training is as noisy as its luck: without the seeds'
    # part the intervals cover 43%.
    rng = np.random.default_rng(11)

    def draw(users, seeds):
        user_N = np.repeat(np.arange(users), 6)
        known_N = rng.normal(size=len(user_N))
        logit_N = known_N + 0.8 * rng.normal(size=users)[user_N] - 1
        label_N = (rng.random(len(user_N)) < sigmoid(logit_N)).astype(float)

        def trainings(noise):
            luck_S = np.exp(0.5 * rng.normal(size=seeds))
            return [
                sigmoid(known_N + noise * luck * rng.normal(size=len(user_N))) for luck in luck_S
            ]

        return label_N, user_N, {"production": trainings(1.0), "dashclip": trainings(0.8)}

    label_N, _, p_click = draw(2000, 150)
    truth = np.subtract(
        *(np.mean([auc(label_N, p) for p in p_click[n]]) for n in ("dashclip", "production"))
    )
    rows = (compare_variants(*draw(300, 3))["dashclip"] for _ in range(200))
    hits = [row.delta_auc_low <= truth <= row.delta_auc_high for row in rows]
    # 95%, give or take what 200 draws leave open.
    assert 0.905 <= np.mean(hits) <= 0.99
