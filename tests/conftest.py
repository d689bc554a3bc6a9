"""Fixtures that several packages' tests share."""

import os
from dataclasses import dataclass

import numpy as np
import pytest

from features.embedding_join import Vectors
from features.examples import Examples
from ranking.tower_config import TowerConfig

# No test times the machine or depends on what was once measured on it.
os.environ["ADTOWER_PROBE"] = "off"

PRODUCTS, QUERIES, USERS, DIM, LENGTH = 40, 30, 50, 8, 4


@dataclass(frozen=True)
class SmallLog:
    """Impressions whose clicks follow cos(product, query) and the product's category."""

    train: Examples
    validation: Examples
    test: Examples
    vectors: Vectors


@pytest.fixture(scope="session")
def small_log() -> SmallLog:
    """2,400 impressions with unknown ids, empty histories and missing vectors among them."""
    rng = np.random.default_rng(7)
    rows = 2400
    product_PD = unit_rows(rng.normal(size=(PRODUCTS, DIM)))
    query_QD = unit_rows(rng.normal(size=(QUERIES, DIM)))
    product_present_P = np.arange(PRODUCTS) % 10 != 3
    product_PD[~product_present_P] = 0
    product_N, query_N = rng.integers(PRODUCTS, size=rows), rng.integers(QUERIES, size=rows)
    user_N = rng.integers(USERS, size=rows)
    category_N = product_N % 5
    cosine_N = (product_PD[product_N] * query_QD[query_N]).sum(1)
    logit_N = -1.5 + 3.0 * cosine_N + np.array([-0.8, -0.4, 0.0, 0.4, 0.8])[category_N]
    clicked_N = rng.random(rows) < 1 / (1 + np.exp(-logit_N))
    bought_UL = rng.integers(-1, PRODUCTS, size=(USERS, LENGTH))
    bought_UL[::4] = -1
    stranger_N = rng.random(rows) < 0.05
    examples = Examples(
        sparse_names=("user_id", "query_id", "products.category"),
        sparse_NF=np.stack(
            [np.where(user_N < 3, 0, user_N), query_N + 1, np.where(stranger_N, 0, category_N + 1)],
            axis=1,
        ).astype(np.int32),
        vocabulary_sizes=(USERS, QUERIES + 1, 6),
        dense_names=("products.price", "products.price.missing"),
        dense_NC=np.stack([rng.normal(size=rows), rng.integers(2, size=rows)], 1).astype("f4"),
        product_N=np.where(stranger_N, -1, product_N).astype(np.int32),
        query_N=np.where(rng.random(rows) < 0.03, -1, query_N).astype(np.int32),
        history_NL=bought_UL[user_N].astype(np.int32),
        user_N=user_N.astype(np.int64),
        request_N=np.arange(rows) // 4,
        time_us_N=np.arange(rows) * 1_000_000,
        label_N=clicked_N.astype(np.float32),
        purchased_N=(clicked_N & (np.arange(rows) % 3 == 0)).astype(np.float32),
        position_N=(1 + np.arange(rows) % 4).astype(np.int32),
    )
    vectors = Vectors(
        product_PD=product_PD,
        product_present_P=product_present_P,
        query_QD=query_QD,
        query_present_Q=np.ones(QUERIES, bool),
        fingerprint="small+small",
    )
    return SmallLog(
        train=examples.take(slice(0, 1600)),
        validation=examples.take(slice(1600, 2000)),
        test=examples.take(slice(2000, rows)),
        vectors=vectors,
    )


def unit_rows(x_ND: np.ndarray) -> np.ndarray:
    """The rows scaled to length 1, as float32."""
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def fit_config() -> TowerConfig:
    """A small network with all that training on ranks must do as one process does."""
    return TowerConfig(
        batch_size=48,
        dropout=0.0,
        vector_dropout=0.0,
        bf16="off",
        embedding_dim=8,
        production_mlp=(16,),
        head=(8,),
        tower_mlp=(8, 4),
        projected_dim=4,
        attention="ids",
        ema_decay=0.9,
        negative_rate=0.8,
    )
