"""Semantic ids: prefixes by hand, shared by what is alike, fitted without a product's id."""

from dataclasses import replace

import numpy as np
import pytest

from features.embedding_join import Vectors
from ranking.semantic_ids import ResidualCodebook, with_semantic_ids


def vectors_of(product_PD, present_P=None):
    product_PD = np.asarray(product_PD, np.float32)
    present_P = np.ones(len(product_PD)) if present_P is None else np.array(present_P)
    return Vectors(
        product_PD=product_PD, product_present_P=present_P.astype(bool), query_QD=product_PD[:1],
        query_present_Q=np.ones(1, bool), fingerprint="f",
    )  # fmt: skip


CODEBOOK = ResidualCodebook(
    centroid_LKD=np.array([[[0, 0], [10, 0]], [[0, 1], [0, -1]]], np.float32)
)


def test_prefixes_by_hand():
    vectors = vectors_of([[1, 2], [9, -3], [0, -1], [10, 1], [0, 0]], [1, 1, 1, 1, 0])
    # First code by the nearest of (0,0), (10,0); second by what is left: up or down.
    np.testing.assert_array_equal(CODEBOOK.codes(vectors.product_PD[:4]), [[0, 0], [1, 1], [0, 1],
                                                                           [1, 0]])  # fmt: skip
    np.testing.assert_array_equal(
        CODEBOOK.ids(vectors), [[1, 1], [2, 4], [1, 2], [2, 3], [0, 0], [0, 0]]
    )
    assert CODEBOOK.sizes == (3, 5)
    assert CODEBOOK.names == ("semantic_id.0", "semantic_id.1")


def test_groups_and_groups_within_them_are_found():
    rng = np.random.default_rng(0)
    coarse = 20 * np.eye(3, 6)[np.arange(60) % 3]
    fine = 4 * np.eye(6)[3 + np.arange(60) // 3 % 3]
    vectors = vectors_of(coarse + fine + 0.01 * rng.normal(size=(60, 6)))
    id_PL = ResidualCodebook.fit(vectors, levels=2, codes=3, seed=0).ids(vectors)[:60]
    for column, group in ((0, np.arange(60) % 3), (1, np.arange(60) % 9)):
        pairs = set(zip(id_PL[:, column].tolist(), group.tolist(), strict=True))
        assert len(pairs) == len(set(group.tolist()))


def test_more_levels_leave_less_unsaid_and_one_seed_gives_one_book(small_log):
    vectors = small_log.vectors
    left = []
    for levels in (1, 2, 3):
        book = ResidualCodebook.fit(vectors, levels=levels, codes=4, seed=1)
        again = ResidualCodebook.fit(vectors, levels=levels, codes=4, seed=1)
        np.testing.assert_array_equal(book.centroid_LKD, again.centroid_LKD)
        present_PD = vectors.product_PD[vectors.product_present_P]
        code_PL = book.codes(present_PD)
        told = sum(book.centroid_LKD[level][code_PL[:, level]] for level in range(levels))
        left.append(float(((present_PD - told) ** 2).sum()))
    assert left[0] > left[1] > left[2]


def test_examples_get_the_ids_of_their_product_and_zero_where_it_is_unknown(small_log):
    book = ResidualCodebook.fit(small_log.vectors, levels=2, codes=4, seed=0)
    found = with_semantic_ids(small_log.test, small_log.vectors, book)
    assert found.sparse_names[-2:] == book.names
    assert found.vocabulary_sizes[-2:] == (5, 17)
    id_PL = book.ids(small_log.vectors)
    known_N = small_log.test.product_N >= 0
    np.testing.assert_array_equal(
        found.sparse_NF[known_N, -2:], id_PL[small_log.test.product_N[known_N]]
    )
    assert not found.sparse_NF[~known_N, -2:].any()
    np.testing.assert_array_equal(found.sparse_NF[:, :-2], small_log.test.sparse_NF)


def test_what_cannot_be_cut_is_refused(small_log):
    with pytest.raises(ValueError, match="5 levels of 64 codes make 1,073,741,824 prefixes"):
        ResidualCodebook.fit(small_log.vectors, levels=5, codes=64, seed=0)
    two = replace(small_log.vectors, product_PD=np.ones_like(small_log.vectors.product_PD))
    with pytest.raises(ValueError, match="has 1 distinct product vectors, fewer than the 4"):
        ResidualCodebook.fit(two, levels=1, codes=4, seed=0)
