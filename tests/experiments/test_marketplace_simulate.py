"""A simulated log for a catalogue that has labels but no clicks."""

import numpy as np
import polars as pl
import pytest

from experiments.marketplace.parameters import WorldParameters
from experiments.marketplace.world import World, simulate_log
from features.check import check_dataset
from features.dataset import Dataset, write_dataset
from features.schema import DatasetSpec, FeatureNames


def tables(n_products: int = 90, n_queries: int = 40, **more) -> dict[str, pl.DataFrame]:
    """A hardware shop: titles alone, six judged products a query."""
    rng = np.random.default_rng(0)
    things = ["hammer", "drill", "ladder", "paint", "hinge"]
    product_ids = [f"{100 + i}" for i in range(n_products)]
    pairs = [(q, p) for q in range(n_queries) for p in rng.permutation(n_products)[:6]]
    return {
        "products": pl.DataFrame(
            {
                "product_id": product_ids,
                "title": [f"steel {things[i % 5]} {i}" for i in range(n_products)],
                **more,
            }
        ),
        "queries": pl.DataFrame(
            {
                "query_id": [f"q{i}" for i in range(n_queries)],
                "query": [f"size {i} {things[i % 5]}" for i in range(n_queries)],
            }
        ),
        "relevance": pl.DataFrame(
            {
                "query_id": [f"q{q}" for q, _ in pairs],
                "product_id": [product_ids[p] for _, p in pairs],
                "label": rng.integers(0, 3, len(pairs)).astype(np.int8),
                "source": ["human"] * len(pairs),
            }
        ),
    }


@pytest.fixture
def shop(tmp_path):
    return write_dataset(tmp_path / "shop", DatasetSpec(name="shop"), **tables())


def test_the_log_is_added_and_the_dataset_says_so(shop):
    simulate_log(shop, requests=400, seed=1)
    dataset = Dataset.open(shop)
    assert dataset.spec.simulated
    assert dataset.spec.features.sparse == (
        "user_id",
        "query_id",
        "product_id",
        "time.hour",
        "time.weekday",
    )
    assert dataset.table("impressions")["request_id"].n_unique() == 400
    truth = pl.read_parquet(shop / "truth" / "impressions.parquet")
    assert len(truth) == dataset.table("impressions").height
    assert check_dataset(dataset) == []


def test_columns_that_exist_become_features_after_those_already_named(tmp_path):
    spec = DatasetSpec(name="shop", features=FeatureNames(sparse=("query_id", "products.maker")))
    more = {"brand": ["acme"] * 90, "price": [2.0, None, -1.0] * 30, "maker": ["m"] * 90}
    shop = write_dataset(tmp_path / "shop", spec, **tables(**more))
    simulate_log(shop, requests=50)
    features = Dataset.open(shop).spec.features
    assert features.sparse[:2] == ("query_id", "products.maker")
    assert {"user_id", "product_id", "products.brand"} <= set(features.sparse)
    assert features.dense == ("products.price",)


def test_clicks_follow_the_labels_and_unjudged_products_count_as_irrelevant(shop):
    simulate_log(shop, requests=3000, seed=1)
    impressions = pl.read_parquet(shop / "impressions.parquet")
    truth = pl.read_parquet(shop / "truth" / "impressions.parquet")
    labels = pl.read_parquet(shop / "relevance.parquet")
    joined = impressions.with_columns(truth["relevance"], truth["attraction"]).join(
        labels, on=["query_id", "product_id"], how="left"
    )
    assert (joined["relevance"] == joined["label"].fill_null(0)).all()
    assert 0.2 < joined["label"].is_null().mean() < 0.8
    rates = joined.group_by("relevance").agg(pl.col("attraction").mean()).sort("relevance")
    assert rates["attraction"].is_sorted()
    assert rates["attraction"][2] > 2 * rates["attraction"][0]


def test_the_same_seed_gives_the_same_log(tmp_path):
    folders = [
        write_dataset(tmp_path / name, DatasetSpec(name="shop"), **tables()) for name in "ab"
    ]
    for folder in folders:
        simulate_log(folder, requests=200, seed=9)
    for name in ("impressions.parquet", "events.parquet", "truth/users.parquet"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_the_world_of_a_labelled_catalogue_serves_later_requests(shop):
    simulate_log(shop, requests=200)
    world = World.load(shop / "truth")
    requests = world.draw_requests(300, seed=1)
    table = world.candidate_table(requests)
    assert len(table) == (requests.candidate_RK >= 0).sum()
    p_RK = world.click_probability(requests)
    assert (p_RK[requests.candidate_RK < 0] == 0).all()
    informed, flat = world.run(requests, p_RK), world.run(requests, np.full(p_RK.shape, 0.5))
    assert informed.p_click_RS.sum() > 1.1 * flat.p_click_RS.sum()


def test_a_log_that_is_there_already_is_refused_untouched(shop):
    simulate_log(shop, requests=50)
    before = (shop / "impressions.parquet").read_bytes()
    with pytest.raises(ValueError, match="has a log already"):
        simulate_log(shop, requests=60)
    assert (shop / "impressions.parquet").read_bytes() == before


@pytest.mark.parametrize("missing", ["products", "queries", "relevance"])
def test_a_missing_table_is_named(tmp_path, missing):
    given = tables()
    del given[missing]
    shop = write_dataset(tmp_path / "shop", DatasetSpec(name="shop"), **given)
    with pytest.raises(ValueError, match=missing):
        simulate_log(shop, requests=10)


def test_labels_of_unknown_products_are_refused_and_nothing_is_written(tmp_path):
    given = tables()
    given["products"] = given["products"].head(50)
    shop = write_dataset(tmp_path / "shop", DatasetSpec(name="shop"), **given)
    files = sorted(shop.iterdir())
    with pytest.raises(ValueError, match="that the side table lacks"):
        simulate_log(shop, requests=10)
    assert sorted(shop.iterdir()) == files


def test_a_label_of_three_is_refused(tmp_path):
    given = tables()
    given["relevance"] = given["relevance"].with_columns(label=pl.lit(3, dtype=pl.Int8))
    shop = write_dataset(tmp_path / "shop", DatasetSpec(name="shop"), **given)
    with pytest.raises(ValueError, match=r"the value is 3"):
        simulate_log(shop, requests=10)


def test_an_empty_table_is_refused(tmp_path):
    given = tables()
    given["queries"] = given["queries"].head(0)
    shop = write_dataset(tmp_path / "shop", DatasetSpec(name="shop"), **given)
    with pytest.raises(ValueError, match="queries"):
        simulate_log(shop, requests=10)


def test_a_catalogue_smaller_than_a_page_is_shown_whole(tmp_path):
    given = tables(n_products=6, n_queries=3)
    shop = write_dataset(tmp_path / "shop", DatasetSpec(name="shop"), **given)
    simulate_log(shop, requests=20, parameters=WorldParameters(reserve_micros=0))
    impressions = pl.read_parquet(shop / "impressions.parquet")
    assert impressions.height == 20 * 6
