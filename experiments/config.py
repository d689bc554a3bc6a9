"""Everything a run can be told, in one typed record; the command line is made from it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from embeddings.stage1_config import Stage1Config
from embeddings.stage2_config import Stage2Config
from experiments.label_files import labels_digests
from experiments.variants import VectorSource
from features.arrays import FeatureArrays
from ranking.tower_config import TowerConfig


class AbConfig(BaseModel):
    """How large the simulated A/B test is, and between whom."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    control: str = "production"
    """The variant that arm A is served by."""
    treatment: str = "dashclip"
    """The variant that arm B is served by."""
    requests: int = Field(default=60_000, ge=100)
    """Requests drawn after the end of the log; both variants rank all of them."""
    salt: str = "adtower"
    """Hashed with the user id to choose the arm."""


class EmbedConfig(BaseModel):
    """Training the encoders of a catalogue and embedding it, without any click."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path
    """The dataset: a folder with a dataset.toml."""
    out: Path
    """The run's folder; it must be new, or hold an interrupted run of the same settings."""
    overwrite: bool = False
    """Replace a run that stands in ``out``; an interrupted one of the same settings goes on."""
    sources: tuple[VectorSource, ...] = ("off_the_shelf", "stage1", "dashclip")
    """Which vectors to make; stage1 and image_only need images, dashclip needs relevance."""
    seed: int = Field(default=0, ge=0)
    """All randomness of the run derives from it."""
    stage1: Stage1Config = Stage1Config()
    """Image-text pre-training on the catalogue."""
    stage2: Stage2Config = Stage2Config()
    """Product-query alignment."""
    labels: tuple[Path, ...] = ()
    """Further relevance labels that alignment learns from: parquet files as ``adtower label``
    writes them. A pair labelled twice has the mean of both, weighted by
    ``stage2.source_weights``; pairs of held-out queries are left out."""
    track: bool = True
    """Mirror the training curves and the figures in MLflow."""
    tracking_uri: str | None = None
    """MLflow's tracking URI; by default a sqlite file beside the run."""

    def identity(self, data_fingerprint: str) -> dict[str, object]:
        """Return what makes two runs the same run: settings and data, not where they are kept."""
        return _identity(self, {"track", "tracking_uri"}, data_fingerprint)


class RunConfig(BaseModel):
    """A whole run: from a dataset folder to a report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path
    """The dataset: a folder with a dataset.toml."""
    out: Path
    """The run's folder; it must be new, or hold an interrupted run of the same settings."""
    overwrite: bool = False
    """Replace a run that stands in ``out``; an interrupted one of the same settings goes on."""
    features: Path | None = None
    """What `adtower features build` wrote of this dataset: click models are trained on its arrays
    where they lie on disk. By default features are made in memory."""
    variants: tuple[str, ...] | None = None
    """Which variants to compare; by default all of the standard set that the tables can feed."""
    seed: int = Field(default=0, ge=0)
    """All randomness of the run derives from it."""
    start_from: Path | None = None
    """An earlier run, of which each neural variant goes on: vocabularies grow, known ids keep what
    they learned. It must hold the same variants, features and seeds; ``features`` must have been
    built to go on from its own."""
    seeds: int = Field(default=1, ge=1)
    """Click models trained per variant; with two or more, intervals include the seed's noise."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Of all intervals; 0.95 leaves one in twenty outside."""
    stage1: Stage1Config = Stage1Config()
    """Image-text pre-training on the catalogue."""
    stage2: Stage2Config = Stage2Config()
    """Product-query alignment."""
    labels: tuple[Path, ...] = ()
    """Further relevance labels that alignment learns from: parquet files as ``adtower label``
    writes them. A pair labelled twice has the mean of both, weighted by
    ``stage2.source_weights``; pairs of held-out queries are left out."""
    tower: TowerConfig = TowerConfig()
    """The neural click model; variants set its vector options."""
    min_count: int = Field(default=2, ge=1)
    """Values of a sparse feature seen fewer times in training are out-of-vocabulary."""
    ab: AbConfig = AbConfig()
    """The simulated A/B test, run where the dataset knows the truth of its clicks."""
    simulate: bool = True
    """Whether to run that test."""
    threads: int = Field(default=1, ge=1)
    """Threads of each training; another number changes the last digits of the figures."""
    workers: int | None = Field(default=None, ge=1)
    """Click models trained at once, which changes no figure; by default what the machine bears."""
    memory_gb: float | None = Field(default=None, gt=0)
    """What these trainings may take together; by default four fifths of the free memory."""
    tracking_uri: str | None = None
    """MLflow tracking URI; by default a sqlite file beside the run folder."""
    track: bool = True
    """Whether MLflow is written at all; the run folder is complete either way."""
    tracking_required: bool = False
    """Refuse to begin where MLflow cannot be reached; otherwise a warning, and it catches up."""

    def identity(self, data_fingerprint: str) -> dict[str, object]:
        """Return what makes two runs the same run: settings and data, not where they are kept."""
        tracking = {"track", "tracking_uri", "tracking_required"}
        budget = {"workers", "memory_gb"}
        identity = _identity(self, tracking | budget | {"features"}, data_fingerprint)
        if self.features is not None:
            identity["features"] = FeatureArrays.open(self.features).manifest["build"]
        return identity


def _identity(
    config: EmbedConfig | RunConfig, irrelevant: set[str], data_fingerprint: str
) -> dict[str, object]:
    """What decides a run's figures; files count by what they say and not by where they lie."""
    elsewhere = {"data", "out", "overwrite", "labels"}
    return {
        "settings": config.model_dump(mode="json", exclude=elsewhere | irrelevant),
        "data": data_fingerprint,
        "labels": labels_digests(config.labels),
    }
