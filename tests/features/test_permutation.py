import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.permutation import Permutation


@given(st.integers(0, 300), st.integers(0, 5), st.integers(0, 5))
def test_every_number_stands_at_one_place(size, seed, epoch):
    order = Permutation(size, seed=seed, epoch=epoch).at(np.arange(size))
    assert np.array_equal(np.sort(order), np.arange(size))


def test_a_place_has_its_number_however_it_is_asked_for():
    permutation = Permutation(1000, seed=1, epoch=2)
    whole = permutation.at(np.arange(1000))
    assert permutation.at(np.array([5, 999, 5])).tolist() == whole[[5, 999, 5]].tolist()
    assert Permutation(1000, seed=1, epoch=2).at(np.array([7]))[0] == whole[7]


def test_seeds_and_epochs_differ_and_neighbours_part():
    orders = [
        Permutation(10_000, seed=seed, epoch=epoch).at(np.arange(10_000))
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    for place, order in enumerate(orders):
        # Two random orders of n agree in about one place, and a step in one goes n / 3 far.
        assert all((order == other).sum() < 10 for other in orders[place + 1 :])
        assert np.abs(np.diff(order)).mean() == pytest.approx(10_000 / 3, rel=0.05)
        assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


def test_places_outside_are_refused():
    with pytest.raises(ValueError, match="places 0 to 3 were asked for; there are 3"):
        Permutation(3, seed=0).at(np.arange(4))
    with pytest.raises(ValueError, match="size -1"):
        Permutation(-1, seed=0)
