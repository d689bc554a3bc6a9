"""Generated clicks of Criteo's shape with a known truth, as files that any library can read.

Shape letters: N rows, F sparse features, C dense columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.bench_data import DENSE, SPARSE
from features.examples import Examples

TABLE_ROWS = 100_000
"""Rows of each id table: 2.6 million in all, where Criteo_x1 has 2.1."""
PAIRS = 12
"""Pairs of sparse features whose product moves the click."""

# What each part adds to the deviation of the log odds of a click.
_IDS, _CROSSES, _NUMBERS, _INTERCEPT = 0.5, 0.5, 0.4, -1.2
_ROWS_AT_A_TIME = 250_000


def write_clicks_(folder: Path, *, train: int, test: int, seed: int = 0) -> None:
    """Write ``sparse.npy`` (N, 26) int32, ``dense.npy`` (N, 13) and ``label.npy`` (N,) float32.

    The first ``train`` rows are for training. Ids are log-uniform, so a table's first rows are in
    every batch and most are rare. The log odds of a click add an effect of each id, products of
    the effects of pairs of features, and the dense columns; a coin with these odds is the label.

    Args:
        folder: Must exist.
        train, test: Rows.
        seed: Of everything.
    """
    rng = np.random.default_rng(seed)
    rows = train + test
    effect_FV = rng.standard_normal((SPARSE, TABLE_ROWS), np.float32)
    weight_C = rng.standard_normal(DENSE).astype(np.float32)
    pair_P2 = np.array([rng.choice(SPARSE, 2, replace=False) for _ in range(PAIRS)])
    shapes = {"sparse": ((rows, SPARSE), "i4"), "dense": ((rows, DENSE), "f4"),
              "label": ((rows,), "f4")}  # fmt: skip
    out = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.dtype(dtype), shape)
        for name, (shape, dtype) in shapes.items()
    }
    for first in range(0, rows, _ROWS_AT_A_TIME):
        part = slice(first, min(first + _ROWS_AT_A_TIME, rows))
        size = part.stop - part.start
        sparse_NF = np.exp(rng.random((size, SPARSE), np.float32) * np.log(TABLE_ROWS)).astype("i4")
        sparse_NF = np.minimum(sparse_NF, TABLE_ROWS - 1)
        dense_NC = rng.standard_normal((size, DENSE), np.float32)
        effect_NF = effect_FV[np.arange(SPARSE), sparse_NF]
        crosses_N = (effect_NF[:, pair_P2[:, 0]] * effect_NF[:, pair_P2[:, 1]]).sum(axis=1)
        logit_N = (
            _INTERCEPT
            + _IDS * effect_NF.sum(axis=1) / SPARSE**0.5
            + _CROSSES * crosses_N / PAIRS**0.5
            + _NUMBERS * dense_NC @ weight_C / DENSE**0.5
        )
        out["sparse"][part], out["dense"][part] = sparse_NF, dense_NC
        out["label"][part] = rng.random(size) < 1 / (1 + np.exp(-logit_N))
    for array in out.values():
        array.flush()


def read_examples(folder: Path, rows: slice) -> Examples:
    """Return some of the rows that ``write_clicks_`` wrote, in memory, as the peers' are."""
    sparse_NF, dense_NC, label_N = (
        np.array(np.load(folder / f"{name}.npy", mmap_mode="r")[rows])
        for name in ("sparse", "dense", "label")
    )
    row_N = np.arange(len(label_N))
    nowhere_N: NDArray[np.int32] = np.full(len(label_N), -1, np.int32)
    return Examples(
        sparse_names=tuple(f"C{f + 1}" for f in range(SPARSE)),
        sparse_NF=sparse_NF,
        vocabulary_sizes=(TABLE_ROWS,) * SPARSE,
        dense_names=tuple(f"I{c + 1}" for c in range(DENSE)),
        dense_NC=dense_NC,
        product_N=nowhere_N,
        query_N=nowhere_N,
        history_NL=np.zeros((len(label_N), 0), np.int32),
        user_N=row_N,
        request_N=row_N,
        time_us_N=row_N,
        label_N=label_N,
    )
