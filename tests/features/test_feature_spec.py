"""What a saved pipeline says of features and history: read strictly, without a dataset."""

import json

import pytest

from features.feature_spec import FeatureNames, FeatureSpec, HistoryWindow

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
