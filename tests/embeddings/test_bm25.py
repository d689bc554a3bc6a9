"""BM25 against its formula, and what it must and must not reward."""

import numpy as np
import polars as pl
import pytest

from embeddings.bm25 import Bm25Scores


def scores(titles, queries):
    products = pl.DataFrame({"product_id": [f"p{i}" for i in range(len(titles))], "title": titles})
    asked = pl.DataFrame({"query_id": [f"q{i}" for i in range(len(queries))], "query": queries})
    return Bm25Scores(products, asked)


def test_bm25_by_hand():
    # Lengths 2, 3, 1, mean 2; "red" occurs in two of three texts, twice in the second.
    found = scores(["red cup", "red red box", "tin"], ["red"]).catalogue(["q0"])[0]
    idf = np.log(1 + 1.5 / 2.5)
    first = idf * 1 * 2.2 / (1 + 1.2)
    second = idf * 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 1.5))
    assert found == pytest.approx([first, second, 0.0], rel=1e-6)


def test_pairs_are_cells_of_the_catalogue():
    table = scores(["red cup", "old red box", "tin"], ["red box", "tin cup"])
    whole_QP = table.catalogue(["q0", "q1"])
    pairs = table.pairs(["q0", "q1", "q1"], ["p1", "p0", "p1"])
    assert pairs == pytest.approx([whole_QP[0, 1], whole_QP[1, 0], whole_QP[1, 1]])


def test_a_rare_word_weighs_more_and_a_longer_text_less():
    found = scores(["red cup", "red tin", "red old box"], ["red", "cup"])
    red, cup = found.catalogue(["q0", "q1"])
    assert cup[0] > red[0]
    assert red[0] == red[1] > red[2] > 0


def test_a_word_asked_twice_counts_twice_and_an_unknown_one_not_at_all():
    found = scores(["red cup", "tin"], ["red", "red red", "red zzz", "???"])
    once, twice, unknown, marks = found.catalogue(["q0", "q1", "q2", "q3"])[:, 0]
    assert twice == pytest.approx(2 * once)
    assert unknown == once and marks == 0
