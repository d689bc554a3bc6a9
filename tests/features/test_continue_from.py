"""Features that go on from earlier ones: known values keep their rows."""

from dataclasses import replace

import polars as pl
import pytest

from experiments.marketplace.world import make_world
from features.dataset import Dataset
from features.pipeline import FeaturePipeline
from features.sparse import Vocabulary


def test_known_values_keep_their_rows_and_new_ones_follow():
    before = Vocabulary(min_count=1).fit(pl.Series("brand", ["b", "b", "a"]))
    after = Vocabulary(min_count=1).fit(pl.Series("brand", ["c", "c", "a", "d"]))
    after.continue_from(before)
    assert after.values_ == ["b", "a", "c", "d"]
    assert after.transform(pl.Series("brand", ["a", "b", "c", "e"])).tolist() == [2, 1, 3, 0]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("w") / "world"
    return Dataset.open(make_world(folder, products=80, requests=200, seed=0))


def test_a_pipeline_goes_on_with_rows_and_scales(world):
    split = world.split()
    half = split.train.head(len(split.train) // 2)
    earlier = FeaturePipeline(world.spec).fit(world, half)
    now = FeaturePipeline(world.spec).fit(world, split.train)
    now.continue_from(earlier)
    known, grown = earlier.transform(half), now.transform(half)
    assert (grown.sparse_NF == known.sparse_NF)[known.sparse_NF > 0].all()
    assert (grown.dense_NC == known.dense_NC).all()
    pairs = zip(grown.vocabulary_sizes, known.vocabulary_sizes, strict=True)
    assert all(new >= old for new, old in pairs)
    assert sum(grown.vocabulary_sizes) > sum(known.vocabulary_sizes)


def test_other_features_are_refused(world):
    train = world.split().train
    spec = world.spec
    fewer = replace(spec.features, sparse=spec.features.sparse[:-1])
    earlier = FeaturePipeline(spec.model_copy(update={"features": fewer})).fit(world, train)
    with pytest.raises(ValueError, match="the earlier run has the features"):
        FeaturePipeline(spec).fit(world, train).continue_from(earlier)
