import numpy as np
import pytest

from features.embedding_join import Vectors
from features.similarity import Similarities, load_vectors, save_vectors_, similarity_names

VECTORS = Vectors(
    product_PD=np.array([[1, 0], [0, 2], [3, 4], [0, 0]], np.float32),
    product_present_P=np.array([True, True, True, False]),
    query_QD=np.array([[5, 0], [0, 0]], np.float32),
    query_present_Q=np.array([True, False]),
    fingerprint="f",
)


def columns(product, query, history, bins=4):
    return Similarities(VECTORS, bins=bins).columns(
        np.array(product, np.int32), np.array(query, np.int32), np.array(history, np.int32)
    )


def test_cosines_by_hand():
    # Product (3, 4) against the query (5, 0) and the history (1, 0), (0, 2), an absent one.
    got = columns([2], [0], [[0, 1, 3, -1]])
    assert got["cosine.query"][0] == pytest.approx(0.6)
    assert got["cosine.history_last"][0] == pytest.approx(0.6)
    assert got["cosine.history_max"][0] == pytest.approx(0.8)
    # The mean of the history is (1/2, 1): (3 + 8) / (5 sqrt 5).
    assert got["cosine.history"][0] == pytest.approx(11 / (5 * 5**0.5))
    # Both cosines, .6 and .8, lie in the bin from .5 to 1.
    assert [got[f"cosine.history_bin{b}"][0] for b in (1, 2, 3, 4)] == [0, 0, 0, 1]


def test_what_has_no_vector_is_missing():
    got = columns([3, -1, 0, 0], [0, 0, 1, -1], [[0], [0], [-1], [3]])
    assert all(np.isnan(value).all() for value in got.values())
    assert tuple(got) == similarity_names(4)


def test_a_product_is_wholly_like_itself():
    got = columns([2], [-1], [[2, 2]], bins=8)
    assert got["cosine.history"][0] == got["cosine.history_max"][0] == pytest.approx(1)
    assert got["cosine.history_bin8"][0] == 1


def test_one_row_is_what_it_is_among_many():
    rng = np.random.default_rng(0)
    vectors = Vectors(
        product_PD=rng.normal(size=(50, 33)).astype(np.float32),
        product_present_P=np.ones(50, bool),
        query_QD=rng.normal(size=(9, 33)).astype(np.float32),
        query_present_Q=np.ones(9, bool),
        fingerprint="f",
    )
    rows = (rng.integers(0, 50, 40), rng.integers(0, 9, 40), rng.integers(-1, 50, (40, 5)))
    similarities = Similarities(vectors, bins=3)
    whole = similarities.columns(*rows)
    for row in range(40):
        alone = similarities.columns(*(part[row : row + 1] for part in rows))
        for name in whole:
            np.testing.assert_array_equal(alone[name][0], whole[name][row])


def test_vectors_are_saved_as_they_were(tmp_path):
    save_vectors_(VECTORS, tmp_path)
    again = load_vectors(tmp_path)
    assert np.array_equal(again.product_PD, VECTORS.product_PD) and again.fingerprint == "f"
    with pytest.raises(ValueError, match=r"vectors\.npz is missing"):
        load_vectors(tmp_path / "other")


def test_no_bins_are_refused():
    with pytest.raises(ValueError, match="bins is 0"):
        Similarities(VECTORS, bins=0)
