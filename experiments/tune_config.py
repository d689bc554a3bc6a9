"""What a search for settings is told."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class TuneConfig(BaseModel):
    """What a search is for, and how long it goes on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path
    """The dataset: a folder with a dataset.toml."""
    features: Path | None = None
    """What `adtower features build` wrote of this dataset, to be read where it lies on disk."""
    out: Path
    """Folder of the search; new, or that of an earlier search of the same data and variant."""
    trials: int = Field(default=30, ge=1)
    """Models trained in all, those of earlier calls included."""
    variant: str = "production"
    """Whose click model; one with vectors makes them first, as `adtower run` does."""
    seed: int = Field(default=0, ge=0)
    """Of the search and of every model."""
    max_epochs: int = Field(default=3, ge=1)
    """Passes over the training rows at most, for every trial."""
    threads: int = Field(default=1, ge=1)
    """Threads of a training; another number changes the last digits."""
