"""The grocery world as a dataset: honest, reproducible, all or nothing."""

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from experiments.marketplace.parameters import WorldParameters
from experiments.marketplace.world import World, make_world
from features.check import check_dataset
from features.dataset import Dataset

SMALL = {"products": 240, "requests": 3000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world") / "w", **SMALL, seed=5)


@pytest.fixture(scope="module")
def impressions(folder) -> pl.DataFrame:
    return pl.read_parquet(folder / "impressions.parquet")


@pytest.fixture(scope="module")
def truth(folder) -> pl.DataFrame:
    return pl.read_parquet(folder / "truth" / "impressions.parquet")


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    sizes = {"products": 60, "requests": 200}
    one = hashes(make_world(tmp_path / "one", **sizes, seed=3))
    two = hashes(make_world(tmp_path / "two", **sizes, seed=3))
    other = hashes(make_world(tmp_path / "other", **sizes, seed=4))
    assert one == two
    assert all(other[name] != digest for name, digest in one.items())


def test_the_world_keeps_its_own_contract(folder):
    dataset = Dataset.open(folder)
    assert check_dataset(dataset) == []
    assert dataset.spec.simulated
    assert "position" not in dataset.spec.features.sparse


def test_no_column_holds_what_is_hidden(folder):
    expected = {
        "impressions": "request_id time user_id query_id product_id position clicked purchased "
        "bid_micros",
        "events": "user_id product_id time kind",
        "products": "product_id title description image category department brand price group_id "
        "launched",
        "queries": "query_id query",
        "relevance": "query_id product_id label source",
    }
    for table, columns in expected.items():
        assert pl.read_parquet_schema(folder / f"{table}.parquet").keys() == set(columns.split())


def test_truth_has_one_row_for_each_impression(impressions, truth):
    assert truth.select("request_id", "product_id").equals(
        impressions.select("request_id", "product_id")
    )


def test_the_position_curve_is_recovered_from_the_truth(impressions, truth):
    look = truth["p_click"] / truth["attraction"]
    curve = pl.DataFrame({"position": impressions["position"], "look": look})
    by_position = curve.group_by("position").agg(pl.col("look").mean(), spread=pl.col("look").std())
    by_position = by_position.sort("position")
    assert by_position["look"].to_numpy() == pytest.approx(WorldParameters().examination)
    assert by_position["spread"].max() < 1e-9


def test_clicks_follow_the_true_probabilities(impressions, truth):
    p_N, clicked_N = truth["p_click"].to_numpy(), impressions["clicked"].to_numpy()
    expected, spread = p_N.sum(), np.sqrt((p_N * (1 - p_N)).sum())
    assert abs(clicked_N.sum() - expected) < 4 * spread
    assert 0.02 < clicked_N.mean() < 0.05


def test_purchases_come_only_after_clicks(impressions):
    assert impressions.filter((pl.col("purchased") == 1) & (pl.col("clicked") == 0)).is_empty()
    assert impressions["purchased"].sum() > 0


def test_every_purchase_of_the_log_is_an_event_minutes_later(impressions, folder):
    events = pl.read_parquet(folder / "events.parquet")
    assert set(events["kind"]) == {"purchase"}
    bought = impressions.filter(pl.col("purchased") == 1).rename({"time": "shown"})
    later = bought.join(events, on=["user_id", "product_id"]).with_columns(
        minutes=(pl.col("time") - pl.col("shown")).dt.total_seconds() / 60
    )
    found = later.filter(pl.col("minutes").is_between(1, 30))
    assert found["request_id"].n_unique() == bought["request_id"].n_unique()


def test_histories_exist_on_the_first_day(impressions, folder):
    events = pl.read_parquet(folder / "events.parquet")
    before = events.filter(pl.col("time") < impressions["time"].min())
    shoppers = impressions["user_id"].head(800).unique()
    assert shoppers.is_in(before["user_id"].implode()).mean() > 0.5


def test_late_products_appear_in_the_test_rows_alone(folder):
    dataset = Dataset.open(folder)
    split = dataset.split()
    late = dataset.table("products").filter(pl.col("launched") > split.train["time"].min())
    assert len(late) == 60
    for rows in (split.train, split.validation):
        assert not rows["product_id"].is_in(late["product_id"].implode()).any()
    assert split.test["product_id"].is_in(late["product_id"].implode()).mean() > 0.05


def test_nothing_is_shown_or_bought_before_its_launch(folder, impressions):
    launched = pl.read_parquet(folder / "products.parquet", columns=["product_id", "launched"])
    events = pl.read_parquet(folder / "events.parquet")
    for table in (impressions, events):
        joined = table.join(launched, on="product_id")
        assert (joined["time"] >= joined["launched"]).all()


def test_a_request_shows_no_product_twice_and_positions_count_up(impressions):
    assert impressions.select("request_id", "product_id").is_duplicated().sum() == 0
    per_request = impressions.group_by("request_id", maintain_order=True).agg("position")
    assert all(p.to_list() == list(range(1, len(p) + 1)) for p in per_request["position"].head(99))


def test_oracles_stand_in_order(impressions, truth):
    clicked_N = impressions["clicked"].to_numpy()
    knowing, blind, attraction = (
        roc_auc_score(clicked_N, truth[name].to_numpy())
        for name in ("p_click", "p_click_blind", "attraction")
    )
    assert knowing > blind > attraction > 0.65


def by_class(truth: pl.DataFrame) -> list[float]:
    rates = truth.group_by("relevance").agg(pl.col("attraction").mean()).sort("relevance")
    return rates["attraction"].to_list()


def test_relevance_matters_unless_its_effect_is_zero(truth, tmp_path):
    none, some, full = by_class(truth)
    assert full > 1.3 * some > 1.3 * 1.3 * none
    parameters = WorldParameters(relevance_effect=0.0)
    flat = make_world(tmp_path / "flat", **SMALL, seed=5, parameters=parameters)
    rates = by_class(pl.read_parquet(flat / "truth" / "impressions.parquet"))
    assert max(rates) < 1.15 * min(rates)


def test_every_slice_of_relevance_is_logged(truth):
    shares = truth["relevance"].value_counts(normalize=True)["proportion"]
    assert len(shares) == 3
    assert shares.min() > 0.05


def test_taste_moves_clicks_but_its_removal_leaves_the_shared_part(folder):
    world = World.load(folder / "truth")
    requests = world.draw_requests(400, seed=1)
    other = World(type(world.state)(**{**vars(world.state), "taste_UD": -world.state.taste_UD}))
    assert np.abs(world.click_probability(requests) - other.click_probability(requests)).max() > 0.1


def test_later_requests_come_after_the_log_and_repeat_by_seed(folder, impressions):
    world = World.load(folder / "truth")
    one, two, other = (world.draw_requests(300, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(getattr(one, k), getattr(two, k)) for k in vars(one))
    assert not np.array_equal(one.user_R, other.user_R)
    table = world.candidate_table(one)
    assert table["time"].min() > impressions["time"].max()
    assert table.columns == [
        "request_id",
        "time",
        "user_id",
        "query_id",
        "product_id",
        "bid_micros",
    ]
    assert table.schema["time"] == impressions.schema["time"]
    assert (np.diff(one.time_us_R) >= 0).all()


def test_ranking_by_the_truth_beats_ranking_at_random(folder):
    world = World.load(folder / "truth")
    requests = world.draw_requests(1500, seed=1)
    p_RK = world.click_probability(requests)
    rng = np.random.default_rng(0)
    informed = world.run(requests, p_RK)
    blind = world.run(requests, rng.random(p_RK.shape))
    assert informed.p_click_RS.sum() > 1.2 * blind.p_click_RS.sum()
    assert informed.relevance_RS.mean() > blind.relevance_RS.mean()


def test_the_outcome_tells_the_probabilities_of_what_is_shown(folder):
    world = World.load(folder / "truth")
    requests = world.draw_requests(50, seed=3)
    scores_N = np.random.default_rng(0).random(len(world.candidate_table(requests)))
    outcome = world.run(requests, world.to_candidates(requests, scores_N))
    column_RS = np.maximum(outcome.shown_RS, 0)
    for slot in range(world.parameters.slots):
        p_RK = world.click_probability(requests, position=slot + 1)
        expected_R = np.take_along_axis(p_RK, column_RS, axis=1)[:, slot]
        filled_R = outcome.shown_RS[:, slot] >= 0
        assert outcome.p_click_RS[filled_R, slot] == pytest.approx(expected_R[filled_R])
    assert (outcome.price_micros_RS <= outcome.value_micros_RS).all()


def test_one_score_a_candidate_row_is_demanded(folder):
    world = World.load(folder / "truth")
    with pytest.raises(ValueError, match="each needs one score"):
        world.to_candidates(world.draw_requests(5, seed=0), np.zeros(3))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"products": 10}, "products=10 is too small"),
        ({"requests": 0}, "requests=0 must be at least 1"),
    ],
)
def test_bad_sizes_are_refused_and_nothing_is_left(tmp_path, sizes, message):
    with pytest.raises(ValueError, match=message):
        make_world(tmp_path / "w", **sizes)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_untouched(tmp_path):
    (tmp_path / "w").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        make_world(tmp_path / "w", products=60, requests=10)
    assert list((tmp_path / "w").iterdir()) == []


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("experiments.marketplace.world._write_truth", fail)
    with pytest.raises(OSError, match="disk full"):
        make_world(tmp_path / "w", products=60, requests=50)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_world_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no simulated world"):
        World.load(tmp_path)
