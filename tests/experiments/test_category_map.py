import numpy as np
import pytest

from experiments.category_map import category_map, rows_of_frequent_categories


@pytest.fixture
def catalogue():
    rng = np.random.default_rng(0)
    category_P = ["tea"] * 30 + ["bread"] * 25 + ["rare"] * 2 + [None, "", "single"]
    centre = {name: rng.normal(size=16) for name in ("tea", "bread", "rare", "single", None, "")}
    vectors_PD = np.array([centre[c] for c in category_P]) + 0.05 * rng.normal(size=(60, 16))
    return vectors_PD.astype(np.float32), category_P


def test_the_most_frequent_categories_are_chosen(catalogue):
    _, category_P = catalogue
    assert rows_of_frequent_categories(category_P, categories=2, seed=0).tolist() == list(range(55))
    # A category of one product shows nothing; unknown is no category.
    assert rows_of_frequent_categories(category_P, seed=0).tolist() == list(range(57))


def test_too_many_products_are_sampled_alike_for_the_same_seed(catalogue):
    _, category_P = catalogue
    one = rows_of_frequent_categories(category_P, max_points=20, seed=1)
    assert len(one) == 20 and (np.diff(one) > 0).all()
    np.testing.assert_array_equal(
        one, rows_of_frequent_categories(category_P, max_points=20, seed=1)
    )
    assert (one != rows_of_frequent_categories(category_P, max_points=20, seed=2)).any()


def test_tight_clusters_have_a_silhouette_near_one_and_noise_has_none(catalogue):
    vectors_PD, category_P = catalogue
    tight = category_map("x", vectors_PD, category_P, categories=2, seed=0)
    assert tight.silhouette > 0.9
    noise_PD = np.random.default_rng(1).normal(size=vectors_PD.shape).astype(np.float32)
    assert abs(category_map("x", noise_PD, category_P, categories=2, seed=0).silhouette) < 0.1


def test_the_map_keeps_clusters_apart_and_repeats_to_the_bit(catalogue):
    vectors_PD, category_P = catalogue
    one = category_map("x", vectors_PD, category_P, categories=2, seed=0)
    tea, bread = (one.point_N2[one.category_N == c] for c in ("tea", "bread"))
    between = np.linalg.norm(tea.mean(0) - bread.mean(0))
    assert between > np.linalg.norm(tea - tea.mean(0), axis=1).mean()
    again = category_map("x", vectors_PD, category_P, categories=2, seed=0)
    np.testing.assert_array_equal(one.point_N2, again.point_N2)


def test_products_without_a_vector_are_left_out(catalogue):
    vectors_PD, category_P = catalogue
    vectors_PD[:5] = 0
    assert len(category_map("x", vectors_PD, category_P, categories=2, seed=0).category_N) == 50


def test_what_cannot_be_mapped_is_refused(catalogue):
    vectors_PD, category_P = catalogue
    with pytest.raises(ValueError, match="two categories of two products"):
        category_map("x", vectors_PD, [str(i) for i in range(60)], seed=0)
    with pytest.raises(ValueError, match="do not go with 59 categories"):
        category_map("x", vectors_PD, category_P[:-1], seed=0)
    with pytest.raises(ValueError, match="max_points is 3"):
        category_map("x", vectors_PD, category_P, seed=0, max_points=3)
    with pytest.raises(ValueError, match="dashclip: the vectors hold NaN"):
        category_map("dashclip", np.full_like(vectors_PD, np.nan), category_P, seed=0)
