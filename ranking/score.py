"""Score raw impressions with a bundle, by onnxruntime alone.

Shape letters: N impressions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embeddings.store import VectorStore
from features.embedding_join import Vectors, gather_vectors, join_vectors
from features.examples import Examples
from features.pipeline import FeaturePipeline
from ranking.bundle import (
    FEATURES,
    GOLDEN_FILE,
    GOLDEN_SCORE,
    ONNX_FILE,
    OUTPUT_NAME,
    PRODUCT_VECTORS,
    QUERY_VECTORS,
    TREES_FILE,
    BundleManifest,
    onnx_inputs,
    open_bundle,
)
from ranking.contract import check_examples

# Vectors of this many rows are gathered at once; at 384 dimensions they take 40 MB.
_SCORING_BATCH = 8192


class Scorer:
    """A loaded bundle: raw impressions in, P(click) out."""

    manifest: BundleManifest
    pipeline: FeaturePipeline
    vectors: Vectors | None
    """Those the model was trained with; None where it uses none."""
    _golden_path: Path
    _predict: Callable[[Examples, Vectors | None], NDArray[np.floating]]

    @classmethod
    def load(cls, bundle: str | Path, *, threads: int = 1) -> Self:
        """Verify a bundle and load it.

        Args:
            bundle: A folder that ``adtower export`` wrote.
            threads: Of onnxruntime. One is fastest for some hundred candidates.

        Raises:
            ValueError: If the folder is no bundle, a file was changed, or its vectors are not
                those that the model was trained with.
        """
        bundle = Path(bundle)
        scorer = cls()
        scorer.manifest = open_bundle(bundle)
        scorer.pipeline = FeaturePipeline.load(bundle / FEATURES)
        scorer.vectors = None
        expected = scorer.manifest.signature.vectors_fingerprint
        if expected is not None:
            scorer.vectors = join_vectors(
                VectorStore.open(bundle / PRODUCT_VECTORS),
                VectorStore.open(bundle / QUERY_VECTORS),
                scorer.pipeline.product_ids_,
                scorer.pipeline.query_ids_,
            )
        scorer._golden_path = bundle / GOLDEN_FILE
        if scorer.manifest.kind == "lightgbm":
            scorer._predict = _trees(bundle / TREES_FILE)
        else:
            scorer._predict = _session(bundle / ONNX_FILE, threads)
        return scorer

    def score(self, impressions: pl.DataFrame) -> NDArray[np.float64]:
        """Return P(click) of every impression, shape (N,).

        Args:
            impressions: Raw rows with the columns of ``FeaturePipeline.required_columns``. Unknown
                users, queries and products are scored as such.

        Raises:
            ValueError: If a column is missing, has the wrong type or holds what it may not.
        """
        return self.score_examples(self.pipeline.transform(impressions), self.vectors)

    def score_examples(self, examples: Examples, vectors: Vectors | None) -> NDArray[np.float64]:
        """Return P(click) of impressions that are arrays already, shape (N,).

        Raises:
            ValueError: If features or vectors are not those the model was trained with.
        """
        vectors = None if self.manifest.signature.vectors_fingerprint is None else vectors
        self.manifest.signature.check(examples, vectors)
        check_examples(examples, vectors)
        p_click_N = np.empty(len(examples), np.float64)
        for start in range(0, len(examples), _SCORING_BATCH):
            rows = slice(start, start + _SCORING_BATCH)
            p_click_N[rows] = self._predict(examples.take(rows), vectors)
        if self.manifest.calibration is None or self.manifest.calibration_inside:
            return p_click_N
        from ranking.calibration import calibrator_from_dict

        return calibrator_from_dict(self.manifest.calibration).calibrate(p_click_N)

    def golden_difference(self) -> float:
        """Score the golden rows and return the largest distance to the trained model's scores.

        More than 1e-5 means that this machine computes something else than the one that exported.
        """
        golden = pl.read_parquet(self._golden_path)
        p_click_N = self.score(golden.drop(GOLDEN_SCORE))
        return float(np.abs(p_click_N - golden[GOLDEN_SCORE].to_numpy()).max())


def _session(
    path: Path, threads: int
) -> Callable[[Examples, Vectors | None], NDArray[np.floating]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def predict(examples: Examples, vectors: Vectors | None) -> NDArray[np.float32]:
        rows = None if vectors is None else gather_vectors(vectors, examples)
        inputs = onnx_inputs(examples.sparse_NF, examples.dense_NC, rows)
        return np.asarray(session.run([OUTPUT_NAME], inputs)[0])

    return predict


def _trees(path: Path) -> Callable[[Examples, Vectors | None], NDArray[np.floating]]:
    # Imported here, because bundles of networks must load where LightGBM is not installed.
    import lightgbm

    from ranking.columns import tree_columns

    booster = lightgbm.Booster(model_str=path.read_text(encoding="utf-8"))

    def predict(examples: Examples, vectors: Vectors | None) -> NDArray[np.float64]:
        return np.asarray(booster.predict(tree_columns(examples, vectors)), np.float64)

    return predict
