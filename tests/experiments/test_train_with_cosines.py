"""``similarity_bins`` in a run: every variant is given the cosines of its own vectors."""

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from embeddings.stage1_config import Stage1Config
from embeddings.stage2_config import Stage2Config
from embeddings.store import VectorStore
from experiments import commands, pipeline, tune
from experiments.config import RunConfig
from experiments.marketplace.world import make_world
from experiments.pipeline import Run
from features.build import build_features
from features.pipeline import FeaturePipeline
from ranking.certificate import verify_bundle
from ranking.tower_config import TowerConfig

QUICK = {
    "stage1": Stage1Config(
        text_weights="random", image_width=24, image_layers=1, steps=4, batch=16, warmup_steps=1
    ),
    "stage2": Stage2Config(steps=4, batch=16, warmup_steps=1),
    "tower": TowerConfig(max_epochs=1, batch_size=100, production_mlp=(16,), cross_layers=1),
    "track": False,
}
KINDS = ("products", "queries")
VARIANTS = ("production", "random_vectors", "dashclip", "lightgbm_dashclip")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    at = make_world(tmp_path_factory.mktemp("w") / "world", products=100, requests=300, seed=0)
    toml = at / "dataset.toml"
    toml.write_text(toml.read_text().replace("[features]\n", "[features]\nsimilarity_bins = 3\n"))
    return at


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("r") / "run"
    commands.train(RunConfig(data=world, out=out, variants=VARIANTS, workers=1, **QUICK))
    return out


def line_of(folder):
    line = Run.reopen(folder)
    return line, {variant.name: variant for variant in line.variants}


def cosines(line, variant):
    test = line.parts_of(variant).test
    own = [i for i, name in enumerate(test.dense_names) if name.startswith("cosine.")]
    return test.dense_NC[:, own]


def test_each_kind_of_vectors_gives_its_own_columns(trained):
    line, by_name = line_of(trained)
    names = line.parts_of(by_name["dashclip"]).test.dense_names
    assert "cosine.query" in names and "cosine.history_bin3" in names
    assert not any(
        "cosine." in name for name in line.parts_of(by_name["production"]).test.dense_names
    )
    own, random = cosines(line, by_name["dashclip"]), cosines(line, by_name["random_vectors"])
    assert np.abs(own - random).max() > 0.1
    np.testing.assert_array_equal(own, cosines(line, by_name["lightgbm_dashclip"]))
    for name, variant in by_name.items():
        found = line.train(variant)[0].model().signature_.dense_names
        assert found == line.pipeline_of(variant).dense_names, name


def test_processes_train_the_same_models_to_the_bit(trained, world, tmp_path):
    config = RunConfig(data=world, out=tmp_path / "run", variants=VARIANTS, workers=2, **QUICK)
    commands.train(config)
    for name in VARIANTS:
        at = f"variants/{name}/seed0/predictions.parquet"
        assert_frame_equal(pl.read_parquet(config.out / at), pl.read_parquet(trained / at))


@pytest.mark.parametrize("names", [["dashclip"], ["dashclip", "lightgbm_dashclip"], ["production"]])
def test_a_bundle_scores_as_the_models_do(names, trained, tmp_path):
    bundle = commands.export(trained, tmp_path / "bundle", variants=names)
    assert verify_bundle(bundle).passed
    line, by_name = line_of(trained)
    rows = line.split.test.drop("clicked", "purchased").head(200)
    rows.write_parquet(tmp_path / "rows.parquet")
    commands.score(bundle, tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    logit_MN = [
        np.log(p_N / (1 - p_N))
        for p_N in (line.scorer(line.train(by_name[name])[0])(rows) for name in names)
    ]
    expected_N = 1 / (1 + np.exp(-np.mean(logit_MN, axis=0)))
    found_N = pl.read_parquet(tmp_path / "scores.parquet")["p_click"].to_numpy()
    np.testing.assert_allclose(found_N, expected_N, atol=1e-6)


def test_models_given_other_columns_are_not_averaged(trained, tmp_path):
    with pytest.raises(ValueError, match="was fitted with other features or vectors"):
        commands.export(trained, tmp_path / "bundle", variants=["dashclip", "production"])


def test_training_goes_on_with_the_scales_of_the_earlier_run(trained, world, tmp_path):
    config = RunConfig(
        data=world,
        out=tmp_path / "again",
        variants=("random_vectors",),
        start_from=trained,
        workers=1,
        **QUICK,
    )
    commands.train(config)
    before, after = (line_of(folder) for folder in (trained, config.out))
    left, right = (line.pipeline_of(names["random_vectors"]) for line, names in (before, after))
    rows = before[0].split.test
    np.testing.assert_array_equal(left.transform(rows).dense_NC, right.transform(rows).dense_NC)


def test_a_run_without_vectors_says_that_it_has_no_cosines(world, tmp_path):
    out = tmp_path / "run"
    line = Run(RunConfig(data=world, out=out, variants=("production",), **QUICK))
    assert "no variant here has vectors" in line.left_out["similarity_bins"]


@pytest.mark.parametrize("workers", [1, 2])
def test_built_cosines_serve_the_variant_of_their_vectors_alone(trained, world, tmp_path, workers):
    stores = (VectorStore.open(trained / f"embeddings/dashclip/{kind}") for kind in KINDS)
    built = build_features(world, tmp_path / "features", workers="local:1", vectors=(*stores,))
    config = RunConfig(
        data=world,
        out=tmp_path / "run",
        features=built.folder,
        variants=VARIANTS[:3],
        workers=workers,
        **QUICK,
    )
    commands.train(config)
    line, by_name = line_of(config.out)
    before, earlier = line_of(trained)
    own = line.parts_of(by_name["dashclip"])
    assert own.test.dense_names == before.parts_of(earlier["dashclip"]).test.dense_names
    np.testing.assert_array_equal(own.test.dense_NC, built.array("test", "dense_NC"))
    assert isinstance(own.train.dense_NC, np.memmap)
    plain = line.parts_of(by_name["production"]).test
    np.testing.assert_array_equal(
        plain.dense_NC, before.parts_of(earlier["production"]).test.dense_NC
    )
    np.testing.assert_array_equal(
        cosines(line, by_name["random_vectors"]), cosines(before, earlier["random_vectors"])
    )
    bundle = commands.export(config.out, tmp_path / "bundle", variants=["dashclip"])
    assert verify_bundle(bundle).passed


def test_training_goes_on_with_built_cosines_and_with_its_own(trained, world, tmp_path):
    stores = (VectorStore.open(trained / f"embeddings/dashclip/{kind}") for kind in KINDS)
    earlier = trained / "features_dashclip"
    built = build_features(
        world, tmp_path / "features", workers="local:1", vectors=(*stores,), start_from=earlier
    )
    config = RunConfig(
        data=world,
        out=tmp_path / "run",
        features=built.folder,
        start_from=trained,
        variants=VARIANTS[:3],
        workers=1,
        **QUICK,
    )
    commands.train(config)
    before, after = (line_of(folder) for folder in (trained, config.out))
    for name in VARIANTS[:3]:
        left, right = (line.parts_of(by_name[name]).test for line, by_name in (before, after))
        np.testing.assert_array_equal(left.dense_NC, right.dense_NC)


def test_settings_are_searched_with_the_cosines_of_the_variant(
    trained, world, tmp_path, monkeypatch
):
    stores = (VectorStore.open(trained / f"embeddings/dashclip/{kind}") for kind in KINDS)
    built = build_features(world, tmp_path / "features", workers="local:1", vectors=(*stores,))
    given = []

    def train(trial, line, variant, *parts):
        given.extend(parts)
        tune._propose(trial)
        trial.set_user_attr("validation_auc", 0.5)
        return 0.1

    monkeypatch.setattr(tune, "_train", train)
    config = {"data": world, "variant": "off_the_shelf", "trials": 1}
    tune.tune(tune.TuneConfig(out=tmp_path / "disk", features=built.folder, **config))
    tune.tune(tune.TuneConfig(out=tmp_path / "memory", **config))
    _, ours, _, theirs = given
    assert ours.dense_names == theirs.dense_names and "cosine.query" in ours.dense_names


def test_a_run_that_is_read_again_fits_nothing(trained, monkeypatch):
    def fits(*_args, **_options):
        raise AssertionError("features were fitted again")

    monkeypatch.setattr(FeaturePipeline, "fit", fits)
    monkeypatch.setattr(FeaturePipeline, "compared_by", fits)
    monkeypatch.setattr(pipeline, "check_dataset", fits)
    line, by_name = line_of(trained)
    for variant in by_name.values():
        p_N = (
            line.train(variant)[0]
            .model()
            .predict_proba(line.parts_of(variant).test, line.joined(variant))
        )
        np.testing.assert_array_equal(p_N, line.train(variant)[0].p_test_N)
