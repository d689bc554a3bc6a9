"""Which products are the same item, and so never each other's negatives.

Shape letters: P products, N of them that train.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def product_groups(products: pl.DataFrame, texts: Sequence[str] | None = None) -> NDArray[np.int64]:
    """Number the groups of products that must not be each other's negatives.

    Products share a group if their ``group_id`` is equal, if their text is equal, or through a
    chain of both.

    Args:
        products: [group_id].
        texts: The products' texts, for image-text contrast: an image cannot tell which of two
            equal titles is its own. None leaves them out, for contrast with queries: products of
            one title may differ in what their images show.

    Returns:
        A code per product, shape (P,).
    """
    count = len(products)
    keys: list[list[str | None]] = []
    if texts is not None:
        keys.append([text.lower() or None for text in texts])
    if "group_id" in products.columns:
        keys.append(products["group_id"].cast(pl.String).to_list())
    edges: list[tuple[int, int]] = []
    for column in keys:
        first_row: dict[str, int] = {}
        for row, key in enumerate(column):
            if key is not None:
                edges.append((row, first_row.setdefault(key, row)))
    row_E, other_E = np.array(edges, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(row_E), np.int8), (row_E, other_E)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def refuse_one_group(group_N: NDArray[np.int64]) -> None:
    """Raise if there are no two groups to contrast."""
    if len(np.unique(group_N)) < 2:
        raise ValueError(
            f"all {len(group_N)} products with image and text are one group, so there are no "
            "negatives; are group_id and the titles filled in correctly?"
        )
