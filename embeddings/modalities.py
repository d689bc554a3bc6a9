"""Judging each modality apart: what do image, text and both together say of a product?

Shape letters: N products with image and text, V vectors, D embedding size.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from embeddings.cross_modal import recall_at, retrieval_ranks
from embeddings.images import ImageTable
from embeddings.model import DashClip, Mode
from embeddings.probes import category_probe
from embeddings.product_groups import product_groups
from embeddings.store import VectorStore
from embeddings.text import product_texts

CANDIDATES = 2000
"""Products among which one looks for its other modality, at most."""
MODES: tuple[Mode, ...] = ("image", "text", "multimodal")


def judge_modalities(
    model: DashClip, products: pl.DataFrame, images: ImageTable
) -> dict[str, float]:
    """Measure how well modalities find each other, and what each says of the category.

    On the catalogue that trained the model this tells whether training worked, not how it would do
    on other products.

    Args:
        model: After stage 1 or 2.
        products: product_id, text columns, image, [category], [group_id].
        images: Their images, decoded for the model.

    Returns:
        ``image_to_text.r1`` and ``.r10``, ``text_to_image.r1`` and ``.r10`` among at most 2,000
        product groups that have both; ``MODE.category_f1`` for image, text and multimodal, over
        the products that have what the mode looks at; ``MODE.coverage``, their share. Figures that
        the catalogue cannot support are left out.
    """
    vectors = {mode: model.embed_products(products, mode, images=images) for mode in MODES}
    has = {mode: np.linalg.norm(vector_VD, axis=1) > 0 for mode, vector_VD in vectors.items()}
    figures: dict[str, float] = {}
    group_V = product_groups(products, product_texts(products, model.architecture.text_columns))
    both = np.flatnonzero(has["image"] & has["text"])
    _, first = np.unique(group_V[both], return_index=True)
    row_N = np.random.default_rng(0).permutation(both[first])[:CANDIDATES]
    if len(row_N) > 1:
        for left, right in (("image", "text"), ("text", "image")):
            rank_N = retrieval_ranks(
                vectors[left][row_N], vectors[right][row_N], group_V[row_N], group_V[row_N]
            )
            recalls = recall_at(rank_N, (1, 10))
            figures |= {f"{left}_to_{right}.{name}": value for name, value in recalls.items()}
    ids = np.array(products["product_id"].cast(pl.String).to_list())
    for mode in MODES:
        figures[f"{mode}.coverage"] = float(has[mode].mean())
        if not has[mode].any():
            continue
        store = VectorStore.from_arrays(
            ids[has[mode]].tolist(),
            vectors[mode][has[mode]],
            kind=f"product/{mode}",
            encoder_fingerprint=model.fingerprint,
        )
        f1 = category_probe(store, products.filter(pl.Series(values=has[mode])))
        if f1 is not None:
            figures[f"{mode}.category_f1"] = f1
    return figures
