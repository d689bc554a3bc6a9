"""Pairs are chosen where retrievers differ, within a budget, over queries and traffic."""

import numpy as np
import polars as pl
import pytest

from embeddings.relevance.mining import mine_pairs, query_bands, rank_disagreement


class Table:
    """Scores written down: one row a query, one column a product."""

    def __init__(self, score_QP):
        self.score_QP = np.asarray(score_QP, np.float32)
        self.product_ids = [f"p{i}" for i in range(self.score_QP.shape[1])]

    def pairs(self, query_ids, product_ids):
        rows, columns = ([int(key[1:]) for key in keys] for keys in (query_ids, product_ids))
        return self.score_QP[rows, columns]

    def catalogue(self, query_ids):
        return self.score_QP[[int(key[1:]) for key in query_ids]]


def asked(count):
    return pl.DataFrame({"query_id": [f"q{i}" for i in range(count)]})


def random_retrievers(queries=30, products=40, seed=0):
    rng = np.random.default_rng(seed)
    return {name: Table(rng.normal(size=(queries, products))) for name in ("a", "b", "c")}


def test_disagreement_is_in_octaves_and_the_rest_is_one_rank():
    rank_MR = np.array([[1, 1], [1, 2], [10, 20], [1, 9], [4, 50]])
    found = rank_disagreement(rank_MR, top=20)
    np.testing.assert_allclose(found, [0, 1, 1, np.log2(9), np.log2(21 / 4)])


def test_the_pair_that_only_one_retriever_finds_comes_first():
    # Both agree on p0; a alone puts p1 second, b alone p3.
    retrievers = {"a": Table([[9, 8, 1, 0, -1]]), "b": Table([[9, 1, 2, 8, -1]])}
    found = mine_pairs(asked(1), retrievers, budget=2, top=2)
    assert found["product_id"].to_list() == ["p1", "p3"]
    assert found["rank_a"].to_list() == [2, None]
    assert found["rank_b"].to_list() == [None, 2]
    assert found["disagreement"].to_list() == pytest.approx([np.log2(3 / 2)] * 2)


def test_a_product_that_matches_no_word_is_no_candidate():
    retrievers = {"bm25": Table([[2, 0, 0, 0]]), "cosine": Table([[0.9, 0.1, 0.2, 0.8]])}
    found = mine_pairs(asked(1), retrievers, budget=9, top=2)
    assert sorted(found["product_id"].to_list()) == ["p0", "p3"]


def test_no_pair_is_labelled_twice_or_chosen_twice_and_the_budget_holds():
    labelled = pl.DataFrame(
        {"query_id": ["q0", "q1"] * 20, "product_id": [f"p{i}" for i in range(40)]}
    )
    retrievers = random_retrievers()
    found = mine_pairs(asked(30), retrievers, budget=100, top=5, labelled=labelled)
    keys = found.select("query_id", "product_id")
    assert len(found) == 100 and not keys.is_duplicated().any()
    assert not len(keys.join(labelled, on=["query_id", "product_id"], how="inner"))


def test_pairs_are_spread_evenly_over_queries():
    found = mine_pairs(asked(30), random_retrievers(), budget=70, top=10)
    counts = found["query_id"].value_counts()["count"]
    assert len(counts) == 30 and counts.max() == 3 and counts.min() == 2


def test_each_query_gives_its_strongest_disagreements():
    every = mine_pairs(asked(30), random_retrievers(), budget=10**6, top=5)
    few = mine_pairs(asked(30), random_retrievers(), budget=30, top=5)
    best = every.group_by("query_id").agg(pl.col("disagreement").max())
    both = few.join(best, on="query_id", suffix="_best")
    assert both["disagreement"].equals(both["disagreement_best"].rename("disagreement"))


def test_bands_are_thirds_of_the_traffic():
    traffic = pl.DataFrame({"query_id": ["q0", "q1", "q2", "q3"], "count": [40, 30, 20, 10]})
    found = dict(query_bands(asked(5), traffic).iter_rows())
    # 40 of 100 begin below a third, 30 more below two thirds; nobody asked q4.
    assert found == {"q0": "head", "q1": "torso", "q2": "tail", "q3": "tail", "q4": "tail"}
    assert set(query_bands(asked(3), None)["band"]) == {"tail"}


def test_the_budget_is_a_third_for_each_band_and_what_one_cannot_use_goes_on():
    traffic = pl.DataFrame(
        {"query_id": [f"q{i}" for i in range(30)], "count": [400, 100] + [9] * 28}
    )
    retrievers = random_retrievers()
    small = mine_pairs(asked(30), retrievers, budget=12, top=5, traffic=traffic)
    assert dict(small["band"].value_counts().iter_rows()) == {"head": 4, "torso": 4, "tail": 4}
    large = mine_pairs(asked(30), retrievers, budget=150, top=5, traffic=traffic)
    assert len(large) == 150, "the head has one query and cannot use fifty"
    assert (large["band"] == "head").sum() <= 15


def test_the_same_seed_chooses_the_same_and_another_one_other_queries():
    chosen = [mine_pairs(asked(30), random_retrievers(), budget=10, seed=s) for s in (1, 1, 2)]
    assert chosen[0].equals(chosen[1])
    assert not chosen[0].equals(chosen[2])


def test_what_mining_refuses():
    retrievers = random_retrievers()
    with pytest.raises(ValueError, match="budget=0 must be at least 1"):
        mine_pairs(asked(3), retrievers, budget=0)
    with pytest.raises(ValueError, match="1 retrievers given"):
        mine_pairs(asked(3), {"a": retrievers["a"]}, budget=5)
    with pytest.raises(ValueError, match="different catalogues"):
        mine_pairs(asked(3), {**retrievers, "d": Table(np.ones((3, 2)))}, budget=5)
    every = mine_pairs(asked(3), retrievers, budget=10**6, top=5)
    with pytest.raises(ValueError, match="is labelled already"):
        mine_pairs(asked(3), retrievers, budget=5, top=5, labelled=every)
