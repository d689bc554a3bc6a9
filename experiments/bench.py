"""How fast adtower's stages are, each beside a plain way of doing the same in the same run.

Shared cores make absolute times worthless, so every figure stands beside its peer's, measured on
the same data, weights, threads and machine within the same minute. ``experiments.bench_peers``
holds the plain ways.

Shape letters: V texts, D embedding size, N impressions, G groups.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from embeddings.baselines import random_vectors, text_vectors
from embeddings.weights import find_text_weights
from experiments.bench_data import clicks, criteo_shaped, texts_of
from experiments.bench_embeddings import bench_embeddings
from experiments.bench_export import bench_export
from experiments.bench_features import bench_features
from experiments.bench_peers import (
    bootstrap_aucs_plainly,
    encode_texts_plainly,
    group_aucs_plainly,
    train_plainly,
)
from experiments.bench_ranking import bench_ranking
from experiments.bench_serve import bench_serve
from experiments.bench_stages import BENCH_STAGES, BenchStage
from experiments.marketplace.world import make_world
from experiments.progress import Progress, Silent
from features.dataset import Dataset
from features.embedding_join import join_vectors
from features.pipeline import FeaturePipeline
from ranking.export import export_bundle
from ranking.intervals import auc_components, auc_estimate
from ranking.metrics import auc_by_group
from ranking.score import Scorer
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig

REPEATS, REPEAT_SECONDS = 3, 10.0
TABLE_ROWS = 100_000
"""Rows of each id table: 2.6 million in all, where Criteo_x1 has 2.1."""
VALIDATION_ROWS = 4096
BOOTSTRAPS = 1000

Metrics = dict[str, float]
Result = TypeVar("Result")


def run_bench(
    *,
    rows: int = 200_000,
    texts: int = 600,
    products: int = 192,
    stages: Sequence[BenchStage] = BENCH_STAGES,
    progress: Progress | None = None,
) -> Metrics:
    """Time stages beside their peers.

    Args:
        rows: Impressions of the generated click data and of the metrics' data; at least 2,000.
        texts: Titles and queries to encode; the peer manages some dozens a second.
        products: Images with titles that encoders train on.
        stages: Which; all by default.
        progress: Told of the stages.

    Returns:
        Flat figures. ``speedup.STAGE`` is the peer's time over adtower's: above 1 adtower is
        faster.

    Raises:
        ValueError: If ``rows`` is below 2,000, ``texts`` below 2 or ``products`` below 4, a stage
            is unknown, or no text weights are found.
    """
    if rows < 2000 or texts < 2 or products < 4:
        raise ValueError(
            f"rows is {rows}, texts {texts} and products {products}; at least 2,000 rows, 2 texts "
            "and 4 products are needed for a time that means anything"
        )
    if unknown := set(stages) - set(BENCH_STAGES):
        raise ValueError(
            f"stages {sorted(unknown)} are unknown; there are {', '.join(BENCH_STAGES)}"
        )
    progress = progress or Silent()
    metrics: Metrics = {"rows": float(rows)}
    with tempfile.TemporaryDirectory() as scratch:

        @cache
        def world() -> Dataset:
            return Dataset.open(make_world(Path(scratch) / "world", products=300, requests=600))

        measures: dict[BenchStage, Callable[[], Metrics]] = {
            "embeddings": lambda: bench_embeddings(
                world(), products=products, batch=min(32, products // 2), texts=2 * texts
            ),
            "text_encoding": lambda: bench_text_encoding(texts_of(world(), texts)),
            "click_training": lambda: bench_click_training(rows),
            "grouped_auc": lambda: bench_grouped_auc(rows),
            "interval": lambda: bench_interval(rows),
            "scoring": lambda: bench_scoring(world(), Path(scratch) / "bundle"),
            "serve": lambda: bench_serve(world(), Path(scratch) / "served"),
            "features": lambda: bench_features(rows),
            "ranking": lambda: bench_ranking(rows, progress=progress),
            "export": lambda: bench_export(table_rows=min(TABLE_ROWS, rows)),
        }
        for stage in stages:
            with progress.stage(f"bench: {stage}"):
                metrics |= measures[stage]()
    return metrics


def bench_text_encoding(texts: list[str]) -> Metrics:
    """Encode texts by length in the probed precision, against padding all to 128 in float32.

    Both times go from weights on disk to vectors in memory.

    Returns:
        ``text_encoding.min_cosine`` is the least cosine between the two vectors of one text: 1
        would be equal.
    """
    weights = find_text_weights(require_pretrained=True)
    assert weights.path is not None
    folder = weights.path
    own_VD, own_s = _timed(lambda: text_vectors(texts, weights))
    peer_VD, peer_s = _timed(lambda: encode_texts_plainly(texts, folder))
    return {
        "text_encoding.texts_per_s": len(texts) / own_s,
        "text_encoding.peer_texts_per_s": len(texts) / peer_s,
        "text_encoding.min_cosine": float((own_VD * peer_VD).sum(axis=1).min()),
        "speedup.text_encoding": peer_s / own_s,
    }


def bench_click_training(rows: int) -> Metrics:
    """Train the click model without vectors, against the same network written plainly.

    One pass over Criteo-shaped data. adtower's rate is taken from the first to the last check of
    the validation rows, so building the tables is left out and the checks are paid for; the
    peer's leaves out building and checks alike, and sees fewer rows, for it is slow.

    Args:
        rows: Training impressions; the 26 id tables have no more rows than this.
    """
    config = TowerConfig(
        use_vectors=False,
        batch_size=min(4096, rows // 16),
        max_epochs=1,
        checks_per_epoch=4,
        patience=1000,
    )
    table_rows = min(TABLE_ROWS, rows)
    data = criteo_shaped(rows + VALIDATION_ROWS, table_rows=table_rows, seed=0)
    train, validation = data.take(slice(0, rows)), data.take(slice(rows, None))
    checks: list[tuple[float, int]] = []
    TowerRanker(config).fit(
        train,
        validation,
        None,
        seed=0,
        progress=lambda step, total, text: checks.append((time.perf_counter(), step)),
    )
    (began, first), (ended, last) = checks[0], checks[-1]
    own = (last - first) * config.batch_size / (ended - began)
    # The last batch may be smaller than counted, by less than one step in the whole pass.
    few = train.take(slice(0, max(rows // 10, 8 * config.batch_size)))
    peer = train_plainly(few, config, seed=0, warm_up=2)
    return {
        "click_training.rows_per_s": own,
        "click_training.peer_rows_per_s": peer,
        "speedup.click_training": own / peer,
    }


def bench_grouped_auc(rows: int, *, peer_groups: int = 1000) -> Metrics:
    """Compute the AUC inside every user at once, against one scikit-learn call a user.

    The peer's time on ``peer_groups`` users is multiplied up to all users that have an AUC. One
    user in twenty rows: 200,000 rows are 10,000 users.

    Returns:
        ``grouped_auc.max_difference`` is the largest distance between the two on those users.
    """
    label_N, score_N, user_N = clicks(rows)
    groups, own_s = _timed(lambda: auc_by_group(label_N, score_N, user_N))
    defined_G = ~np.isnan(groups.auc_G)
    few_G = np.flatnonzero(defined_G)[:peer_groups]
    peer_G, peer_s = _timed(
        lambda: group_aucs_plainly(label_N, score_N, user_N, groups.group_G[few_G])
    )
    peer_s *= defined_G.sum() / len(few_G)
    return {
        "grouped_auc.ms": own_s * 1e3,
        "grouped_auc.peer_ms": float(peer_s) * 1e3,
        "grouped_auc.max_difference": float(np.abs(peer_G - groups.auc_G[few_G]).max()),
        "speedup.grouped_auc": float(peer_s) / own_s,
    }


def bench_interval(rows: int, *, draws: int = 50) -> Metrics:
    """Find the standard error of an AUC over users by DeLong, against drawing users anew.

    The peer's time for ``draws`` bootstraps is multiplied up to the usual 1,000.

    Returns:
        ``interval.error_ratio`` is DeLong's standard error over the bootstrap's: 1 is agreement,
        and fifty draws know their own to about ten percent.
    """
    label_N, score_N, user_N = clicks(rows)
    estimate, own_s = _timed(
        lambda: auc_estimate(label_N, auc_components(label_N, [score_N]), user_N)
    )
    drawn, peer_s = _timed(
        lambda: bootstrap_aucs_plainly(label_N, score_N, user_N, draws=draws, seed=0)
    )
    peer_s *= BOOTSTRAPS / draws
    return {
        "interval.ms": own_s * 1e3,
        "interval.peer_ms": peer_s * 1e3,
        "interval.error_ratio": estimate.standard_error / float(drawn.std(ddof=1)),
        "speedup.interval": peer_s / own_s,
    }


def bench_scoring(world: Dataset, bundle: Path) -> Metrics:
    """Score candidates by an exported bundle, against the trained model in eager torch.

    The model is the paper's two towers over random vectors; its weights do not matter here. Both
    start from the same feature arrays.

    Args:
        world: A dataset with products, queries and impressions.
        bundle: Where the bundle is written.
    """
    split = world.split()
    pipeline = FeaturePipeline(world.spec).fit(world, split.train)
    stores = (
        random_vectors(pipeline.product_ids_, 384, 0),
        random_vectors(pipeline.query_ids_, 384, 1),
    )
    vectors = join_vectors(*stores, pipeline.product_ids_, pipeline.query_ids_)
    train, validation = pipeline.transform(split.train), pipeline.transform(split.validation)
    model = TowerRanker(TowerConfig(max_epochs=1)).fit(train, validation, vectors, seed=0)
    scorer = Scorer.load(export_bundle(model, pipeline, *stores, split.validation, bundle))
    metrics: Metrics = {}
    for rows in (100, 1000):
        some = train.take(np.arange(rows) % len(train))
        own_N, own_s = _timed(lambda some=some: scorer.score_examples(some, vectors), calls=20)
        peer_N, peer_s = _timed(lambda some=some: model.predict_proba(some, vectors), calls=20)
        metrics |= {
            f"scoring.onnx_ms_{rows}": own_s * 1e3,
            f"scoring.eager_ms_{rows}": peer_s * 1e3,
            f"scoring.max_difference_{rows}": float(np.abs(own_N - peer_N).max()),
            f"speedup.scoring_{rows}": peer_s / own_s,
        }
    return metrics


def _timed(call: Callable[[], Result], *, calls: int = 1) -> tuple[Result, float]:
    """Return what ``call`` returns, and its least time in seconds.

    The least of three repeats, or of as many as begin within ten seconds; a repeat is ``calls``
    calls, their time divided.
    """
    started, seconds = time.perf_counter(), []
    while True:
        began = time.perf_counter()
        for _ in range(calls - 1):
            call()
        result = call()
        ended = time.perf_counter()
        seconds.append((ended - began) / calls)
        if len(seconds) == REPEATS or ended - started > REPEAT_SECONDS:
            return result, min(seconds)
