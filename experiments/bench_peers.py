"""The plain ways of doing what adtower does, which ``adtower bench`` times beside it.

They are written as a competent person would write them without thinking of speed, on the same
network, the same weights and the same data, and they must not be improved: a ratio is only worth
something while its denominator stays.

Shape letters: V texts, L tokens, D embedding size, N impressions, B batch, F sparse features,
C dense columns, E width of an id embedding, G groups.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from features.examples import Examples
from ranking.model import ClickNetwork, ProductionTower
from ranking.tower_config import TowerConfig

PADDED_TOKENS = 128
"""What MiniLM's own tokenizer file pads every text to."""


@torch.no_grad()
def encode_texts_plainly(texts: Sequence[str], folder: Path) -> NDArray[np.float32]:
    """Encode texts in the order given, each padded to 128 tokens, in float32.

    Args:
        texts: V texts.
        folder: A BERT checkpoint with its tokenizer.

    Returns:
        Mean-pooled unit vectors, shape (V, D).
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoder = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    finally:
        if shown:
            logging.enable_progress_bar()
    encoder.eval()
    vectors = []
    for start in range(0, len(texts), 32):
        tokens = tokenizer(
            list(texts[start : start + 32]),
            padding="max_length",
            truncation=True,
            max_length=PADDED_TOKENS,
            return_tensors="pt",
        )
        state_BLD = encoder(**tokens).last_hidden_state
        weight_BL1 = tokens["attention_mask"][:, :, None].float()
        pooled_BD = (state_BLD * weight_BL1).sum(1) / weight_BL1.sum(1)
        vectors.append(functional.normalize(pooled_BD, dim=1))
    return torch.cat(vectors).numpy()


class PlainTables(nn.Module):
    """One ``nn.Embedding`` a sparse feature."""

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)

    def forward(self, sparse_BF: Tensor) -> Tensor:
        """Return the rows of all features side by side, shape (B, F * E)."""
        return torch.cat([t(sparse_BF[:, f]) for f, t in enumerate(self.tables)], dim=1)


def train_plainly(train: Examples, config: TowerConfig, *, seed: int, warm_up: int) -> float:
    """Train adtower's click network without vectors, plainly, for one pass.

    Plainly: ``PlainTables``, Adam over every row of every table, float32, and a ``DataLoader``
    over a ``TensorDataset``.

    Args:
        train: N impressions, labelled.
        config: Shape, batch size and learning rate.
        seed: Of weights and order.
        warm_up: First steps that are not timed.

    Returns:
        Rows a second after the warm-up.

    Raises:
        ValueError: If there are not more batches than ``warm_up``.
    """
    if len(train) < (warm_up + 1) * config.batch_size:
        raise ValueError(
            f"{len(train)} rows are {len(train) // config.batch_size} whole batches of "
            f"{config.batch_size}; more than warm_up={warm_up} are needed to time any"
        )
    assert train.label_N is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _plain_network(train, config).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
        loader = DataLoader(
            TensorDataset(
                torch.from_numpy(train.sparse_NF.astype(np.int64)),
                torch.from_numpy(train.dense_NC),
                torch.from_numpy(train.label_N),
            ),
            batch_size=config.batch_size,
            shuffle=True,
            drop_last=True,
        )
        began, rows = 0.0, 0
        for step, (sparse_BF, dense_BC, label_B) in enumerate(loader):
            if step == warm_up:
                began = time.perf_counter()
            optimizer.zero_grad()
            loss = functional.binary_cross_entropy_with_logits(
                network(sparse_BF, dense_BC), label_B
            )
            loss.backward()
            optimizer.step()
            rows += len(label_B) if step >= warm_up else 0
    return rows / (time.perf_counter() - began)


def group_aucs_plainly(
    label_N: NDArray, score_N: NDArray, group_N: NDArray, groups: NDArray
) -> NDArray[np.float64]:
    """Compute the AUC inside each of some groups by one call of scikit-learn each.

    Args:
        label_N, score_N, group_N: As ``ranking.metrics.auc_by_group``, rows sorted by group.
        groups: Which groups, each with a click and a non-click, shape (G,).

    Returns:
        Shape (G,).
    """
    first_G, end_G = (np.searchsorted(group_N, groups, side) for side in ("left", "right"))
    return np.array(
        [roc_auc_score(label_N[a:b], score_N[a:b]) for a, b in zip(first_G, end_G, strict=True)]
    )


def bootstrap_aucs_plainly(
    label_N: NDArray, score_N: NDArray, user_N: NDArray, *, draws: int, seed: int
) -> NDArray[np.float64]:
    """Draw the users anew with replacement and compute the AUC, again and again.

    Args:
        label_N, score_N: Labels and scores, rows sorted by user, shape (N,).
        user_N: User of each row, ascending, shape (N,).
        draws: How often.
        seed: Of the draws.

    Returns:
        The AUC of each draw, shape (draws,).
    """
    rng = np.random.default_rng(seed)
    rows_of = np.split(np.arange(len(user_N)), np.flatnonzero(np.diff(user_N)) + 1)
    aucs = np.empty(draws)
    for draw in range(draws):
        row_N = np.concatenate([rows_of[u] for u in rng.integers(len(rows_of), size=len(rows_of))])
        aucs[draw] = roc_auc_score(label_N[row_N], score_N[row_N])
    return aucs


def _plain_network(train: Examples, config: TowerConfig) -> ClickNetwork:
    production = ProductionTower(
        PlainTables(train.vocabulary_sizes, config.embedding_dim),
        sparse_width=len(train.sparse_names) * config.embedding_dim,
        dense_width=len(train.dense_names),
        cross_layers=config.cross_layers,
        cross_rank=config.cross_rank,
        mlp=config.production_mlp,
        dropout=config.dropout,
    )
    return ClickNetwork(
        production,
        None,
        single_tower=False,
        tower_mlp=config.tower_mlp,
        head=config.head,
        dropout=config.dropout,
    )
