from dataclasses import replace

import numpy as np
import pytest

from features.embedding_join import Vectors, derived_features, gather_vectors, join_vectors
from features.examples import Examples


class Table:
    """Vectors in memory, as a store would give them."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.ids = list(vectors)
        self.vectors_VD = np.array(list(vectors.values()), np.float32)
        self.dim = self.vectors_VD.shape[1]
        self.fingerprint = "-".join(self.ids)

    def row_of(self, ids):
        return np.array([self.ids.index(i) if i in self.ids else -1 for i in ids], np.int64)


PRODUCTS = Table({"b": [0.0, 1.0], "a": [1.0, 0.0], "unused": [9.0, 9.0]})
QUERIES = Table({"q": [0.6, 0.8]})


@pytest.fixture
def vectors() -> Vectors:
    return join_vectors(PRODUCTS, QUERIES, ["a", "b", "none"], ["nowhere", "q"])


def examples(product, query, history) -> Examples:
    rows = len(product)
    return Examples(
        sparse_names=(),
        sparse_NF=np.zeros((rows, 0), np.int32),
        vocabulary_sizes=(),
        dense_names=(),
        dense_NC=np.zeros((rows, 0), np.float32),
        product_N=np.array(product, np.int32),
        query_N=np.array(query, np.int32),
        history_NL=np.array(history, np.int32),
        user_N=np.arange(rows),
        request_N=np.arange(rows),
        time_us_N=np.arange(rows),
        label_N=None,
    )


def test_vectors_come_in_catalogue_order_with_zeros_for_the_missing(vectors):
    assert vectors.product_PD.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert vectors.product_present_P.tolist() == [True, True, False]
    assert vectors.query_present_Q.tolist() == [False, True]
    assert vectors.dim == 2 and vectors.fingerprint == "b-a-unused+q"


def test_gathered_by_hand(vectors):
    rows = gather_vectors(
        vectors,
        examples([0, 1, -1, 2], [1, 0, -1, 1], [[0, 1], [1, -1], [-1, -1], [2, 0]]),
    )
    assert rows.product_ND.tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]
    # A history product without a vector does not dilute the mean.
    assert rows.history_ND.tolist() == [[0.5, 0.5], [0, 1], [0, 0], [1, 0]]
    assert rows.present_N3.tolist() == [[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 1]]


def test_cosines_by_hand_and_zero_where_absent(vectors):
    rows = gather_vectors(vectors, examples([0, -1], [1, 1], [[0, 1], [0, 1]]))
    cosine_N2 = derived_features(rows)
    assert cosine_N2[0] == pytest.approx([0.6, np.sqrt(0.5)])
    assert cosine_N2[1].tolist() == [0.0, 0.0]
    doubled = replace(rows, product_ND=rows.product_ND * 2)
    np.testing.assert_allclose(derived_features(doubled), cosine_N2, rtol=1e-6)


def test_tables_of_two_encoders_are_refused():
    with pytest.raises(ValueError, match="2 dimensions and query vectors 3"):
        join_vectors(PRODUCTS, Table({"q": [1.0, 2.0, 3.0]}), ["a"], ["q"])


def test_a_store_of_another_catalogue_is_refused():
    with pytest.raises(ValueError, match="none of the catalogue's 2 product ids"):
        join_vectors(PRODUCTS, QUERIES, ["x", "y"], ["q"])
    with pytest.raises(ValueError, match="none of the catalogue's 1 query ids"):
        join_vectors(PRODUCTS, QUERIES, ["a"], ["x"])


def test_vectors_that_are_not_finite_are_refused_by_id():
    with pytest.raises(ValueError, match="vector of product 'b' is not finite"):
        join_vectors(Table({"a": [1.0, 0.0], "b": [np.nan, 0.0]}), QUERIES, ["a", "b"], ["q"])
