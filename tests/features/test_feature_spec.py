"""What a saved pipeline says of features and history: read strictly, without a dataset."""

import json

import pytest

from features.feature_spec import FeatureNames, FeatureSpec, HistoryWindow
from features.schema import format_spec, parse_spec

SPEC = FeatureSpec(
    features=FeatureNames(sparse=("user_id", "products.brand", "time.hour"), dense=("bid",)),
    history=HistoryWindow(window_days=7, max_length=3),
)
FIELDS = json.loads(json.dumps(SPEC.to_json()))


def test_a_specification_survives_json():
    assert FeatureSpec.from_json(FIELDS) == SPEC


def test_a_dataset_says_the_same(spec):
    kept = FeatureSpec(features=spec.features, history=spec.history)
    assert FeatureSpec.from_json(spec.model_dump(mode="json")) == kept


WIDE = FeatureNames(
    sparse=("user_id",),
    dense=("age",),
    hashed={"user_id": 9},
    bags={"products.tags": 2},
    scaling={"age": "log"},
    target_statistics=("product_id", ("query_id", "products.brand")),
    statistics_grain="hour",
    similarity_bins=3,
)


def test_every_kind_of_feature_survives_json_and_toml(spec):
    wide = FeatureSpec(features=WIDE, history=HistoryWindow())
    assert FeatureSpec.from_json(json.loads(json.dumps(wide.to_json()))) == wide
    dataset = spec.model_copy(update={"features": WIDE})
    assert parse_spec(format_spec(dataset)) == dataset


def test_what_was_not_set_is_not_written():
    assert set(FIELDS["features"]) == {"sparse", "dense"}


def test_columns_are_named_wherever_they_are_used():
    assert WIDE.of_impressions() == ("user_id", "age", "product_id", "query_id")
    assert WIDE.of_table("products") == ("tags", "brand")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hashed": {"shop": 3}}, "hashed names shop, not listed under sparse"),
        ({"scaling": {"age": "log"}}, "scaling names age, not listed under dense"),
        ({"dense": ("age",), "scaling": {"age": "cube"}}, "'age' is 'cube'; must be one of"),
        ({"bags": {"tags": 0}}, "'tags' the size 0"),
        ({"bags": {"user_id": 2}}, "more than once"),
        ({"statistics_grain": "week"}, "statistics_grain is 'week'"),
        ({"statistics_smoothing": 0.0}, "statistics_smoothing is 0.0"),
        ({"target_statistics": ("clicked",)}, "leaks the label"),
        ({"target_statistics": (("a", "a"),)}, "name each column and each key once"),
        ({"target_statistics": ("a", ("a",))}, "name each column and each key once"),
        ({"similarity_bins": -1}, "similarity_bins is -1"),
    ],
)
def test_kinds_that_cannot_work_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        FeatureNames(**given)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (None, "no specification of features"),
        ([], "no specification of features"),
        ({"features": FIELDS["features"]}, "no specification of features.*history"),
        ({**FIELDS, "features": {"sparse": ["a"]}}, "no specification of features.*dense"),
        ({**FIELDS, "history": 7}, "no specification of features"),
        ({**FIELDS, "fetures": 1}, "no field .*fetures"),
        ({**FIELDS, "features": {**FIELDS["features"], "spare": []}}, "no field .*spare"),
        ({**FIELDS, "history": {**FIELDS["history"], "days": 1}}, "no field .*days"),
        ({**FIELDS, "features": {"sparse": "user_id", "dense": []}}, "sparse is 'user_id'"),
        ({**FIELDS, "features": {"sparse": [], "dense": [3]}}, "dense is "),
        ({**FIELDS, "features": {"sparse": ["a"], "dense": ["a"]}}, "more than once"),
        ({**FIELDS, "features": {"sparse": ["time.day"], "dense": []}}, "hour and weekday"),
        ({**FIELDS, "history": {"window_days": 7.5, "max_length": 1}}, "window_days is 7.5"),
        ({**FIELDS, "history": {"window_days": 7, "max_length": True}}, "max_length is True"),
    ],
)
def test_what_cannot_work_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FeatureSpec.from_json(fields)
