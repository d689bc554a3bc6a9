"""A claim on real clicks: which model orders the results of a search log best, and how calibrated.

The log is cut by time: the last fifth of its pages is test, the last eighth of the rest decides
when training stops and fits the calibration. All models but ``rank_alone`` and ``logistic_ids`` get
the same columns: what earlier pages say of query, url and session, and the rank. The ids of query
and url are not among them, for on validation rows they cost networks .004 of AUC.

Shape letters: N results.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.clara2_features import search_features, without_position
from experiments.figures import calibration_figure
from experiments.progress import Progress, Silent
from experiments.records import write_bytes, write_json, write_metrics
from features.dense import DenseTransform
from features.examples import Examples
from features.sparse import Vocabulary
from ranking.baselines import (
    BaseRate,
    LightGBMConfig,
    LightGBMRanker,
    LogisticRegression,
    LogisticRegressionConfig,
)
from ranking.calibration import Platt, reliability_curve
from ranking.contract import ClickModel
from ranking.drift import follow_drift
from ranking.intervals import auc_components, auc_difference, delong_interval
from ranking.metrics import auc, calibration_ratio, grouped_auc, log_loss_nats
from ranking.predictor import average
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.125
"""Of what is not test."""

HISTORY = 8
"""Results clicked earlier in the session that attention sees."""

DRIFT_PAGES = 2_000
"""Newest pages by whose clicks the calibration is corrected: about 600 clicks."""

SLOTS = 10

NETWORK = TowerConfig(
    use_vectors=False,
    embedding_dim=8,
    batch_size=1024,
    max_epochs=4,
    checks_per_epoch=2,
    lr=1e-3,
    sparse_lr=0.02,
    dropout=0.2,
    production_mlp=(128, 64),
)
TREES = LightGBMConfig(
    rounds=600,
    patience=40,
    learning_rate=0.05,
    leaves=15,
    largest_vocabulary=50,
    l2=5.0,
    column_share=0.5,
    row_share=0.8,
)
"""Chosen on the validation rows, as the network's settings were."""

CANNOT_BE_FED = {
    "tower": "vectors",
    "single_tower": "vectors",
    "semantic_ids": "vectors",
    "frequency_gate": "vectors",
    "entire_space": "purchases",
}
"""Models that this log cannot feed, and what it lacks: it has ids and clicks alone."""

MORE_SEEDS = (1, 2)
"""Further seeds of ``production`` in ``best``."""

Figures = dict[str, float]
Predictions = tuple[NDArray[np.float64], NDArray[np.float64]]
"""P(click) of the validation and of the test rows."""


@dataclass(frozen=True, kw_only=True)
class SearchLog:
    """The log as examples: ids and the features of ``clara2_features``, cut by time."""

    train: Examples
    validation: Examples
    test: Examples

    def of_columns(self, sparse: list[str], dense: list[str]) -> SearchLog:
        """Return the log with some of its columns alone."""
        parts = {
            part: _of_columns(getattr(self, part), sparse, dense)
            for part in ("train", "validation", "test")
        }
        return SearchLog(**parts)


def reproduce_clara2(
    source: Path,
    out: Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Figures:
    """Fit every model that the log can feed, with the position and without, and judge them.

    Args:
        source: Folder with clara2/serp_clicks.parquet.
        out: Folder of the run.
        seed: Of all models.
        overwrite: Replace an earlier run.
        progress: Told of the stages.

    Returns:
        ``NAME.auc`` with its interval over sessions (``_low``, ``_high``), ``NAME.log_loss`` and
        ``NAME.calibration_ratio`` on test rows, calibrated on validation rows and followed by
        the outcomes of earlier pages (``NAME.calibration_ratio_fixed`` is without the second);
        ``NAME.same_rank_auc``, which compares results of one rank alone; the same under
        ``no_position.``; and ``debiasing.`` for what the position's tower changes. ``best`` is the
        mean of the logits of the trees and the networks.

    Raises:
        ValueError: If the data is not there, or ``out`` holds a finished run.
    """
    progress = progress or Silent()
    out = Path(out)
    if (out / "metrics.json").is_file() and not overwrite:
        raise ValueError(
            f"{out} holds a finished run; choose another --out, or pass --overwrite to replace it"
        )
    with progress.stage("counting earlier pages"):
        log = read_log(Path(source))
        examples = search_examples(log)
    rank_N = examples.test.position_N
    assert rank_N is not None
    metrics: Figures = {}
    fitted: dict[str, dict[str, Predictions]] = {}
    for name in ("", "no_position."):
        fitted[name] = _fit_all(examples, with_position=not name, seed=seed, progress=progress)
        fitted[name]["best"] = _best(fitted[name])
        for model, (p_validation_N, p_test_N) in fitted[name].items():
            measured = judge(examples, rank_N, p_validation_N, p_test_N)
            metrics |= {f"{name}{model}.{key}": value for key, value in measured.items()}
    metrics |= _debiasing(examples, rank_N, fitted["no_position."])
    if overwrite:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    label_N = _label(examples.test)
    curves = {
        model: reliability_curve(label_N, calibrated(examples, *fitted[""][model]))
        for model in ("best", "logistic")
    }
    write_bytes(out / "reliability.png", calibration_figure(curves, image_format="png"))
    settings = {"network": NETWORK.model_dump(mode="json"), "trees": TREES.model_dump(mode="json")}
    write_json(out / "config.json", {"name": "clara2", "seed": seed, **settings})
    write_metrics(out / "metrics.json", metrics)
    return metrics


def read_log(source: Path) -> pl.DataFrame:
    """Return page, session, query, url, rank, clicked, sorted by page and rank.

    Raises:
        ValueError: If the file is missing.
    """
    path = source / "clara2" / "serp_clicks.parquet"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; --source is the folder that holds clara2/")
    ids = [pl.col(name).cast(pl.String) for name in ("session", "query", "url")]
    log = pl.read_parquet(path).select(
        pl.col("serp").rank("dense").cast(pl.Int64).alias("page") - 1,
        *ids,
        pl.col("rank").cast(pl.Int64),
        pl.col("click").cast(pl.Int64).alias("clicked"),
    )
    return log.sort("page", "rank", maintain_order=True)


def search_examples(log: pl.DataFrame) -> SearchLog:
    """Turn a log into arrays; vocabularies and scales are learned on its training rows."""
    pages = int(log["page"].max() or 0) + 1  # type: ignore[arg-type]
    first_test = pages - int(pages * TEST_SHARE)
    first_validation = first_test - int(first_test * VALIDATION_SHARE)
    cuts = np.searchsorted(log["page"].to_numpy(), [first_validation, first_test])
    training = slice(0, int(cuts[0]))
    features = search_features(log)
    dense_names: list[str] = []
    dense = []
    for column in features.get_columns():
        transform = DenseTransform(column.name).fit(column[training])
        dense_names += transform.output_names
        dense.append(transform.transform(column))
    sparse = {name: log[name].cast(pl.String) for name in ("rank", "query", "url")}
    vocabularies = {n: Vocabulary(min_count=5).fit(c[training]) for n, c in sparse.items()}
    url_N = log["url"].rank("dense").to_numpy().astype(np.int32) - 1
    examples = Examples(
        sparse_names=tuple(sparse),
        sparse_NF=np.stack([vocabularies[n].transform(c) for n, c in sparse.items()], axis=1),
        vocabulary_sizes=tuple(vocabularies[name].size for name in sparse),
        dense_names=tuple(dense_names),
        dense_NC=np.concatenate(dense, axis=1),
        product_N=url_N,
        query_N=log["query"].rank("dense").to_numpy().astype(np.int32) - 1,
        history_NL=clicked_before(log, url_N),
        user_N=log["session"].rank("dense").to_numpy().astype(np.int64) - 1,
        request_N=log["page"].to_numpy(),
        time_us_N=log["page"].to_numpy(),
        label_N=log["clicked"].to_numpy().astype(np.float32),
        position_N=log["rank"].to_numpy().astype(np.int32),
    )
    return SearchLog(
        train=examples.take(training),
        validation=examples.take(slice(int(cuts[0]), int(cuts[1]))),
        test=examples.take(slice(int(cuts[1]), None)),
    )


def clicked_before(log: pl.DataFrame, url_N: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the results that the session clicked on earlier pages, newest first, shape (N, L)."""
    rows = log.select("session", "page").with_columns(url=pl.Series(url_N), clicked=log["clicked"])
    pages = rows.group_by("session", "page").agg(
        pl.col("url").filter(pl.col("clicked") == 1).reverse()
    )
    history = np.full((pages["page"].max() + 1, HISTORY), -1, np.int32)  # type: ignore[operator]
    seen: dict[str, list[int]] = {}
    for session, page, urls in pages.sort("page").iter_rows():
        newest = seen.get(session, [])
        history[page, : len(newest)] = newest
        seen[session] = [*urls, *newest][:HISTORY]
    return history[log["page"].to_numpy()]


def without_position_columns(names: list[str]) -> list[str]:
    """Return the dense columns, missing masks among them, that do not tell the position."""
    kept = set(without_position([name.removesuffix(".missing") for name in names]))
    return [name for name in names if name.removesuffix(".missing") in kept]


def models(
    log: SearchLog, *, with_position: bool
) -> dict[str, tuple[SearchLog, Callable[[], ClickModel]]]:
    """Return the models of the table by name: what each is given, and how it is made."""
    rank = ["rank"] if with_position else []
    names = list(log.test.dense_names)
    names = names if with_position else without_position_columns(names)
    given = log.of_columns(rank, names)

    def network(**options: object) -> Callable[[], ClickModel]:
        return lambda: TowerRanker(NETWORK.model_copy(update=options))

    def logistic() -> ClickModel:
        return LogisticRegression(LogisticRegressionConfig(c_values=(0.03, 0.3)))

    found: dict[str, tuple[SearchLog, Callable[[], ClickModel]]] = {
        "base_rate": (given, BaseRate),
        "logistic_ids": (log.of_columns([*rank, "query", "url"], []), logistic),
        "logistic": (given, logistic),
        "lightgbm": (given, lambda: LightGBMRanker(TREES)),
        "production": (given, network()),
        "full_rank": (given, network(cross_rank=None)),
        "attention": (given, network(attention="ids")),
    }
    if with_position:
        found["rank_alone"] = (log.of_columns(rank, []), logistic)
    else:
        found["position_tower"] = (given, network(position_slots=SLOTS))
    return found


def judge(
    log: SearchLog,
    rank_N: NDArray[np.int32],
    p_validation_N: NDArray[np.float64],
    p_test_N: NDArray[np.float64],
) -> Figures:
    """Return the figures of one model on the test rows."""
    label_N, session_N = _label(log.test), log.test.user_N
    fixed_N = _calibrator(log, p_validation_N)(p_test_N)
    p_N = calibrated(log, p_validation_N, p_test_N)
    value, low, high = delong_interval(label_N, p_test_N, cluster_N=session_N)
    return {
        "auc": value,
        "auc_low": low,
        "auc_high": high,
        "same_rank_auc": grouped_auc(label_N, p_test_N, rank_N),
        "validation_auc": auc(_label(log.validation), p_validation_N),
        "log_loss": log_loss_nats(label_N, p_N),
        "calibration_ratio": calibration_ratio(label_N, p_N),
        "calibration_ratio_fixed": calibration_ratio(label_N, fixed_N),
    }


def calibrated(
    log: SearchLog, p_validation_N: NDArray[np.float64], p_test_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return test predictions calibrated on validation rows and by the clicks of earlier pages."""
    calibrate = _calibrator(log, p_validation_N)
    label_N = np.concatenate([_label(log.validation), _label(log.test)])
    p_N = calibrate(np.concatenate([p_validation_N, p_test_N]))
    page_N = np.concatenate([log.validation.request_N, log.test.request_N])
    followed_N = follow_drift(label_N, p_N, page_N - page_N.min(), window=DRIFT_PAGES)
    return followed_N[len(p_validation_N) :]


def _fit_all(
    log: SearchLog, *, with_position: bool, seed: int, progress: Progress
) -> dict[str, Predictions]:
    """Predictions of validation and test rows by every model."""
    table = models(log, with_position=with_position)
    fits = [(name, name, seed) for name in table]
    fits += [(f"production_{more}", "production", seed + more) for more in MORE_SEEDS]
    found = {}
    for name, model_name, own_seed in fits:
        with progress.stage(f"{name}{'' if with_position else ', no position'}"):
            given, new = table[model_name]
            model = new().fit(given.train, given.validation, None, seed=own_seed)
            validation_N, test_N = (
                model.predict_proba(part, None) for part in (given.validation, given.test)
            )
            found[name] = (validation_N, test_N)
    return found


def _best(fitted: Mapping[str, Predictions]) -> Predictions:
    members = ["lightgbm", "full_rank", "attention"]
    members += [name for name in fitted if name.startswith("production")]
    validation_N, test_N = (
        average(np.stack([fitted[name][part] for name in members]), "logit") for part in (0, 1)
    )
    return validation_N, test_N


def _debiasing(
    log: SearchLog, rank_N: NDArray[np.int32], fitted: Mapping[str, Predictions]
) -> Figures:
    """What learning the position in a tower of its own changes, scored without it in both."""
    label_N, session_N = _label(log.test), log.test.user_N
    biased_N, debiased_N = fitted["production"][1], fitted["position_tower"][1]
    debiased, biased = (auc_components(label_N, [p_N]) for p_N in (debiased_N, biased_N))
    difference = auc_difference(label_N, debiased, biased, session_N)
    low, high = difference.interval(0.95)
    same_rank = [grouped_auc(label_N, p_N, rank_N) for p_N in (debiased_N, biased_N)]
    return {
        "debiasing.delta_auc": difference.value,
        "debiasing.delta_auc_low": low,
        "debiasing.delta_auc_high": high,
        "debiasing.delta_same_rank_auc": same_rank[0] - same_rank[1],
    }


def _calibrator(
    log: SearchLog, p_validation_N: NDArray[np.float64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    if np.ptp(p_validation_N) == 0:
        # One prediction for all has no slope to mend.
        return lambda p_N: p_N
    return Platt.fit(_label(log.validation), p_validation_N).calibrate


def _label(examples: Examples) -> NDArray[np.float32]:
    assert examples.label_N is not None, "every row of a click log has a label"
    return examples.label_N


def _of_columns(examples: Examples, sparse: list[str], dense: list[str]) -> Examples:
    f = [examples.sparse_names.index(name) for name in sparse]
    c = [examples.dense_names.index(name) for name in dense]
    return replace(
        examples,
        sparse_names=tuple(sparse),
        sparse_NF=examples.sparse_NF[:, f],
        vocabulary_sizes=tuple(examples.vocabulary_sizes[i] for i in f),
        dense_names=tuple(dense),
        dense_NC=examples.dense_NC[:, c],
    )
