"""Do products of one category lie together? The paper's Figure 4, computed.

Shape letters: P products of the catalogue, N products on the map, D embedding size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PERPLEXITY = 30.0


@dataclass(frozen=True, kw_only=True)
class CategoryMap:
    """Product vectors laid out in the plane, with the category of each."""

    name: str
    """Whose vectors these are, as a reader should see it."""
    point_N2: NDArray[np.float32]
    """Position of each product; only nearness has a meaning, not direction or scale."""
    category_N: NDArray[np.str_]
    """Category of each product."""
    silhouette: float
    """Of the categories by cosine among the vectors themselves, -1 to 1: 1 is perfectly apart,
    0 is overlapping. Measured before mapping, which can show clusters that are not there."""


def rows_of_frequent_categories(
    category_P: Sequence[str | None], *, categories: int = 10, max_points: int = 1000, seed: int
) -> NDArray[np.int64]:
    """Choose the products of the most frequent categories, sampled where they are too many.

    Args:
        category_P: Category of each product, shape (P,); None or "" where unknown.
        categories: How many categories; ties go to the name that sorts first.
        max_points: Most products on the map, at least 10; t-SNE takes seconds a thousand.
        seed: Chooses the sample.

    Returns:
        Row numbers, ascending, shape (N,).

    Raises:
        ValueError: If fewer than two categories have two products or more, or ``max_points``
            is below 10.
    """
    if max_points < 10:
        raise ValueError(
            f"max_points is {max_points}; a map of fewer than 10 products says nothing"
        )
    counts = Counter(category for category in category_P if category)
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    chosen = {name for name, count in ranked[:categories] if count > 1}
    if len(chosen) < 2:
        raise ValueError(
            f"a map needs two categories of two products or more; the {len(category_P)} products "
            f"have {len(counts)} categories. Is the category column missing or unique to each row?"
        )
    row_N = np.flatnonzero([category in chosen for category in category_P])
    if len(row_N) > max_points:
        row_N = np.sort(np.random.default_rng(seed).choice(row_N, max_points, replace=False))
    return row_N


def category_map(
    name: str,
    vectors_PD: NDArray[np.float32],
    category_P: Sequence[str | None],
    *,
    seed: int,
    categories: int = 10,
    max_points: int = 1000,
) -> CategoryMap:
    """Lay the products of the most frequent categories out by t-SNE.

    Args:
        name: Whose vectors these are, as a reader should see it.
        vectors_PD: Product vectors, shape (P, D).
        category_P: Category of each product, shape (P,); None or "" where unknown.
        seed: Chooses sample and start; the same seed chooses the same products for other vectors.
        categories: How many categories.
        max_points: Most products on the map.

    Returns:
        The map. All-zero vectors (products without an embedding) are left out.

    Raises:
        ValueError: If the shapes disagree, vectors hold NaN, or there is too little to lay out.

    Source:
        van der Maaten and Hinton 2008, "Visualizing Data using t-SNE", after PCA to two
        dimensions as the start; Rousseeuw 1987, "Silhouettes".
    """
    # A second to import, and only a run that draws this figure needs it.
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score

    if vectors_PD.ndim != 2 or len(vectors_PD) != len(category_P):
        raise ValueError(
            f"{name}: vectors of shape {vectors_PD.shape} do not go with {len(category_P)} "
            "categories; give one row and one category a product"
        )
    row_N = rows_of_frequent_categories(
        category_P, categories=categories, max_points=max_points, seed=seed
    )
    vectors_ND = np.asarray(vectors_PD[row_N], np.float32)
    if not np.isfinite(vectors_ND).all():
        raise ValueError(f"{name}: the vectors hold NaN or infinity; did their training diverge?")
    length_N = np.linalg.norm(vectors_ND, axis=1)
    row_N, unit_ND = row_N[length_N > 0], vectors_ND[length_N > 0] / length_N[length_N > 0, None]
    category_N = np.array([str(category_P[row]) for row in row_N])
    if len(unit_ND) < 10 or len(set(category_N)) < 2:
        raise ValueError(
            f"{name}: {len(unit_ND)} products of {len(set(category_N))} categories have a vector; "
            "a map needs at least 10 products of 2 categories"
        )
    point_N2 = TSNE(
        perplexity=min(PERPLEXITY, (len(unit_ND) - 1) / 3),
        init="pca",
        random_state=seed,
        max_iter=500,
        n_jobs=1,
    ).fit_transform(unit_ND)
    return CategoryMap(
        name=name,
        point_N2=np.asarray(point_N2, np.float32),
        category_N=category_N,
        silhouette=float(silhouette_score(unit_ND, category_N, metric="cosine")),
    )
