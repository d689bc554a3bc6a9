import json

import numpy as np
import polars as pl
import pytest
from scipy.stats import skew
from sklearn.preprocessing import QuantileTransformer

from features.dense import QUANTILES, DenseTransform, _shares_below, _skewness


def test_standardised_by_hand():
    dense = DenseTransform("price").fit(pl.Series([1.0, 3.0]))
    assert dense.transform(pl.Series([1.0, 2.0, 3.0])).ravel().tolist() == [-1.0, 0.0, 1.0]
    assert dense.output_names == ("price",)


def test_a_long_tail_goes_on_the_log_scale():
    values = pl.Series([float(2**k) for k in range(12)])
    dense = DenseTransform("price").fit(values)
    logs = np.log1p(values.to_numpy())
    expected = (logs - logs.mean()) / logs.std()
    assert dense.log_
    np.testing.assert_allclose(dense.transform(values).ravel(), expected, rtol=1e-6)
    # Negative values at scoring have a place too, mirrored.
    assert np.isfinite(dense.transform(pl.Series([-5.0]))).all()


def test_skewness_agrees_with_scipy():
    values = np.random.default_rng(0).exponential(size=500)
    assert _skewness(values) == pytest.approx(skew(values))
    assert _skewness(np.array([3.0, 3.0])) == 0.0


def test_missing_becomes_the_mean_and_a_mark():
    dense = DenseTransform("price").fit(pl.Series([1.0, None, 3.0]))
    assert dense.output_names == ("price", "price.missing")
    assert dense.transform(pl.Series([None, 3.0])).tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_missing_only_at_scoring_is_the_mean():
    dense = DenseTransform("price").fit(pl.Series([1.0, 3.0]))
    assert dense.transform(pl.Series([None], dtype=pl.Float64)).tolist() == [[0.0]]


def test_a_constant_column_says_nothing():
    dense = DenseTransform("price").fit(pl.Series([0.1] * 30))
    assert np.abs(dense.transform(pl.Series([0.1] * 3))).max() < 1e-6


def test_a_column_that_is_all_null_is_zero_and_marked():
    dense = DenseTransform("price").fit(pl.Series([None, None], dtype=pl.Float64))
    assert dense.transform(pl.Series([None, 4.0])).tolist() == [[0.0, 1.0], [4.0, 0.0]]


def test_far_values_are_drawn_in():
    dense = DenseTransform("price").fit(pl.Series([1.0, 3.0]))
    assert dense.transform(pl.Series([1e99, -1e99])).ravel().tolist() == [10.0, -10.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_what_is_not_finite_is_refused_by_name_and_row(bad):
    dense = DenseTransform("price").fit(pl.Series([1.0, 3.0]))
    for use in (dense.fit, dense.transform):
        with pytest.raises(ValueError, match=r"'price' is .* in row 2"):
            use(pl.Series([1.0, None, bad]))


def test_an_array_misses_what_a_column_has_no_value_for():
    given = [4.0, None, 1.0, 700.0]
    array = np.array([np.nan if value is None else value for value in given])
    column = DenseTransform("price").fit(pl.Series(given))
    dense = DenseTransform("price").fit(array)
    assert dense.to_dict() == column.to_dict() and dense.has_missing_
    np.testing.assert_array_equal(dense.transform(array), column.transform(pl.Series(given)))
    whole = pl.Series([4, None, 1, 700])
    np.testing.assert_array_equal(dense.transform(array), column.transform(whole))
    with pytest.raises(ValueError, match=r"'price' is inf in row 3 \(1 such rows"):
        dense.transform(np.array([1.0, np.nan, 2.0, np.inf]))


def test_text_is_refused():
    with pytest.raises(ValueError, match="dense feature 'price' has type String"):
        DenseTransform("price").fit(pl.Series(["a"]))


def test_round_trip_through_json():
    values = pl.Series([1.0, None, 3.7, 900.0])
    dense = DenseTransform("price").fit(values)
    again = DenseTransform.from_dict(json.loads(json.dumps(dense.to_dict())))
    np.testing.assert_array_equal(again.transform(values), dense.transform(values))
    assert again.output_names == dense.output_names


def test_quantiles_agree_with_sklearn_and_ignore_outliers():
    rng = np.random.default_rng(0)
    value_N = np.round(rng.exponential(size=3000), 1)
    ours = DenseTransform("x", scaling="quantile").fit(pl.Series(value_N))
    peer = QuantileTransformer(n_quantiles=QUANTILES + 1, subsample=None).fit(value_N[:, None])
    share_N = peer.transform(value_N[:, None])[:, 0]
    # scikit-learn sends the least and the greatest value to 0 and 1, however many rows have them.
    inner_N = (share_N > 0) & (share_N < 1)
    ours_N = _shares_below(value_N, np.array(ours.quantiles_))
    np.testing.assert_allclose(ours_N[inner_N], share_N[inner_N], atol=1e-12)
    got_N = ours.transform(pl.Series(value_N))[:, 0]
    np.testing.assert_allclose(got_N, (ours_N - ours_N.mean()) / ours_N.std(), atol=1e-6)
    wild = ours.transform(pl.Series([1e30, None]))[:, 0]
    assert wild[0] == got_N.max() and wild[1] == 0
    again = DenseTransform.from_dict(ours.to_dict())
    np.testing.assert_array_equal(again.transform(pl.Series(value_N))[:, 0], got_N)


def test_a_scaling_can_be_asked_for():
    values = pl.Series([0.0, 0.0, 0.0, 1000.0])
    assert DenseTransform("x").fit(values).log_
    assert not DenseTransform("x", scaling="standard").fit(values).log_
    assert DenseTransform("x", scaling="log").fit(pl.Series([1.0, 2.0])).log_
    with pytest.raises(ValueError, match="scaling of 'x' is 'rank'; must be one of standard"):
        DenseTransform("x", scaling="rank")
