"""Click models trained on arrays that lie on disk: the same rows, and the log is not read."""

import json
import re
import shutil
from contextlib import contextmanager

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from experiments import commands, schedule_trainings
from experiments.config import RunConfig
from experiments.marketplace.world import make_world
from experiments.pipeline import Run
from experiments.tune import tune
from experiments.tune_config import TuneConfig
from features.array_record import write_record
from features.build import build_features
from features.dataset import Dataset
from features.examples import Examples
from features.pipeline import FeaturePipeline
from ranking.certificate import verify_bundle
from ranking.tower_config import TowerConfig

QUICK = {
    "tower": TowerConfig(max_epochs=1, batch_size=100, production_mlp=(16,), cross_layers=1),
    "track": False,
}
VARIANTS = ("production", "off_the_shelf", "lightgbm")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = make_world(tmp_path_factory.mktemp("w") / "world", products=100, requests=600, seed=0)
    log = pl.read_parquet(world / "impressions.parquet")
    log.write_parquet(world / "impressions.parquet", row_group_size=130)
    return world


@pytest.fixture(scope="module")
def built(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("f") / "features"
    build_features(world, out, workers="local:1", partitions=3)
    return out


@contextmanager
def unread_log():
    """Fail whoever reads a log whole."""
    table = Dataset.raw_table

    def no_log(self, name):
        assert name not in ("impressions", "events"), f"{name} were read"
        return table(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dataset, "raw_table", no_log)
        yield


@pytest.fixture(scope="module")
def trained(world, built, tmp_path_factory):
    out = tmp_path_factory.mktemp("r") / "run"
    with unread_log():
        commands.train(
            RunConfig(data=world, out=out, features=built, variants=VARIANTS, workers=1, **QUICK)
        )
        figures = commands.evaluate(out)
    return out, figures


@pytest.fixture(scope="module")
def in_memory(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("m") / "run"
    commands.train(RunConfig(data=world, out=out, variants=VARIANTS, workers=1, **QUICK))
    return out, commands.evaluate(out)


def test_rows_are_those_of_features_made_in_memory(trained, in_memory):
    disk, memory = (Run.reopen(out).parts for out, _ in (trained, in_memory))
    for part in ("validation", "test"):
        ours, theirs = getattr(disk, part), getattr(memory, part)
        for name in ("sparse_NF", "dense_NC", "product_N", "history_NL", "label_N", "position_N"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert isinstance(disk.train.dense_NC, np.memmap) and disk.train.run_rows > 1


def test_trees_are_those_of_features_made_in_memory(trained, in_memory):
    ours, theirs = (figures["lightgbm"] for _, figures in (trained, in_memory))
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_networks_differ_by_the_order_of_the_rows_alone(trained, in_memory):
    for name in ("production", "off_the_shelf"):
        ours, theirs = (figures[name]["log_loss"] for _, figures in (trained, in_memory))
        assert ours != theirs and ours == pytest.approx(theirs, rel=0.05)


def test_the_data_are_described_alike(trained, in_memory):
    ours, theirs = (json.loads((out / "data.json").read_text()) for out, _ in (trained, in_memory))
    assert ours == theirs


def test_the_run_exports_and_the_bundle_scores(trained, tmp_path):
    options = {"variants": ("off_the_shelf",), "calibrate": "platt"}
    with unread_log():
        bundle = commands.export(trained[0], tmp_path / "bundle", **options)
    assert verify_bundle(bundle).passed


def test_validation_rows_are_drawn_as_from_a_log_in_memory(trained, in_memory):
    disk, memory = (Run.reopen(out) for out, _ in (trained, in_memory))
    for rows in (7, 100, 10**6):
        assert_frame_equal(disk.validation_sample(rows), memory.validation_sample(rows))
    np.testing.assert_array_equal(disk.validation_label_N, memory.validation_label_N)


def test_a_real_log_is_compared_and_reported_without_reading_it_whole(world, built, tmp_path):
    shutil.copytree(world, tmp_path / "real")
    toml = tmp_path / "real/dataset.toml"
    toml.write_text(toml.read_text().replace("simulated = true", "simulated = false"))
    config = {"data": tmp_path / "real", "variants": ("production", "lightgbm"), **QUICK}
    with unread_log():
        commands.run(RunConfig(out=tmp_path / "run", features=built, **config))
    page = (tmp_path / "run/report.html").read_text()
    assert f"--features {built}" in page
    assert json.loads((built / "manifest.json").read_text())["features"] in page
    commands.run(RunConfig(out=tmp_path / "memory", **config))
    ours, theirs = (
        json.loads((tmp_path / name / "leak_checks.json").read_text()) for name in ("run", "memory")
    )
    assert ours == theirs and all(check["clean"] for check in ours)


def test_several_processes_map_the_arrays_and_train_to_the_same_figures(
    world, built, trained, tmp_path, monkeypatch
):
    def no_rows(record, folder):
        assert not isinstance(record, Examples), "rows were copied"
        write_record(record, folder)

    monkeypatch.setattr(schedule_trainings, "write_record", no_rows)
    config = RunConfig(
        data=world, out=tmp_path / "run", features=built, variants=VARIANTS[:2], workers=2, **QUICK
    )
    commands.train(config)
    for name, measures in commands.evaluate(config.out).items():
        assert measures == trained[1][name]


def test_an_interrupted_run_goes_on(world, built, trained, tmp_path, monkeypatch):
    config = RunConfig(
        data=world, out=tmp_path / "run", features=built, variants=VARIANTS[:2], workers=1, **QUICK
    )
    train_one = Run.train_one

    def dies(self, variant, seed):
        if variant.name == "off_the_shelf":
            raise KeyboardInterrupt
        return train_one(self, variant, seed)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_one", dies)
        with pytest.raises(KeyboardInterrupt):
            commands.train(config)
    commands.train(config)
    for name, measures in commands.evaluate(config.out).items():
        assert measures == trained[1][name]


def test_settings_are_searched_on_built_features(world, built, tmp_path):
    config = TuneConfig(data=world, out=tmp_path / "search", features=built, trials=1, max_epochs=1)
    assert 0 < tune(config).default_log_loss_nats < 1


def test_features_of_other_data_or_settings_are_refused(world, built, trained, tmp_path):
    def refused(message, **changes):
        fields = {"data": world, "out": tmp_path / "run", "features": built, "track": False}
        with pytest.raises(ValueError, match=message):
            commands.train(RunConfig(**{**fields, **changes}))
        assert not (tmp_path / "run").exists()

    other = tmp_path / "other"
    shutil.copytree(world, other)
    toml = other / "dataset.toml"
    written = toml.read_text()
    toml.write_text(written.replace("[features]\n", "[features]\nsimilarity_bins = 3\n"))
    refused(r"another dataset.toml: \[features\] changed", data=other)
    toml.write_text(re.sub("test_fraction = .*", "test_fraction = 0.3", written))
    refused(r"another dataset.toml: \[split\] changed", data=other)
    toml.write_text(written)
    shutil.copy(other / "products.parquet", other / "queries.parquet")
    refused("was built from other tables", data=other)
    refused("min_count is 3, and .* was built with 2", min_count=3)
    refused("holds no built features", features=tmp_path)
    shutil.copytree(trained[0], tmp_path / "earlier")
    file = tmp_path / "earlier/features/transforms.json"
    transforms = json.loads(file.read_text())
    transforms["sparse"]["user_id"]["values"][:2] = transforms["sparse"]["user_id"]["values"][1::-1]
    file.write_text(json.dumps(transforms))
    refused("otherwise than those of the earlier model", start_from=tmp_path / "earlier")


def test_models_go_on_with_features_built_to_go_on(world, tmp_path):
    def config(name, data, **options):
        fields = {"data": data, "out": tmp_path / name, "variants": ("production",), "workers": 1}
        return RunConfig(**fields, **QUICK, **options)

    log = pl.read_parquet(world / "impressions.parquet")
    shutil.copytree(world, tmp_path / "early")
    log.head(len(log) // 2).write_parquet(tmp_path / "early/impressions.parquet")
    toml = tmp_path / "early/dataset.toml"
    toml.write_text(re.sub(".*_start = .*\n", "", toml.read_text()))
    first = config("first", tmp_path / "early")
    commands.train(first)
    built = {}
    for name, start_from in (("anew", None), ("on", first.out / "features")):
        out = tmp_path / f"features_{name}"
        built[name] = build_features(world, out, workers="local:1", start_from=start_from)
    assert built["on"].manifest["build"] != built["anew"].manifest["build"]
    again = config("again", world, features=built["anew"].folder, start_from=first.out)
    with pytest.raises(ValueError, match="otherwise than those of the earlier model"):
        commands.train(again)
    assert not again.out.exists()
    on = config("on", world, features=built["on"].folder, start_from=first.out)
    commands.train(on)
    before, after = (FeaturePipeline.load(run.out / "features") for run in (first, on))
    known_NF, grown_NF = (pipeline.transform(log).sparse_NF for pipeline in (before, after))
    assert (grown_NF == known_NF)[known_NF > 0].all() and (grown_NF != known_NF).any()
    # The same as a run that makes its features itself and goes on.
    memory = config("memory", world, start_from=first.out)
    commands.train(memory)
    ours, theirs = (Run.reopen(run.out).parts.test for run in (on, memory))
    np.testing.assert_array_equal(ours.sparse_NF, theirs.sparse_NF)
    np.testing.assert_array_equal(ours.dense_NC, theirs.dense_NC)
    fresh = config("fresh", world, features=built["anew"].folder)
    commands.train(fresh)
    losses = [
        Run.reopen(run.out).train_one(Run.reopen(run.out).variants[0], 0).curve[0]
        for run in (on, fresh)
    ]
    assert losses[0]["train_log_loss_nats"] < losses[1]["train_log_loss_nats"]


def test_a_run_is_known_by_what_its_features_hold_and_not_by_where_they_lie(world, built, tmp_path):
    def identity(features):
        return RunConfig(data=world, out=tmp_path, features=features).identity("data")

    shutil.copytree(built, tmp_path / "moved")
    assert identity(tmp_path / "moved") == identity(built)
    build_features(world, tmp_path / "anew", workers="local:1", seed=1)
    assert identity(tmp_path / "anew") != identity(built) != identity(None)
