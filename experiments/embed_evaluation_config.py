"""What the judging of vectors can be told."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator


class JudgeVectorsConfig(BaseModel):
    """What `adtower embed evaluate` can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trained_on: Path | None = None
    """Parquet file with the query_id and product_id of the pairs that the vectors learned from; by
    default the pairs that a run of this dataset trains on."""
    cutoffs: tuple[int, ...] = (10, 100)
    """Ranks K at which recall and nDCG are taken."""
    queries: int = Field(default=1000, ge=20)
    """Queries at most in each cell of the four-way split, a sample."""
    draws: int = Field(default=500, ge=20)
    """Draws of the queries that intervals rest on."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Of all intervals."""
    probe_rows: int = Field(default=5000, ge=50)
    """Products at most that probes learn from and are judged on, a sample."""
    map_points: int = Field(default=1000, ge=10)
    """Products at most on the map of Figure 4, a sample."""
    modalities: bool = True
    """Also judge products by text alone and by image alone, where the run has its models."""
    text_weights: str = "minilm"
    """Of the frozen off-the-shelf encoder, where a run has not stored its vectors."""
    seed: int = Field(default=0, ge=0)
    """Of all samples and draws."""

    @field_validator("cutoffs")
    @classmethod
    def _positive_cutoffs(cls, cutoffs: tuple[int, ...]) -> tuple[int, ...]:
        if not cutoffs or min(cutoffs) < 1 or len(set(cutoffs)) < len(cutoffs):
            raise ValueError(f"cutoffs are {cutoffs}; give different ranks of at least 1")
        return cutoffs
