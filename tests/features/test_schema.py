from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from features.schema import DatasetSpec, FeatureNames, SplitRule, TableFiles, load_spec, write_spec


def test_a_spec_survives_writing_and_reading(tmp_path):
    spec = DatasetSpec(
        name='a "quoted" näme\n',
        simulated=True,
        tables=TableFiles(products="products.parquet", impressions="s3://bucket/log"),
        features=FeatureNames(sparse=("user_id", "products.brand"), dense=("products.price",)),
        split=SplitRule(
            validation_start=datetime(2024, 1, 1), test_start=datetime(2024, 2, 1, tzinfo=UTC)
        ),
    )
    write_spec(spec, tmp_path / "dataset.toml")
    assert load_spec(tmp_path / "dataset.toml") == spec


def test_a_toml_written_by_hand_gets_the_defaults(tmp_path):
    (tmp_path / "dataset.toml").write_text(
        'name = "shop"\n[tables]\nimpressions = "log.parquet"\n[features]\nsparse = ["user_id"]\n'
    )
    spec = load_spec(tmp_path / "dataset.toml")
    assert (spec.history.window_days, spec.history.max_length) == (84, 16)
    assert (spec.split.validation_fraction, spec.split.test_fraction) == (0.1, 0.2)
    assert spec.features.dense == () and not spec.simulated


def test_times_without_a_zone_are_utc():
    rule = SplitRule(validation_start="2024-01-01", test_start="2024-02-01T01:00:00+01:00")  # type: ignore[arg-type]
    assert rule.validation_start == datetime(2024, 1, 1, tzinfo=UTC)
    assert rule.test_start == datetime(2024, 2, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('name = "x"\nfetures = 1', "fetures is not a known key"),
        ('name = "x"\n[tables]\nproduct = "p"', r"tables\.product is not a known key"),
        ('name = "x"\n[features]\nspare = ["a"]', r"features\.spare is not a known key"),
        ('name = "x"\n[features]\nsparse = [1]', r"features\.sparse\.0: .* valid string"),
        ('name = "x"\n[history]\nwindow_days = 0', "history: window_days is 0; must be"),
        ('name = "x"\n[history]\ndays = 9', r"history\.days is not a known key"),
        ('name = "x"\n[features]\nsparse = ["clicked"]', "leaks the label"),
        ('name = "x"\n[features]\nsparse = ["user_id"]\ndense = ["user_id"]', "more than once"),
        ('name = "x"\n[features]\nsparse = ["time.minute"]', "time has hour and weekday"),
        ('name = "x"\n[features]\nsparse = ["shops.town"]', "products, queries, time"),
        ('name = "x"\n[features]\nsparse = ["products.image"]', "embeddings"),
        ('name = "x"\n[split]\ntest_start = "2024-01-01"', "together"),
        ('name = "x"\n[split]\ntest_fraction = 0.95', "nothing to train on"),
        ('name = "x"\n[split]\ntest_fraction = 0', "greater than 0"),
        (
            'name = "x"\n[split]\ntest_start = "2024-01-01"\nvalidation_start = "2024-01-01"',
            "must lie before",
        ),
        ("name = ", "not valid TOML"),
        ('[tables]\nproducts = "p"', "name: Field required"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, toml, message):
    (tmp_path / "dataset.toml").write_text(toml)
    with pytest.raises(ValueError, match=message):
        load_spec(tmp_path / "dataset.toml")


def test_a_folder_without_a_spec_is_told_what_a_dataset_is(tmp_path):
    with pytest.raises(ValueError, match="folder with parquet tables"):
        load_spec(tmp_path / "dataset.toml")


def test_specs_cannot_be_changed():
    with pytest.raises(ValidationError):
        DatasetSpec(name="x").name = "y"  # type: ignore[misc]
