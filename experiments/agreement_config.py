"""How many worlds are asked whether offline and market agree, and of which size."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from embeddings.stage1_config import Stage1Config
from embeddings.stage2_config import Stage2Config
from experiments.variants import STANDARD
from ranking.tower_config import TowerConfig


class AgreementConfig(BaseModel):
    """How many worlds, of which size, and how the models in them are trained.

    The defaults are a fifth of the demo's world, so that ten of them take about as long as a lunch
    break on two cores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path
    """Folder of worlds, runs and figures; an interrupted job of the same settings goes on."""
    seeds: int = Field(default=10, ge=1)
    """Worlds, with the seeds 0, 1, ...; raise it later to add worlds to those there are."""
    products: int = Field(default=1200, ge=50)
    """Size of each catalogue."""
    requests: int = Field(default=15_000, ge=300)
    """Logged requests of each world, eight impressions each."""
    judged_requests: int = Field(default=10_000, ge=100)
    """Later requests on which each variant's ranking is judged."""
    variants: tuple[str, ...] = STANDARD
    """What is put in order; ``production`` must be among them."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Of the intervals over worlds."""
    keep: bool = False
    """Keep each world and its models; otherwise only their figures stay."""
    stage1: Stage1Config = Stage1Config(steps=100)
    """Image-text pre-training in each world."""
    stage2: Stage2Config = Stage2Config()
    """Product-query alignment in each world."""
    tower: TowerConfig = TowerConfig()
    """The neural click model."""

    def identity(self) -> dict[str, object]:
        """What must not change between parts of one job; ``seeds`` may grow."""
        return self.model_dump(mode="json", exclude={"out", "seeds", "confidence", "keep"})
