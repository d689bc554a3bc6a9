"""Parts of the test impressions that are reported apart.

Shape letters: N impressions, P products.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.examples import Examples

TAIL_QUERY_REQUESTS = 5
"""A query asked in at most this many training requests is a tail query."""


def test_slices(
    train: Examples, test: Examples, has_image_P: NDArray[np.bool_] | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Return a mask of the test rows for each slice, each shape (N,).

    ``cold_products`` were never shown in training and ``warm_products`` were; ``tail_queries``
    were asked in at most five training requests and ``head_queries`` in more;
    ``no_history`` users had bought nothing in the window, ``with_history`` users had.

    Args:
        train: The training impressions.
        test: The impressions to be cut into slices.
        has_image_P: Whether each product of the catalogue has an image, shape (P,). With it there
            are ``missing_image`` and ``with_image``, unless all products have one or none has.
    """
    shown_N = np.isin(test.product_N, np.unique(train.product_N))
    shown_N &= test.product_N >= 0
    asked = np.unique(np.stack([train.query_N.astype(np.int64), train.request_N]), axis=1)[0]
    query, requests = np.unique(asked, return_counts=True)
    head_N = np.isin(test.query_N, query[requests > TAIL_QUERY_REQUESTS]) & (test.query_N >= 0)
    bought_N: NDArray[np.bool_] = np.any(test.history_NL >= 0, axis=1)
    slices = {
        "cold_products": ~shown_N,
        "warm_products": shown_N,
        "tail_queries": ~head_N,
        "head_queries": head_N,
        "no_history": ~bought_N,
        "with_history": bought_N,
    }
    if has_image_P is not None and 0 < has_image_P.sum() < len(has_image_P):
        # The last entry stands for products that the catalogue does not have.
        pictured_N = np.append(has_image_P, False)[test.product_N]
        slices |= {"missing_image": ~pictured_N, "with_image": pictured_N}
    return slices
