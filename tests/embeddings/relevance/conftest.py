"""Human labels of a toy catalogue: settings of a judge, and pairs split by query."""

import polars as pl
import pytest

from embeddings.relevance.judge import train_judge
from embeddings.relevance.judge_config import JudgeConfig
from embeddings.relevance_split import split_relevance


@pytest.fixture(scope="session")
def human(relevance):
    """Labels by people, with a mean rating from 1 to 3."""
    return relevance.with_columns(
        source=pl.lit("human"), rating=(pl.col("label") + 1).cast(pl.Float64)
    )


@pytest.fixture(scope="session")
def judge_config(tiny_weights):
    return JudgeConfig(
        weights=str(tiny_weights),
        max_query_tokens=8,
        max_product_tokens=8,
        hidden=16,
        epochs=2,
        batch=16,
        learning_rate=1e-3,
    )


@pytest.fixture(scope="session")
def split(human, queries):
    return split_relevance(human, queries)


@pytest.fixture(scope="session")
def judge(products, queries, split, judge_config, tmp_path_factory):
    out = tmp_path_factory.mktemp("judge") / "judge"
    return train_judge(products, queries, split[0], judge_config, seed=0, out=out), out
