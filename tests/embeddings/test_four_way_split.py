import polars as pl
import pytest

from embeddings.four_way_split import CELLS, split_four_ways

PRODUCTS = pl.DataFrame(
    {"product_id": ["p0", "p1", "p2", "p3"], "group_id": ["g0", None, "g0", "g3"]}
)
QUERIES = pl.DataFrame({"query_id": ["a", "b", "A"], "query": ["red cup", "box", " Red cup"]})


def pairs(*rows):
    return pl.DataFrame(rows, schema=["query_id", "product_id"], orient="row")


def test_cells_by_hand_with_equal_texts_and_groups_merged():
    split = split_four_ways(
        pairs(("a", "p0"), ("A", "p1"), ("b", "p2"), ("b", "p3"), ("A", "p3")),
        pairs(("a", "p0")),
        PRODUCTS,
        QUERIES,
    )
    # "A" asks what "a" asks; p2 is another listing of p0.
    assert split.seen_query_N.tolist() == [True, True, False, False, True]
    assert split.seen_product_N.tolist() == [True, False, True, False, False]
    counts = {name: int(split.cell(*seen).sum()) for name, *seen in CELLS}
    assert counts == {
        "unseen_queries.unseen_products": 1,
        "unseen_queries.seen_products": 1,
        "seen_queries.unseen_products": 2,
        "seen_queries.seen_products": 1,
    }


def test_without_groups_each_product_is_its_own():
    split = split_four_ways(
        pairs(("b", "p2")), pairs(("a", "p0")), PRODUCTS.drop("group_id"), QUERIES
    )
    assert not split.seen_product_N.any()


def test_what_the_dataset_does_not_have_is_refused():
    with pytest.raises(ValueError, match="row 0 of the judged pairs names product_id 'p9'"):
        split_four_ways(pairs(("a", "p9")), pairs(("a", "p0")), PRODUCTS, QUERIES)
    with pytest.raises(ValueError, match="row 1 of the training pairs names query_id 'z'"):
        split_four_ways(pairs(("a", "p0")), pairs(("a", "p0"), ("z", "p0")), PRODUCTS, QUERIES)
