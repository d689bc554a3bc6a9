"""The simulated marketplace as a whole: make a world, or give a labelled catalogue a click log."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from experiments.marketplace import grocery
from experiments.marketplace.catalogue import make_catalogue, product_table
from experiments.marketplace.drawing import draw_catalogue
from experiments.marketplace.judgements import judge, relevance_table
from experiments.marketplace.parameters import WorldParameters
from experiments.marketplace.queries import make_queries, true_relevance
from features.dataset import write_dataset
from features.schema import DatasetSpec, FeatureNames

FEATURES = FeatureNames(
    sparse=(
        "user_id",
        "query_id",
        "product_id",
        "products.category",
        "products.brand",
        "time.hour",
        "time.weekday",
    ),
    dense=("products.price",),
)


def make_world(
    out: str | Path,
    *,
    products: int = 3000,
    requests: int = 60_000,
    seed: int = 0,
    parameters: WorldParameters | None = None,
) -> Path:
    """Write the grocery world as a dataset folder (the log follows; not yet written)."""
    parameters = parameters or WorldParameters()
    catalogue = make_catalogue(products, parameters, seed)
    queries = make_queries(catalogue, parameters, seed)
    relevance_QP = true_relevance(queries, catalogue)
    department_P = np.array(grocery.TYPE_DEPARTMENT)[catalogue.type_P]
    query_N, product_N, label_N, source_N = judge(
        relevance_QP, department_P, ~catalogue.late_P, parameters, seed
    )
    start_us = int(datetime.fromisoformat(parameters.start).replace(tzinfo=UTC).timestamp() * 1e6)
    images = draw_catalogue(catalogue.type_P, catalogue.in_image_PA, parameters.image_pixels, seed)
    return write_dataset(
        out,
        DatasetSpec(name="grocery world", simulated=True, features=FEATURES),
        products=product_table(catalogue, images, np.full(products, start_us), seed),
        queries=pl.DataFrame({"query_id": queries.query_id_Q, "query": queries.text_Q}),
        relevance=relevance_table(
            queries.query_id_Q[query_N], catalogue.product_id_P[product_N], label_N, source_N
        ),
    )
