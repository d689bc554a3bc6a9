"""Variants are found by name, and refused where the data cannot feed them."""

import polars as pl
import pytest

from experiments.config import RunConfig
from experiments.training import new_model
from experiments.variants import CONTROLS, REGISTRY, STANDARD, feasible_variants, find_variants
from features.dataset import Dataset
from features.schema import DatasetSpec
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig

IMPRESSIONS = pl.DataFrame({"request_id": ["r"]})
SPEC = DatasetSpec(name="log")


def dataset(**tables):
    return Dataset.from_tables(SPEC, impressions=IMPRESSIONS, **tables)


def test_impressions_alone_refuse_embedding_variants_and_name_the_tables():
    with pytest.raises(ValueError, match="no products and no queries and no relevance") as error:
        find_variants(["production", "dashclip"], dataset())
    assert "dashclip need" in str(error.value)
    assert "--variants production" in str(error.value)


def test_impressions_alone_feed_the_models_without_vectors():
    assert feasible_variants(dataset()) == ["production", "logistic", "lightgbm"]


def test_a_catalogue_without_images_feeds_all_but_the_image_variants():
    tables = {
        "products": pl.DataFrame({"product_id": ["p"], "title": ["t"]}),
        "queries": pl.DataFrame({"query_id": ["q"], "query": ["w"]}),
        "relevance": pl.DataFrame({"query_id": ["q"], "product_id": ["p"], "label": [2]}),
    }
    feasible = feasible_variants(dataset(**tables), tuple(REGISTRY))
    assert set(REGISTRY) - set(feasible) == {
        "stage1",
        "image_only",
        "position_tower",
        "entire_space",
    }


def test_an_unknown_variant_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown variants \['dashclop'\]; known are production"):
        find_variants(["dashclop"], dataset())


def test_a_variant_named_twice_is_refused():
    with pytest.raises(ValueError, match="named twice"):
        find_variants(["production", "production"], dataset())


def test_both_placebos_stand_in_the_standard_set():
    assert set(CONTROLS) <= set(STANDARD)


def test_positions_and_purchases_are_named_where_they_are_missing():
    with pytest.raises(ValueError, match=r"no impressions\.position and no impressions\.purchased"):
        find_variants(["position_tower", "entire_space"], dataset())


@pytest.mark.parametrize("name", REGISTRY)
def test_a_variant_keeps_the_settings_it_is_given_but_those_that_make_it(name, tmp_path):
    tower = TowerConfig(batch_size=77, semantic_codes=9)
    variant = REGISTRY[name]()
    model = new_model(variant, RunConfig(data=tmp_path, out=tmp_path, tower=tower))
    if variant.model != "tower":
        assert not isinstance(model, TowerRanker)
        return
    assert isinstance(model, TowerRanker)
    assert (model.config.batch_size, model.config.semantic_codes) == (77, 9)
    assert model.uses_vectors == (variant.vectors is not None)
    for setting, value in variant.tower.items():
        assert getattr(model.config, setting) == value


def test_every_variant_is_registered_under_its_own_name():
    assert all(make().name == name for name, make in REGISTRY.items())
