"""A marketplace around a catalogue that others made and labelled.

The labels are taken for the truth; what nobody judged for a query is assumed irrelevant to it.

Shape letters: P products, Q queries, N rows, M pool size.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.marketplace.market import HISTORY_DAYS, hidden_market, standardised_price
from experiments.marketplace.parameters import WorldParameters
from experiments.marketplace.requests import DAY_US
from experiments.marketplace.retrieval import judged_pools
from experiments.marketplace.shoppers import hashed_appeal, make_shoppers
from experiments.marketplace.state import WorldState
from features.dataset import Dataset


def labelled_state(
    dataset: Dataset,
    requests: int,
    parameters: WorldParameters,
    seed: int,
    span_us: tuple[int, int],
) -> WorldState:
    """Build the hidden side of a marketplace whose relevance is a table of labels.

    Args:
        dataset: Has products, queries and relevance.
        requests: Length of the log, which sets the number of shoppers.
        parameters: How the world behaves.
        seed: The same seed gives the same state.
        span_us: First moment of the log and first moment after it, microseconds UTC.

    Raises:
        ValueError: If a table is empty or breaks the dataset contract, or an id is unknown.
    """
    products, queries = dataset.table("products"), dataset.table("queries")
    for name in ("products", "queries", "relevance"):
        if dataset.table(name).is_empty():
            raise ValueError(f"the {name} table has no rows; nothing can be searched or shown")
    pairs = dataset.table("relevance").unique(["query_id", "product_id"], maintain_order=True)
    product_id_P = products["product_id"].to_numpy().astype(np.str_)
    query_id_Q = queries["query_id"].to_numpy().astype(np.str_)
    pool_QM, class_QM = judged_pools(
        _rows_of(pairs["query_id"], queries["query_id"]),
        _rows_of(pairs["product_id"], products["product_id"]),
        pairs["label"].to_numpy().astype(np.int8),
        queries=len(queries),
        products=len(products),
        fill_to=parameters.simulated_pool,
        seed=seed,
    )
    theme_Q = _themes(queries["query"])
    rng = np.random.default_rng([seed, 10])
    rank_Q = 1 + rng.permutation(len(queries))
    popularity_Q = rank_Q**-parameters.zipf_exponent
    nothing = pl.Series([None] * len(products), dtype=pl.String)
    brand_P = products["brand"] if "brand" in products.columns else nothing
    price_z_P = np.zeros(len(products))
    if "price" in products.columns and products["price"].dtype.is_numeric():
        category_P = products["category"] if "category" in products.columns else nothing
        code_P = category_P.fill_null("").rank("dense").to_numpy().astype(np.int64) - 1
        price_z_P = standardised_price(products["price"].cast(float).to_numpy(), code_P)
    return WorldState(
        parameters=parameters,
        seed=seed,
        start_us=span_us[0],
        end_us=span_us[1],
        product_id_P=product_id_P,
        appeal_PD=hashed_appeal(products["title"].to_list(), brand_P.to_list(), parameters, seed),
        price_z_P=price_z_P,
        launched_us_P=np.full(len(products), span_us[0] - (HISTORY_DAYS + 1) * DAY_US),
        query_id_Q=query_id_Q,
        popularity_Q=popularity_Q / popularity_Q.sum(),
        theme_Q=theme_Q,
        pool_QM=pool_QM,
        class_QM=class_QM,
        **hidden_market(len(products), parameters, seed),
        **vars(make_shoppers(requests, theme_Q, parameters, seed)),
    )


def _themes(query_Q: pl.Series) -> NDArray[np.int64]:
    """What free queries are about: the last word, which in English is most often the thing."""
    last_Q = query_Q.str.to_lowercase().str.strip_chars().str.split(" ").list.last()
    return last_Q.fill_null("").rank("dense").to_numpy().astype(np.int64) - 1


def _rows_of(id_N: pl.Series, id_table: pl.Series) -> NDArray[np.int64]:
    """Row of each id in its table."""
    row_of = {name: row for row, name in enumerate(id_table.to_list())}
    unknown = [name for name in id_N.unique(maintain_order=True).to_list() if name not in row_of]
    if unknown:
        raise ValueError(
            f"relevance names {len(unknown)} {id_table.name} that the side table lacks, first "
            f"{unknown[0]!r}; run `adtower data check` for the rows"
        )
    return np.array([row_of[name] for name in id_N.to_list()], dtype=np.int64)
