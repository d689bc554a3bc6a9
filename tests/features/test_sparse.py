import numpy as np
import polars as pl
import pytest

import features.sparse
from features.sparse import ValueIndex, Vocabulary, as_text


def test_frequent_values_get_rows_and_all_else_is_row_zero():
    vocabulary = Vocabulary(min_count=2).fit(pl.Series(["b", "a", "c", "b", "a", "b", None, None]))
    assert vocabulary.values_ == ["b", "a"] and vocabulary.size == 3
    given = pl.Series(["a", "b", "c", "never", None])
    assert vocabulary.transform(given).tolist() == [2, 1, 0, 0, 0]
    assert vocabulary.transform(given).dtype == np.int32


def test_the_table_does_not_depend_on_the_order_of_rows():
    values = [f"v{i % 7}" for i in range(50)]
    shuffled = np.random.default_rng(0).permutation(values).tolist()
    one, other = Vocabulary().fit(pl.Series(values)), Vocabulary().fit(pl.Series(shuffled))
    assert one.values_ == other.values_


def test_min_count_one_keeps_everything():
    assert Vocabulary(min_count=1).fit(pl.Series(["x", "y"])).values_ == ["x", "y"]
    with pytest.raises(ValueError, match="min_count is 0"):
        Vocabulary(min_count=0)


def test_numbers_and_their_texts_are_one_value():
    vocabulary = Vocabulary(min_count=1).fit(pl.Series([7, 7, 8]))
    assert vocabulary.transform(pl.Series(["7"])).tolist() == [1]
    assert as_text(pl.Series([True, None])).to_list() == ["true", None]
    assert as_text(pl.Series(["a"], dtype=pl.Categorical)).to_list() == ["a"]


@pytest.mark.parametrize("values", [[1.0, 2.0], [["a"]]])
def test_decimals_and_lists_are_refused_by_name(values):
    with pytest.raises(ValueError, match="sparse feature 'shop' has type"):
        Vocabulary().fit(pl.Series("shop", values))


def test_an_empty_column_leaves_only_row_zero():
    vocabulary = Vocabulary().fit(pl.Series([], dtype=pl.String))
    assert vocabulary.size == 1
    assert vocabulary.transform(pl.Series(["a"])).tolist() == [0]
    assert vocabulary.transform(pl.Series([], dtype=pl.String)).shape == (0,)


def test_the_two_ways_to_look_up_agree(monkeypatch):
    index = ValueIndex(["c", "a", "b"])
    given = pl.Series(["a", None, "zz", "c", "c", "b"])
    by_dictionary = index.rows_of(given)
    monkeypatch.setattr(features.sparse, "FEW", 0)
    by_join = index.rows_of(given)
    assert by_dictionary.tolist() == by_join.tolist() == [1, -1, -1, 0, 0, 2]
    assert by_dictionary.dtype == by_join.dtype == np.int32


def test_an_index_refuses_a_value_twice():
    with pytest.raises(ValueError, match="repeated"):
        ValueIndex(["a", "a"])


def test_round_trip():
    vocabulary = Vocabulary(min_count=1).fit(pl.Series(["x", "é", "x"]))
    again = Vocabulary.from_dict(vocabulary.to_dict())
    assert again.values_ == vocabulary.values_ and again.min_count == 1
    assert again.transform(pl.Series(["é", "?"])).tolist() == [2, 0]
