"""A log built in partitions on disk: as in memory, whatever the partitions and workers."""

import errno
import json
import shutil
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from features import build, build_steps
from features.arrays import ARRAYS, PARTS, RUN_ROWS, FeatureArrays
from features.build import build_features
from features.dataset import Dataset, write_dataset
from features.pipeline import FeaturePipeline
from features.schema import SPEC_FILE, FeatureNames, SplitRule, write_spec

NAMES = FeatureNames(
    sparse=("user_id", "query_id", "products.brand", "time.hour"),
    dense=("products.price", "age"),
    hashed={"user_id": 4},
    bags={"products.tags": 2},
    scaling={"age": "quantile"},
    target_statistics=("product_id", ("query_id", "product_id")),
)


@pytest.fixture
def folder(tmp_path, tables, spec):
    tags = pl.Series([["a"], ["a", "b"], [], None, ["b", "a"], ["c"]])
    log = tables["impressions"].with_columns(
        age=pl.int_range(pl.len()) % 40,
        purchased=pl.col("clicked") & (pl.int_range(pl.len()) % 2),
        sample_weight=1 + pl.int_range(pl.len()) % 5 / 4,
        time=pl.col("time") + pl.duration(minutes=pl.col("position")),
        user_id=pl.when(pl.int_range(pl.len()) // 3 % 7 > 0).then(pl.col("user_id")),
    )
    del tables["events"]
    tables["products"] = tables["products"].with_columns(tags=tags).drop("image")
    spec = spec.model_copy(update={"features": NAMES})
    folder = write_dataset(tmp_path / "data", spec, **{**tables, "impressions": log})
    log.write_parquet(folder / "impressions.parquet", row_group_size=17)
    return folder


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(build, "UNIT_ROWS", 40)
    monkeypatch.setattr(build, "BLOCK_ROWS", 25)


def bytes_of(arrays: FeatureArrays) -> dict[str, str]:
    return arrays.manifest["sha256"]


def test_arrays_hold_what_the_pipeline_gives_in_memory(tmp_path, folder):
    arrays = build_features(folder, tmp_path / "out", partitions=3, workers="local:1")
    dataset = Dataset.open(folder)
    split = dataset.split()
    pipeline = FeaturePipeline(dataset.spec).fit(dataset, split.train)
    assert arrays.manifest["sparse_names"] == list(pipeline.sparse_names)
    assert arrays.manifest["dense_names"] == list(pipeline.dense_names)
    for part in PARTS:
        expected = pipeline.transform(getattr(split, part))
        got = arrays.examples(part)
        assert len(got) == len(expected)
        # Training rows are shuffled: each is found again by its time and product.
        left, right = (np.lexsort((e.product_N, e.time_us_N)) for e in (got, expected))
        for name in ARRAYS:
            if name not in ("user_N", "request_N"):
                left_N, right_N = getattr(got, name)[left], getattr(expected, name)[right]
                np.testing.assert_array_equal(left_N, right_N, err_msg=name)
        assert len(np.unique(got.user_N)) == len(np.unique(expected.user_N))
        assert len(np.unique(got.request_N)) == len(np.unique(expected.request_N))
    again = FeaturePipeline.load(tmp_path / "out" / "features")
    np.testing.assert_array_equal(
        again.transform(split.test).dense_NC, pipeline.transform(split.test).dense_NC
    )


def test_a_request_astride_a_boundary_stays_whole(tmp_path, folder):
    begin = pl.read_parquet(folder / "impressions.parquet")["time"].min()
    # The rows of a request are a minute apart; both boundaries fall within one.
    rule = SplitRule(
        validation_start=begin + timedelta(days=25, seconds=90),
        test_start=begin + timedelta(days=33, seconds=90),
    )
    write_spec(Dataset.open(folder).spec.model_copy(update={"split": rule}), folder / SPEC_FILE)
    arrays = build_features(folder, tmp_path / "out", partitions=3, workers="local:1")
    split = Dataset.open(folder).split()
    for part in PARTS:
        expected = getattr(split, part)["time"].cast(pl.Int64).sort().to_list()
        assert sorted(arrays.array(part, "time_us_N").tolist()) == expected
    assert arrays.array("test", "time_us_N").min() > rule.test_start.timestamp() * 1e6


def test_one_partition_or_seven_give_the_same_bytes(tmp_path, folder):
    one = build_features(folder, tmp_path / "one", partitions=1, workers="local:1")
    seven = build_features(folder, tmp_path / "seven", partitions=7, workers="local:1")
    assert bytes_of(one) == bytes_of(seven) and len(bytes_of(one)) > 30
    other = build_features(folder, tmp_path / "other", partitions=1, workers="local:1", seed=1)
    train = "train/time_us_N.npy"
    assert bytes_of(other)[train] != bytes_of(one)[train]


def test_a_sample_scales_alike_however_the_log_is_cut(tmp_path, folder):
    two, five = (
        build_features(
            folder, tmp_path / str(cut), partitions=cut, workers="local:1", sample_rows=30
        )
        for cut in (2, 5)
    )
    assert bytes_of(two) == bytes_of(five)


def test_processes_give_the_same_bytes(tmp_path, folder):
    here = build_features(folder, tmp_path / "here", partitions=2, workers="local:1")
    pool = build_features(folder, tmp_path / "pool", partitions=2, workers="local:2")
    assert bytes_of(here) == bytes_of(pool)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_ray_data_gives_the_same_bytes(tmp_path, folder):
    ray = pytest.importorskip("ray")
    here = build_features(folder, tmp_path / "here", partitions=2, workers="local:1")
    try:
        by_ray = build_features(folder, tmp_path / "ray", partitions=2, workers="ray:2")
    finally:
        ray.shutdown()
    assert bytes_of(here) == bytes_of(by_ray)


def test_an_interrupted_build_goes_on_and_redoes_nothing(tmp_path, folder, monkeypatch):
    whole = build_features(folder, tmp_path / "whole", partitions=3, workers="local:1")
    step, done = build_steps.transform_partition, []

    def dies(scratch, partition):
        if partition == 2:
            raise KeyboardInterrupt
        return step(scratch, partition)

    monkeypatch.setattr(build, "transform_partition", dies)
    with pytest.raises(KeyboardInterrupt):
        build_features(folder, tmp_path / "out", partitions=3, workers="local:1")
    with pytest.raises(ValueError, match="was `adtower features build` interrupted"):
        FeatureArrays.open(tmp_path / "out")
    monkeypatch.setattr(build, "transform_partition", step)
    transform = FeaturePipeline.transform

    def counted(self, frame):
        done.append(len(frame))
        return transform(self, frame)

    monkeypatch.setattr(FeaturePipeline, "transform", counted)
    again = build_features(folder, tmp_path / "out", partitions=3, workers="local:1")
    assert bytes_of(again) == bytes_of(whole) and len(done) == 1
    build_features(folder, tmp_path / "out", partitions=3, workers="local:1")
    assert len(done) == 1, "what is built already is not built again"
    assert not list((tmp_path / "out").glob(".build-*"))


def test_only_shuffled_rows_may_be_read_in_runs(tmp_path, folder):
    arrays = build_features(folder, tmp_path / "out", workers="local:1")
    assert [arrays.examples(part).run_rows for part in PARTS] == [RUN_ROWS, 1, 1]
    train = arrays.examples("train")
    assert (np.diff(train.time_us_N) < 0).any()
    assert train.take(np.argsort(train.time_us_N)).run_rows == 1


def test_columns_that_a_log_may_lack_give_arrays_where_it_has_them(tmp_path, folder):
    build_features(folder, tmp_path / "with", workers="local:1")
    log = pl.read_parquet(folder / "impressions.parquet").drop("purchased", "sample_weight")
    log.write_parquet(folder / "impressions.parquet")
    plain = build_features(folder, tmp_path / "without", workers="local:1").examples("train")
    assert plain.purchased_N is None and plain.weight_N is None
    rich = FeatureArrays.open(tmp_path / "with").examples("train")
    assert rich.purchased_N is not None and rich.weight_N is not None
    assert rich.position_N is not None and set(rich.position_N) == {1, 2, 3}


def test_wrong_rows_are_refused_with_their_file(tmp_path, folder):
    log = pl.read_parquet(folder / "impressions.parquet")

    def refused(changed, message):
        changed.write_parquet(folder / "impressions.parquet", row_group_size=17)
        with pytest.raises(ValueError, match=message):
            build_features(folder, tmp_path / "out", workers="local:1")

    nan = pl.when(pl.int_range(pl.len()) == 50).then(float("nan")).otherwise(1.0)
    refused(log.with_columns(age=nan), r"rows counted from 34: .*'age' is nan in row 16")
    infinite = pl.when(pl.int_range(pl.len()) == 3).then(float("inf")).otherwise(1.0)
    refused(log.with_columns(age=infinite), "'age' is inf in row 3")
    two = pl.when(pl.int_range(pl.len()) == 2).then(2).otherwise("clicked")
    refused(log.with_columns(clicked=two), "clicked, row 2: the value is 2")
    refused(log.with_columns(clicked=pl.lit(0)), "one class")
    refused(log.rename({"age": "years"}), "lack the column age")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_events_feed_the_histories(tmp_path, folder, tables, dataset):
    log = pl.read_parquet(folder / "impressions.parquet")
    events = log.filter(pl.col("user_id").is_not_null())[:40].select(
        "user_id", "product_id", pl.col("time") + timedelta(hours=1), kind=pl.lit("purchase")
    )
    spec = Dataset.open(folder).spec
    made = write_dataset(
        tmp_path / "with_events",
        spec,
        products=pl.read_parquet(folder / "products.parquet"),
        impressions=log,
        events=events,
    )
    built = build_features(made, tmp_path / "out", partitions=4, workers="local:1")
    opened = Dataset.open(made)
    pipeline = FeaturePipeline(spec).fit(opened, opened.split().train)
    expected = pipeline.transform(opened.split().test).history_NL
    assert (expected >= 0).any()
    np.testing.assert_array_equal(built.array("test", "history_NL"), expected)


def test_events_that_came_before_their_impression_are_refused(tmp_path, folder):
    log = pl.read_parquet(folder / "impressions.parquet").drop_nulls("user_id")
    events = log[:9].select(
        *("user_id", "product_id", "request_id"),
        pl.col("time") - timedelta(seconds=1),
        kind=pl.lit("purchase"),
    )
    products = pl.read_parquet(folder / "products.parquet")
    tables = {"products": products, "impressions": log, "events": events}
    made = write_dataset(tmp_path / "early", Dataset.open(folder).spec, **tables)
    with pytest.raises(ValueError, match="stamped before its cause"):
        build_features(made, tmp_path / "out", partitions=2, workers="local:1")


def test_a_full_disk_is_said_in_words(tmp_path, folder, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build_steps.np, "save", full)
    with pytest.raises(ValueError, match=r"is full: .*it goes on where it stopped"):
        build_features(folder, tmp_path / "out", workers="local:1")
    monkeypatch.undo()
    build_features(folder, tmp_path / "out", workers="local:1")

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(build.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"has 0\.0 GB free: .*120 rows"):
        build_features(folder, tmp_path / "other", workers="local:1")


def test_arrays_that_do_not_fit_together_are_refused(tmp_path, folder):
    out = tmp_path / "out"
    arrays = build_features(folder, out, workers="local:1")
    with pytest.raises(ValueError, match="a feature was renamed or fitted anew"):
        FeatureArrays.open(out, features="0" * 64)
    FeatureArrays.open(out, features=arrays.manifest["features"])
    path = out / "test" / "label_N.npy"
    label_N = np.load(path)
    np.save(path, label_N[:-1])
    with pytest.raises(ValueError, match="test/label_N has 23 rows and the manifest says 24"):
        FeatureArrays.open(out)
    np.save(path, label_N)
    history = out / "train" / "history_NL.npy"
    np.save(history, np.pad(np.load(history), ((0, 0), (0, 1))))
    with pytest.raises(ValueError, match="history_NL is 17 wide, and its cap in the manifest 16"):
        FeatureArrays.open(out)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "format": 9}))
    with pytest.raises(ValueError, match="has format 9"):
        FeatureArrays.open(out)


def test_a_folder_of_other_things_is_left_alone(tmp_path, folder):
    with pytest.raises(ValueError, match="holds other files"):
        build_features(folder, folder, workers="local:1")
    with pytest.raises(ValueError, match="partitions is 0"):
        build_features(folder, tmp_path / "out", partitions=0)
