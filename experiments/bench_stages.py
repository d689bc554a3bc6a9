"""The names of what ``adtower bench`` times, apart from the work, so that they are quickly read."""

from __future__ import annotations

from typing import Literal, get_args

BenchStage = Literal[
    "embeddings",
    "text_encoding",
    "click_training",
    "grouped_auc",
    "interval",
    "scoring",
    "export",
    "serve",
    "features",
    "ranking",
]
BENCH_STAGES: tuple[BenchStage, ...] = get_args(BenchStage)
