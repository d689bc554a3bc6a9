"""Score raw impressions with a bundle, by onnxruntime alone.

Shape letters: N impressions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embeddings.store import VectorStore
from features.embedding_join import Vectors, join_vectors
from features.examples import Examples
from features.pipeline import FeaturePipeline
from ranking.bundle import GOLDEN_FILE, GOLDEN_SCORE, Bundle, BundleManifest, open_bundle
from ranking.predictor import Predictor


class Scorer:
    """A loaded bundle: raw impressions in, P(click) out."""

    bundle: Bundle
    manifest: BundleManifest
    pipeline: FeaturePipeline
    vectors: Vectors | None
    """Those the model was trained with; None where it uses none."""
    _predictor: Predictor

    @classmethod
    def load(
        cls, bundle: str | Path, *, threads: int = 1, vectors: str | Path | None = None
    ) -> Self:
        """Verify a bundle and load it.

        Args:
            bundle: A folder that ``adtower export`` wrote.
            threads: Of onnxruntime. One is fastest for some hundred candidates.
            vectors: As ``open_bundle`` takes it.

        Raises:
            ValueError: If the folder is no bundle, a file was changed, or its vectors are not
                those that the model was trained with.
        """
        opened = open_bundle(bundle, vectors=vectors)
        scorer = cls()
        scorer.bundle = opened
        scorer.manifest = opened.manifest
        scorer.pipeline = FeaturePipeline.load(opened.features)
        scorer.vectors = None
        if opened.product_vectors is not None and opened.query_vectors is not None:
            scorer.vectors = join_vectors(
                VectorStore.open(opened.product_vectors),
                VectorStore.open(opened.query_vectors),
                scorer.pipeline.product_ids_,
                scorer.pipeline.query_ids_,
            )
            opened.manifest.signature.check_vectors(scorer.vectors)
        scorer._predictor = Predictor.load(opened, threads=threads)
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
        return self._predictor.predict(examples, vectors)

    def golden_difference(self) -> float:
        """Score the golden rows and return the largest distance to the trained model's scores.

        More than 1e-5 means that this machine computes something else than the one that exported.
        """
        golden = pl.read_parquet(self.bundle.path(GOLDEN_FILE))
        p_click_N = self.score(golden.drop(GOLDEN_SCORE))
        return float(np.abs(p_click_N - golden[GOLDEN_SCORE].to_numpy()).max())
