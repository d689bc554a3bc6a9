"""Click models of one run: each variant trained once a seed, stored with its predictions."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from experiments.config import RunConfig
from experiments.records import read_json, write_json
from experiments.run_folder import RunFolder
from experiments.variants import Variant, VectorSource
from features.embedding_join import Vectors
from features.examples import Examples
from features.peak_memory import peak_bytes
from features.pipeline import FeaturePipeline
from ranking.baselines import LightGBMRanker, LogisticRegression
from ranking.contract import ClickModel, Progress, load_click_model
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The impressions of a run as arrays, by time."""

    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One fitted click model and what it says of the held-out rows."""

    variant: Variant
    seed: int
    folder: Path
    """Holds ``model/``, ``predictions.parquet`` and ``training.json``."""
    p_validation_N: NDArray[np.float64]
    p_test_N: NDArray[np.float64]
    seconds: float
    """Wall time of the fit."""
    parameters: int
    """Learned numbers, id tables included."""
    peak_bytes: int
    """Most memory that the process held which fitted it, from its start to then."""
    curve: list[dict[str, float]]
    """Validation checks in order; empty for models that have none."""

    def model(self) -> ClickModel:
        """Load the fitted model."""
        return load_click_model(self.folder / "model")


def new_model(variant: Variant, config: RunConfig) -> ClickModel:
    """Return the unfitted click model of a variant."""
    with_vectors = variant.vectors is not None
    if variant.model == "logistic":
        return LogisticRegression()
    if variant.model == "lightgbm":
        return LightGBMRanker()
    settings = {
        **config.tower.model_dump(),
        "use_vectors": with_vectors,
        "single_tower": variant.single_tower,
        "derived": variant.derived,
        **variant.tower,
    }
    return TowerRanker(TowerConfig.model_validate(settings))


def features_at(source: VectorSource | None) -> str:
    """Return where a run folder keeps the features for models with such vectors, or with none."""
    return "features" if source is None else f"features_{source}"


def compared_parts(parts: Parts, pipeline: FeaturePipeline) -> Parts:
    """Return the impressions with the cosines of a pipeline behind their other columns."""
    return Parts(
        train=pipeline.with_cosines(parts.train),
        validation=pipeline.with_cosines(parts.validation),
        test=pipeline.with_cosines(parts.test),
    )


def trained_at(variant: Variant, seed: int) -> str:
    """Return where a run folder keeps a fitted model."""
    return f"variants/{variant.name}/seed{seed}"


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Let torch, OpenMP and BLAS use so many threads while the block lasts.

    Sums are split over the threads, so another number of them gives other last digits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(limits=threads):
            yield
    finally:
        torch.set_num_threads(before)


def train_once(
    variant: Variant,
    seed: int,
    parts: Parts,
    vectors: Vectors | None,
    config: RunConfig,
    folder: RunFolder,
    progress: Progress | None = None,
) -> Trained:
    """Fit a variant with a seed, or read what an interrupted run had fitted.

    Returns:
        The fitted model with its predictions of validation and test rows.
    """

    def fit(at: Path) -> None:
        at.mkdir(parents=True)
        began = time.monotonic()
        with limited_threads(config.threads):
            model = new_model(variant, config)
            options: dict[str, Any] = {}
            if isinstance(model, TowerRanker):
                options = {"checkpoints": kept, "start_from": _earlier(variant, seed, config)}
            model.fit(
                parts.train,
                parts.validation,
                vectors,
                seed=config.seed + 1000 * seed,
                progress=progress,
                **options,
            )
            seconds = time.monotonic() - began
            held_out = {"validation": parts.validation, "test": parts.test}
            predicted = pl.concat(
                pl.DataFrame({"p_click": model.predict_proba(rows, vectors)}).with_columns(
                    part=pl.lit(part)
                )
                for part, rows in held_out.items()
            )
        model.save_(at / "model")
        predicted.write_parquet(at / "predictions.parquet")
        write_json(
            at / "training.json",
            {
                "seconds": round(seconds, 2),
                "parameters": _parameters(model),
                "peak_bytes": peak_bytes(),
                "curve": _curve(model),
            },
        )

    kept = _checkpoints_at(variant, seed, folder)
    folder.once(trained_at(variant, seed), fit)
    drop_checkpoints_(variant, seed, folder)
    return read_trained(variant, seed, folder.path)


def drop_checkpoints_(variant: Variant, seed: int, folder: RunFolder) -> None:
    """Remove what an interrupted training would have gone on from; its model is there."""
    at = _checkpoints_at(variant, seed, folder)
    shutil.rmtree(at, ignore_errors=True)
    # The last one takes the folder of all with it.
    with suppress(OSError):
        at.parent.rmdir()


def _checkpoints_at(variant: Variant, seed: int, folder: RunFolder) -> Path:
    return folder.path / "checkpoints" / f"{variant.name}-seed{seed}"


def _earlier(variant: Variant, seed: int, config: RunConfig) -> TowerRanker | None:
    """The model of an earlier run that this one goes on from, if any."""
    if config.start_from is None:
        return None
    at = config.start_from / trained_at(variant, seed) / "model"
    if not at.is_dir():
        raise ValueError(
            f"start_from={config.start_from} holds no model of {variant.name} with seed {seed}, "
            "which this run would go on from"
        )
    return TowerRanker.load(at)


def read_trained(variant: Variant, seed: int, run_folder: Path) -> Trained:
    """Read what ``train_once`` left of a variant in a run's folder.

    Raises:
        ValueError: If it was not trained there.
    """
    at = run_folder / trained_at(variant, seed)
    if not at.is_dir():
        raise ValueError(f"{run_folder} holds no model of {variant.name} with seed {seed}")
    predictions = pl.read_parquet(at / "predictions.parquet")
    facts = read_json(at / "training.json")
    by_part = {
        part: predictions.filter(pl.col("part") == part)["p_click"].to_numpy()
        for part in ("validation", "test")
    }
    return Trained(
        variant=variant,
        seed=seed,
        folder=at,
        p_validation_N=by_part["validation"],
        p_test_N=by_part["test"],
        **facts,
    )


def _parameters(model: ClickModel) -> int:
    """Learned numbers: weights of a network or a regression, leaves of trees."""
    if isinstance(model, TowerRanker):
        return sum(weight.numel() for weight in model.network_.state_dict().values())
    if isinstance(model, LightGBMRanker):
        return int(sum(tree["num_leaves"] for tree in model.booster_.dump_model()["tree_info"]))
    return int(model.weight_W.size) + 1 if isinstance(model, LogisticRegression) else 1


def _curve(model: ClickModel) -> list[dict[str, float]]:
    return [asdict(check) for check in model.checks_] if isinstance(model, TowerRanker) else []
