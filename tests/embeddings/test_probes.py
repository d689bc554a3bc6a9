import numpy as np
import polars as pl
import pytest

from embeddings.baselines import shuffled
from embeddings.probes import category_probe, category_probes, probe_rows
from embeddings.store import VectorStore


def store(ids, vectors):
    return VectorStore.from_arrays(ids, np.array(vectors), kind="k", encoder_fingerprint="e")


@pytest.fixture(scope="module")
def shop():
    """400 products of three categories, and vectors that tell them."""
    rng = np.random.default_rng(0)
    category = rng.integers(0, 3, 400)
    ids = [f"p{i}" for i in range(400)]
    products = pl.DataFrame(
        {"product_id": ids, "category": [f"c{c}" for c in category], "group_id": ids}
    )
    return products, store(ids, np.eye(3)[category] + rng.normal(0, 0.1, (400, 3)))


def test_all_probes_read_what_is_there_and_none_what_is_not(shop):
    products, told = shop
    for name, f1 in category_probes(probe_rows(told, products), seed=0).items():
        assert f1 == pytest.approx(1, abs=0.02), name
    for name, f1 in category_probes(probe_rows(shuffled(told, 0), products), seed=0).items():
        assert f1 < 0.5, name
    assert category_probe(told, products) == pytest.approx(1, abs=0.02)


def test_curved_borders_are_read_by_neighbours_and_mlp_alone():
    rng = np.random.default_rng(1)
    sign = rng.choice([-1.0, 1.0], (600, 2))
    vectors = np.c_[sign + rng.normal(0, 0.1, (600, 2)), rng.normal(0, 0.1, (600, 2))]
    ids = [f"p{i}" for i in range(600)]
    same = np.where(sign.prod(axis=1) > 0, "same", "other")
    products = pl.DataFrame({"product_id": ids, "category": same})
    f1 = category_probes(probe_rows(store(ids, vectors), products), seed=0)
    assert f1["knn_f1"] > 0.95 and f1["mlp_f1"] > 0.95
    assert f1["linear_f1"] < 0.7


def test_a_listing_and_its_duplicate_stand_on_one_side(shop):
    # Distinct vectors per group say nothing about other groups: duplicates must not leak.
    products, _ = shop
    group = np.arange(400) // 4
    category = np.random.default_rng(0).integers(0, 3, 100)[group]
    leaky = products.with_columns(
        pl.Series("group_id", [f"g{g}" for g in group]),
        pl.Series("category", [f"c{c}" for c in category]),
    )
    rows = probe_rows(store(products["product_id"].to_list(), np.eye(100)[group]), leaky)
    assert max(category_probes(rows, seed=0).values()) < 0.55
    sides = {(g, bool(h)) for g, h in zip(group, rows.held_V, strict=True)}
    assert len(sides) == 100


def test_the_sample_is_the_same_for_every_store_and_of_the_size_asked(shop):
    products, told = shop
    some, others = (
        probe_rows(one, products, max_rows=150, seed=2) for one in (told, shuffled(told, 1))
    )
    assert len(some.category_V) == 150
    assert some.category_V.tolist() == others.category_V.tolist()
    assert some.held_V.tolist() == others.held_V.tolist()


def test_without_two_categories_there_is_nothing_to_read(shop):
    products, told = shop
    assert probe_rows(told, products.drop("category")) is None
    assert probe_rows(told, products.with_columns(category=pl.lit("one"))) is None
    few = products.with_columns(category=pl.lit("c") + pl.int_range(400).cast(pl.String))
    assert category_probe(told, few) is None
