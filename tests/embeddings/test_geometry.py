import numpy as np
import pytest

from embeddings.geometry import alignment, cloud, gap


def test_one_point_by_hand():
    measures = cloud(np.tile([0.0, 3.0], (5, 1)), seed=0)
    assert measures["effective_rank"] == pytest.approx(1, abs=1e-4)
    assert measures["uniformity"] == pytest.approx(0, abs=1e-4)
    assert measures["anisotropy"] == pytest.approx(1)
    assert measures["norm_mean"] == measures["norm_min"] == measures["norm_max"] == 3


def test_axes_are_spread_evenly_by_hand():
    measures = cloud(np.eye(4), seed=0)
    assert measures["effective_rank"] == pytest.approx(4, abs=1e-4)
    assert measures["anisotropy"] == pytest.approx(0)
    # Every two are at squared distance 2, and -2 * 2 = -4.
    assert measures["uniformity"] == pytest.approx(-4)


def test_the_mean_cosine_is_that_of_all_pairs():
    vectors = np.random.default_rng(0).normal(size=(40, 6)) + 0.5
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = (unit @ unit.T)[~np.eye(40, dtype=bool)].mean()
    assert cloud(vectors, seed=0)["anisotropy"] == pytest.approx(expected)


def test_neither_order_nor_length_of_the_vectors_moves_their_shape():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(60, 8)) + 1
    scaled = (vectors * rng.uniform(0.5, 4, (60, 1)))[rng.permutation(60)]
    once, again = cloud(vectors, seed=0), cloud(scaled, seed=0)
    for name in ("effective_rank", "uniformity", "anisotropy"):
        assert once[name] == pytest.approx(again[name], abs=1e-4)


def test_rows_of_zeros_are_counted_and_otherwise_left_out():
    measures = cloud(np.vstack([np.eye(4), np.zeros((4, 4))]), seed=0)
    assert measures["zero_share"] == 0.5
    assert measures["effective_rank"] == pytest.approx(4, abs=1e-4)
    assert cloud(np.zeros((3, 2)), seed=0) == {"zero_share": 1.0}
    assert gap(np.zeros((3, 2)), np.eye(2)) is None


def test_distances_by_hand():
    assert alignment(np.array([1.0, 0.0])) == 1
    assert gap(np.array([[2.0, 0]]), np.array([[-1.0, 0], [0, 0]])) == pytest.approx(2)
