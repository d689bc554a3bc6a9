"""The slices of the test rows, on impressions made by hand."""

import numpy as np

from experiments import slices
from features.examples import Examples


def impressions(product, query, request, history) -> Examples:
    rows = len(product)
    return Examples(
        sparse_names=(),
        sparse_NF=np.zeros((rows, 0), np.int32),
        vocabulary_sizes=(),
        dense_names=(),
        dense_NC=np.zeros((rows, 0), np.float32),
        product_N=np.array(product, np.int32),
        query_N=np.array(query, np.int32),
        history_NL=np.array(history, np.int32).reshape(rows, -1),
        user_N=np.arange(rows),
        request_N=np.array(request, np.int64),
        time_us_N=np.arange(rows),
        label_N=None,
    )


# Query 0 was asked in six requests, query 1 in five (one of them with two products); product 9
# was never shown.
TRAIN = impressions(
    product=[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2],
    query=[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1],
    request=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10],
    history=[[-1, -1]] * 12,
)
TEST = impressions(
    product=[0, 9, 2, -1],
    query=[0, 1, 7, -1],
    request=[0, 1, 2, 3],
    history=[[3, -1], [-1, -1], [3, 4], [-1, -1]],
)


def masks():
    return {name: mask.tolist() for name, mask in slices.test_slices(TRAIN, TEST).items()}


def test_a_cold_product_was_never_shown_in_training_and_an_unknown_one_is_cold():
    assert masks()["cold_products"] == [False, True, False, True]
    assert masks()["warm_products"] == [True, False, True, False]


def test_a_tail_query_was_asked_in_at_most_five_requests_however_many_products_they_showed():
    assert masks()["head_queries"] == [True, False, False, False]
    assert masks()["tail_queries"] == [False, True, True, True]


def test_a_history_needs_one_purchase():
    assert masks()["with_history"] == [True, False, True, False]
    assert masks()["no_history"] == [False, True, False, True]


def test_unknown_products_of_the_training_rows_make_no_product_warm():
    train = impressions(product=[-1, 0], query=[-1, 0], request=[0, 1], history=[[-1], [-1]])
    found = slices.test_slices(train, TEST)
    assert found["warm_products"].tolist() == [True, False, False, False]


def test_each_pair_of_slices_covers_every_row_once():
    found = slices.test_slices(TRAIN, TEST)
    for one, other in (
        ("cold_products", "warm_products"),
        ("tail_queries", "head_queries"),
        ("no_history", "with_history"),
    ):
        assert (found[one] ^ found[other]).all()


def test_missing_images_are_a_slice_where_some_products_have_one():
    pictured_P = np.array([True] * 9 + [False])
    found = slices.test_slices(TRAIN, TEST, pictured_P)
    # Product 9 has no image, and the last product is none of the catalogue.
    assert found["missing_image"].tolist() == [False, True, False, True]
    assert found["with_image"].tolist() == [True, False, True, False]
    assert "with_image" not in slices.test_slices(TRAIN, TEST, np.ones(10, bool))
