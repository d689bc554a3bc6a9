"""Settings of the alignment compared on validation queries; test queries are not read.

Shape letters: N judged pairs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embeddings.evaluate import CosineScores, relevance_aucs
from embeddings.model import DashClip
from embeddings.relevance_split import query_tenth, split_relevance
from embeddings.stage2 import train_stage2
from embeddings.stage2_config import Stage2Config
from embeddings.store import VectorStore
from experiments.progress import Progress, Silent
from experiments.true_relevance import true_labels
from features.dataset import Dataset

VALIDATION_TENTHS = (2, 3)
"""Training queries whose MD5, mod 10, is one of these are held out to choose settings by."""


def compare_alignments(
    dataset: Dataset,
    model: DashClip,
    settings: Mapping[str, Stage2Config],
    *,
    seeds: Sequence[int] = (0, 1),
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Align one model under several settings and judge each on validation queries.

    Args:
        dataset: Has products, queries and relevance.
        model: After stage 1.
        settings: By name.
        seeds: Each setting is trained once with each.
        progress: Told of the trainings.

    Returns:
        One row a setting and seed: setting, seed, seconds, auc_2v0, auc_2v1, auc_1v0 by the labels,
        and true_auc_2v0 and so on where the true classes are known.
    """
    progress = progress or Silent()
    products, queries = dataset.table("products"), dataset.table("queries")
    known, _ = split_relevance(dataset.table("relevance"), queries)
    text_of = dict(zip(queries["query_id"].to_list(), queries["query"].to_list(), strict=True))
    tenth_N = pl.Series([query_tenth(text_of[key]) for key in known["query_id"].to_list()])
    held_N = tenth_N.is_in(list(VALIDATION_TENTHS))
    learned, held = known.filter(~held_N), known.filter(held_N)
    truth_N = true_labels(dataset, held)
    rows: list[dict[str, str | int | float]] = []
    for name, config in settings.items():
        for seed in seeds:
            began = time.monotonic()
            with progress.stage(f"aligning: {name}, seed {seed}"):
                aligned = train_stage2(
                    model,
                    products,
                    queries,
                    learned,
                    config,
                    seed=seed,
                    image_root=dataset.folder,
                    progress=progress.steps,
                )
            seconds = time.monotonic() - began
            score_N = _scores(aligned, products, queries, dataset.folder).pairs(
                held["query_id"].to_list(), held["product_id"].to_list()
            )
            aucs = relevance_aucs(score_N, held["label"].to_numpy().astype(np.int64))
            if truth_N is not None:
                true = relevance_aucs(score_N, truth_N)
                aucs |= {f"true_{pair}": value for pair, value in true.items()}
            rows.append({"setting": name, "seed": seed, "seconds": round(seconds, 1), **aucs})
    return pl.DataFrame(rows)


def ratio_settings(ratios: Sequence[str], base: Stage2Config) -> dict[str, Stage2Config]:
    """Settings that differ in the class ratio alone.

    Args:
        ratios: Such as "2:1:1": products of label 2, 1 and 0 drawn for a query.
        base: Everything else.

    Raises:
        ValueError: If a ratio is not three counts, or has no positive.
    """
    settings = {}
    for ratio in ratios:
        counts = ratio.split(":")
        if len(counts) != 3 or not all(count.isdigit() for count in counts):
            raise ValueError(f"ratio {ratio!r} is not three counts such as 2:1:1")
        changed = {**base.model_dump(), "class_ratio": tuple(map(int, counts))}
        settings[ratio] = Stage2Config.model_validate(changed)
    return settings


def _scores(
    model: DashClip, products: pl.DataFrame, queries: pl.DataFrame, image_root: str | Path | None
) -> CosineScores:
    vector_PE = model.embed_products(products, image_root=image_root)
    vector_QE = model.embed_queries(queries["query"].to_list())
    return CosineScores(
        _store(products["product_id"].to_list(), vector_PE),
        _store(queries["query_id"].to_list(), vector_QE),
    )


def _store(ids: list[str], vectors_VD: NDArray[np.floating]) -> VectorStore:
    return VectorStore.from_arrays(ids, vectors_VD, kind="trial", encoder_fingerprint="trial")
