"""Figures 4 and 5 of judged vectors as PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from experiments.category_map import category_map
from experiments.figures import figure_4, figure_5
from experiments.judged_vectors import Judged
from experiments.records import write_bytes


def write_cosine_figure(path: Path, judged: Mapping[str, Judged], pairs: pl.DataFrame) -> str:
    """Draw how the cosine spreads within each relevance class, a panel each from top to bottom.

    Args:
        path: The PNG file.
        judged: Whose cosines, by name.
        pairs: query_id, product_id, label.

    Returns:
        The name of the file.
    """
    label_N = pairs["label"].to_numpy()
    cosines = {}
    for name, one in judged.items():
        cosine_N = one.scores.pairs(pairs["query_id"].to_list(), pairs["product_id"].to_list())
        cosines[_title(name)] = {label: cosine_N[label_N == label] for label in (0, 1, 2)}
    write_bytes(path, figure_5(cosines, image_format="png"))
    return path.name


def write_map_figure(
    path: Path,
    judged: Mapping[str, Judged],
    products: pl.DataFrame,
    *,
    max_points: int,
    seed: int,
) -> dict[str, float]:
    """Draw the products of the ten most frequent categories side by side, by t-SNE.

    Args:
        path: The PNG file.
        judged: Whose product vectors, by name; the same products of each.
        products: product_id, category.
        max_points: Products at most, a sample.
        seed: Of the sample and the map.

    Returns:
        The silhouette of the categories among the vectors themselves, by name.

    Raises:
        ValueError: If there is no column category, or too little to lay out.
    """
    if "category" not in products.columns:
        raise ValueError("the products have no column category")
    maps = []
    for name, one in judged.items():
        assert one.products is not None
        row_P = one.products.row_of(products["product_id"].to_list())
        vectors_PD = np.asarray(one.products.vectors_VD)[row_P]
        category_P = products["category"].cast(pl.String).to_list()
        maps.append(
            category_map(_title(name), vectors_PD, category_P, seed=seed, max_points=max_points)
        )
    write_bytes(path, figure_4(maps, image_format="png"))
    return {name: one.silhouette for name, one in zip(judged, maps, strict=True)}


def _title(name: str) -> str:
    return name.replace("_", " ")
