"""What only a simulator knows of its data: the true probability of every click."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from experiments.marketplace.world import TRUTH
from features.dataset import Dataset, Split
from ranking.metrics import auc


def truth_folder(dataset: Dataset) -> Path | None:
    """Return where a simulated dataset keeps its truth, or None for any other."""
    if dataset.folder is None or not dataset.spec.simulated:
        return None
    folder = Path(dataset.folder) / TRUTH
    return folder if folder.is_dir() else None


def oracle_auc(dataset: Dataset, split: Split) -> dict[str, float]:
    """Return the AUC of the true click probabilities on the test rows, where they are known.

    Returns:
        ``oracle.auc`` knows the slot as well; ``oracle_without_position.auc`` knows all but the
        slot, like a perfect model that scores before the auction. Empty for a dataset that was
        not simulated.
    """
    truth = truth_folder(dataset)
    if truth is None:
        return {}
    p_click = pl.read_parquet(truth / "impressions.parquet")[split.test_row_N]
    label_N = split.test["clicked"].to_numpy()
    return {
        "oracle.auc": auc(label_N, p_click["p_click"].to_numpy()),
        "oracle_without_position.auc": auc(label_N, p_click["p_click_blind"].to_numpy()),
    }
