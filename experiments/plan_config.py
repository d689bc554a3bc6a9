"""Tables, rows and a machine that a training is planned for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ranking.tower_config import TowerConfig


class PlanConfig(BaseModel):
    """Tables, rows and a machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tables: tuple[str, ...] = ()
    """Sparse features as NAME=ROWS, such as user_id=50e6."""
    dense: int = Field(default=13, ge=0)
    """Dense columns."""
    rows: Annotated[float, Field(gt=0)] = 100e6
    """Training rows of a pass."""
    row_bytes: int | None = Field(default=None, ge=1)
    """Bytes of a row in memory; by default four a column and the label."""
    ranks: int = Field(default=1, ge=1)
    """Processes (one a GPU, or one a socket or core group) over all machines."""
    ranks_per_machine: int = Field(default=1, ge=1)
    """How many of them share a machine."""
    memory_gib: float = Field(default=24.0, gt=0)
    """Memory of one machine; with CUDA, of one GPU."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What ranks compute on."""
    column_wise: tuple[str, ...] = ()
    """Features whose tables must be split by columns."""
    rows_per_second: float | None = Field(default=None, gt=0)
    """Of one rank; None measures it here, which says little of another machine: one process alone,
    or where there are several ranks two of them, with as many rows a rank and step."""
    scaling: float = Field(default=0.8, gt=0, le=1)
    """Share of a rank's speed that is left when more exchange rows than it was measured with."""
    tower: TowerConfig = TowerConfig(use_vectors=False)
    """The network."""

    @model_validator(mode="after")
    def _ranks_fit(self) -> PlanConfig:
        if self.ranks_per_machine > self.ranks:
            raise ValueError(
                f"ranks_per_machine={self.ranks_per_machine} is more than ranks={self.ranks}"
            )
        return self

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each table."""
        sizes: dict[str, int] = {}
        for entry in self.tables:
            name, equals, rows = entry.partition("=")
            try:
                count = int(float(rows))
            except ValueError:
                count = 0
            if not equals or not name or count < 1:
                raise ValueError(
                    f"tables: {entry!r} is not NAME=ROWS with 1 row or more, such as user_id=50e6"
                )
            if name in sizes:
                raise ValueError(f"tables: {name!r} is named twice")
            sizes[name] = count
        if not sizes:
            raise ValueError("no tables are named; give --tables user_id=50e6 product_id=2e6 ...")
        unknown = sorted(set(self.column_wise) - set(sizes))
        if unknown:
            raise ValueError(f"column_wise names {unknown}, but the tables are {sorted(sizes)}")
        return sizes
