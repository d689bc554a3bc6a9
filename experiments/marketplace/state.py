"""Everything hidden that decides what happens: products, shoppers and pools, as arrays.

The state is what the ``truth`` folder of a simulated dataset keeps. No column of the dataset's own
tables holds any of it.

Shape letters: P products, Q queries, U users, D taste size, T favourites, M pool size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.marketplace.parameters import WorldParameters

STATE_FILE = "world.json"
TABLES = {"P": "products", "Q": "queries", "U": "users"}


@dataclass(frozen=True, kw_only=True)
class WorldState:
    """The hidden side of a simulated marketplace."""

    parameters: WorldParameters
    seed: int
    start_us: int
    """First moment of the log, microseconds since the epoch, UTC."""
    end_us: int
    """First moment after the log."""

    product_id_P: NDArray[np.str_]
    quality_P: NDArray[np.float64]
    """Hidden quality, standard normal."""
    appeal_PD: NDArray[np.float64]
    """What tastes respond to, unit length."""
    price_z_P: NDArray[np.float64]
    """Log price, standardised within the category; 0 where unknown."""
    exposure_P: NDArray[np.float64]
    """Log of the budget that sets how often the product bids."""
    bid_micros_P: NDArray[np.float64]
    """Usual bid per click."""
    launched_us_P: NDArray[np.int64]

    query_id_Q: NDArray[np.str_]
    popularity_Q: NDArray[np.float64]
    theme_Q: NDArray[np.int64]
    """What the query is about, for shoppers' habits; -1 for nothing in particular."""
    pool_QM: NDArray[np.int32]
    """Product rows eligible for the query, padded with -1."""
    class_QM: NDArray[np.int8]
    """True relevance of the pool's products; 0 in the padding."""

    user_id_U: NDArray[np.str_]
    taste_UD: NDArray[np.float64]
    """Standard normal, so that its product with an appeal is standard normal too."""
    price_sensitivity_U: NDArray[np.float64]
    """Positive, mean 1."""
    activity_U: NDArray[np.float64]
    """Share of all requests, summing to 1."""
    favourite_UT: NDArray[np.int64]
    """Themes the user habitually buys."""

    def save_(self, folder: Path) -> None:
        """Write the state into ``folder``, which must exist."""
        columns: dict[str, dict[str, NDArray]] = {name: {} for name in TABLES.values()}
        for field in fields(self):
            stem, _, shape = field.name.rpartition("_")
            if shape and shape[0] in TABLES and shape.isupper():
                columns[TABLES[shape[0]]][stem] = getattr(self, field.name)
        for name, table in columns.items():
            pl.DataFrame(table).write_parquet(folder / f"{name}.parquet", compression="zstd")
        record = {
            "parameters": self.parameters.model_dump(mode="json"),
            "seed": self.seed,
            "start_us": self.start_us,
            "end_us": self.end_us,
        }
        (folder / STATE_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> WorldState:
        """Read what ``save_`` wrote.

        Raises:
            ValueError: If ``folder`` holds no world.
        """
        missing = [
            name
            for name in (STATE_FILE, *(f"{t}.parquet" for t in TABLES.values()))
            if not (folder / name).is_file()
        ]
        if missing:
            raise ValueError(
                f"{folder} holds no simulated world: {', '.join(missing)} missing. Give the "
                "truth folder of a dataset made by `adtower data make` or `adtower data simulate`"
            )
        record = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        tables = {
            letter: pl.read_parquet(folder / f"{name}.parquet") for letter, name in TABLES.items()
        }
        arrays = {}
        for field in fields(cls):
            stem, _, shape = field.name.rpartition("_")
            if shape and shape[0] in TABLES and shape.isupper():
                column = tables[shape[0]][stem]
                arrays[field.name] = (
                    column.to_numpy().astype(np.str_)
                    if column.dtype == pl.String
                    else column.to_numpy()
                )
        return cls(
            parameters=WorldParameters.model_validate(record["parameters"]),
            seed=record["seed"],
            start_us=record["start_us"],
            end_us=record["end_us"],
            **arrays,
        )
