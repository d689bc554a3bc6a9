import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F

from embeddings.hard_negatives import draw_mined, mine_hard_negatives
from embeddings.judgements import Judgements


def judgements(rows, products, groups=None, queries=2):
    relevance = pl.DataFrame(rows, schema=["query_id", "product_id", "label"], orient="row")
    texts = [f"text {i}" for i in range(queries)]
    table = pl.DataFrame({"query_id": [f"q{i}" for i in range(queries)], "query": texts})
    group_P = np.arange(products) if groups is None else np.array(groups)
    ids = [f"p{i}" for i in range(products)]
    return Judgements(relevance, table, ids, group_P, np.random.default_rng(0)), group_P


def at_degrees(*degrees):
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def mine(query, product, judged, group, count, near_duplicate=0.99):
    rows = judged.trainable
    return mine_hard_negatives(
        query[: len(rows)],
        product,
        rows,
        judged,
        group,
        count=count,
        near_duplicate=near_duplicate,
    )


def test_the_nearest_unjudged_come_first_by_hand():
    # The positive stands 60 degrees away; p1 is its double, p2 and p3 one item, p5 was judged 0.
    product = at_degrees(60, 61, 10, 11, 30, 5, 170)
    judged, group = judgements(
        [("q0", "p0", 2), ("q0", "p5", 0)], 7, groups=[0, 1, 2, 2, 4, 5, 6], queries=1
    )
    found = mine(at_degrees(0), product, judged, group, 3)
    assert found.tolist() == [[2, 4, 6]]
    assert mine(at_degrees(0), product, judged, group, 5, 1.5).tolist() == [[2, 4, 1, 6, -1]]


@pytest.mark.parametrize("seed", range(10))
def test_mined_negatives_are_never_judged_never_doubles_of_positives(seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    rows = [
        (f"q{q}", f"p{p}", int(rng.integers(0, 3)))
        for q in range(12)
        for p in rng.permutation(40)[: rng.integers(2, 9)]
    ]
    groups = rng.integers(0, 30, 40)
    judged, group = judgements(rows, 40, groups=groups, queries=12)
    product, query = (F.normalize(torch.randn(n, 4), dim=1) for n in (40, 12))
    mined = mine(query, product, judged, group, 6, near_duplicate=0.9)
    for row, code in enumerate(judged.trainable):
        found = mined[row][mined[row] >= 0]
        assert len(found)
        assert not judged.judged(np.array([code]), found).any()
        assert len(np.unique(group[found])) == len(found)
        positive = judged.positives(int(code))
        assert float((product[found] @ product[positive].T).max()) < 0.9
        cosine = query[row] @ product[found].T
        assert torch.equal(cosine, cosine.sort(descending=True).values)


def test_draws_are_among_the_mined_and_repeatable():
    mined = np.array([[1, 2, 3, 4], [5, -1, -1, -1], [-1, -1, -1, -1]])
    drawn = [draw_mined(mined, 2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0].tolist() == drawn[1].tolist()
    assert all(set(rows) <= {1, 2, 3, 4, 5} for rows in drawn)
    assert all(len(set(rows) & {1, 2, 3, 4}) == 2 for rows in drawn)
    assert len({tuple(rows) for rows in drawn}) > 1
