"""What ``adtower features build`` wrote, as a run trains on it: arrays on disk instead of a log."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Self

import polars as pl

from experiments.config import RunConfig
from experiments.training import Parts, compared_parts
from features.arrays import FEATURES, PARTS, FeatureArrays
from features.dataset import Dataset
from features.pipeline import FeaturePipeline
from features.split import moment


class BuiltFeatures:
    """The arrays and their pipeline, with and without the columns that come from vectors."""

    def __init__(self, arrays: FeatureArrays) -> None:
        self.arrays = arrays

    @classmethod
    def of(cls, config: RunConfig, dataset: Dataset) -> Self | None:
        """Return what a run is told to train on; None where it makes its features itself.

        Raises:
            ValueError: If it was built from other data, or told otherwise.
        """
        if config.features is None:
            return None
        arrays = FeatureArrays.open(config.features)
        arrays.refuse_unlike(dataset, min_count=config.min_count)
        return cls(arrays)

    @cached_property
    def compared_pipeline(self) -> FeaturePipeline:
        """The pipeline as it was built, with cosines of one kind of vectors if asked for."""
        return FeaturePipeline.load(self.arrays.folder / FEATURES)

    @cached_property
    def pipeline(self) -> FeaturePipeline:
        """The pipeline without cosines, which serves all variants."""
        return self.compared_pipeline.without_vectors()

    def compares_by(self, vectors_fingerprint: str | None) -> bool:
        """Whether the arrays hold the cosines of these vectors."""
        built = self.compared_pipeline.cosines_fingerprint
        return built is not None and built == vectors_fingerprint

    def parts(self, pipeline: FeaturePipeline) -> Parts:
        """Return the impressions with the columns of a pipeline, those that were built mapped.

        Args:
            pipeline: One of the two, or the plain one with cosines of other vectors.
        """
        fingerprint = pipeline.cosines_fingerprint
        if fingerprint is not None and not self.compares_by(fingerprint):
            return compared_parts(self.parts(self.pipeline), pipeline)
        # Cosines are the last columns.
        columns = len(pipeline.dense_names)
        parts = {part: self.arrays.examples(part) for part in PARTS}
        return Parts(
            **{
                part: replace(
                    rows,
                    dense_names=rows.dense_names[:columns],
                    dense_NC=rows.dense_NC[:, :columns],
                )
                for part, rows in parts.items()
            }
        )

    def validation_sample(self, dataset: Dataset, rows: int) -> pl.DataFrame:
        """Return at most so many raw impressions of the validation part, evenly over its time.

        The log is read a row group at a time.
        """
        start, stop = map(moment, self.arrays.manifest["boundaries_us"])
        stride = max(1, -(-self.arrays.rows("validation") // rows))
        kept, seen = [], 0
        for part in dataset.parts_of("impressions"):
            inside = part.filter(pl.col("time").is_between(start, stop, closed="left"))
            kept.append(inside.gather_every(stride, offset=-seen % stride))
            seen += len(inside)
        return pl.concat(kept).head(rows)
