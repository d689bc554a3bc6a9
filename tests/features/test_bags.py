import polars as pl
import pytest

from features.bags import Bag


@pytest.fixture
def bag():
    lists = pl.Series([["a", "b"], ["b", "c", "b"], None, [], ["a"], ["b"]])
    bag = Bag("tags", slots=3, min_count=2)
    return bag.fit_counts(bag.member_counts(lists))


def test_members_become_rows_the_most_frequent_first(bag):
    # "b" is there four times, "a" twice, "c" once and so unknown.
    assert bag.vocabulary_.values_ == ["b", "a"] and bag.output_names == (
        "tags.1",
        "tags.2",
        "tags.3",
    )
    values = pl.Series([["a", "b"], ["b", "c", "b"], None, [], ["z", None, "a"]])
    assert bag.transform(values).tolist() == [[1, 2, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [2, 0, 0]]


def test_no_bags_and_no_rows_give_zeros(bag):
    assert bag.transform(pl.Series([None, None])).tolist() == [[0, 0, 0]] * 2
    assert bag.transform(pl.Series([], dtype=pl.List(pl.String))).shape == (0, 3)


def test_whole_numbers_are_members_too(bag):
    numbers = Bag("tags", slots=2, min_count=1)
    numbers.fit_counts(numbers.member_counts(pl.Series([[3, 5], [3]])))
    assert numbers.transform(pl.Series([["5"], ["3", "5"]])).tolist() == [[2, 0], [1, 2]]


def test_saved_is_fitted(bag):
    again = Bag.from_dict(bag.to_dict())
    values = pl.Series([["a"], ["b", "a"]])
    assert again.transform(values).tolist() == bag.transform(values).tolist()


def test_what_is_no_bag_is_refused(bag):
    with pytest.raises(ValueError, match="'tags' has 4 members in row 1, and its cap is 3"):
        bag.transform(pl.Series([["a"], list("abcd")]))
    with pytest.raises(ValueError, match="'tags' has type String; it must be a list"):
        bag.transform(pl.Series(["a"]))
    with pytest.raises(ValueError, match="slots of bag 'tags' is 0"):
        Bag("tags", slots=0)
