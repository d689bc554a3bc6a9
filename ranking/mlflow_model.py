"""A bundle as an MLflow model, so that whatever runs MLflow models runs it.

The model is made from code (``ranking/mlflow_code.py``): it holds the bundle, the packages that
score it, and no pickle. ``mlflow models serve`` answers with it.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from ranking.bundle import GOLDEN_FILE, BundleManifest
from ranking.checkpoint import published_folder
from ranking.request_table import KEYS
from ranking.score import Scorer

_PACKAGES = ("features", "embeddings", "ranking")
_EXAMPLE_ROWS = 3


def save_mlflow_model(bundle: str | Path, out: str | Path) -> Path:
    """Write a bundle as an MLflow model in a new folder, all of it or nothing.

    Its input are raw impressions, sparse columns as text; ``user_id`` and ``query_id`` may be left
    out, and ``query`` holds texts for queries without a vector, if the bundle can encode them.

    Args:
        bundle: What ``adtower export`` wrote.
        out: A folder that does not exist.

    Returns:
        ``out``, which ``mlflow.pyfunc.load_model`` reads.

    Raises:
        ValueError: If the bundle cannot be loaded, points to vectors elsewhere, or ``out`` exists.
    """
    bundle, out = Path(bundle), Path(out)
    scorer = Scorer.load(bundle)
    source = Path(__file__).resolve()
    with published_folder(out) as folder, _quiet_mlflow() as mlflow:
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(source.with_name("mlflow_code.py")),
            artifacts={"bundle": str(bundle.resolve())},
            code_paths=[str(source.parents[1] / package) for package in _PACKAGES],
            signature=_signature(scorer),
            input_example=_example(scorer),
            pip_requirements=_requirements(scorer.manifest),
            metadata={"adtower_bundle": scorer.bundle.fingerprint},
        )
    return out


@contextmanager
def _quiet_mlflow() -> Iterator[Any]:
    """MLflow, which neither calls home nor tells of what it would have inferred."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    talk = logging.getLogger("mlflow")
    level = talk.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Imported here, because MLflow takes seconds and nothing else of scoring needs it.
        import mlflow.pyfunc

        talk.setLevel(logging.ERROR)
        try:
            yield mlflow
        finally:
            talk.setLevel(level)


def _signature(scorer: Scorer) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    columns: list[Any] = [
        ColSpec(DataType.string, "product_id"),
        ColSpec(DataType.datetime, "time"),
        *(ColSpec(DataType.string, name, required=False) for name in _optional(scorer)),
    ]
    features = scorer.pipeline.spec.features
    for name in features.of_impressions():
        if name not in KEYS:
            kind = DataType.double if name in features.dense else DataType.string
            columns.append(ColSpec(kind, name))
    return ModelSignature(
        inputs=Schema(columns), outputs=Schema([ColSpec(DataType.double, "p_click")])
    )


def _optional(scorer: Scorer) -> list[str]:
    texts = ["query"] if scorer.query_encoder is not None else []
    return ["user_id", "query_id", *texts]


def _example(scorer: Scorer) -> Any:
    """The first golden rows, in the types of the signature."""
    features = scorer.pipeline.spec.features
    golden = pl.read_parquet(scorer.bundle.path(GOLDEN_FILE)).head(_EXAMPLE_ROWS)
    rows = golden.select(
        pl.col(name).cast(pl.Float64 if name in features.dense else pl.String)
        for name in scorer.pipeline.required_columns
        if name != "time"
    )
    # MLflow's columns of times have no zone; adtower takes them as UTC.
    time = golden["time"].dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return rows.with_columns(time).to_pandas()


def _requirements(manifest: BundleManifest) -> list[str]:
    scores = {"onnx": "onnxruntime", "lightgbm": "lightgbm"}
    own = sorted({scores[member.kind] for member in manifest.members})
    needed = ("mlflow", "numpy", "pandas", "polars", "pyarrow", "pydantic", "tokenizers", *own)
    return [f"{name}=={version(name)}" for name in needed]
