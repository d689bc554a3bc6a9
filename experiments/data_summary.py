"""What ``data.json`` says of the data that a run learned from."""

from __future__ import annotations

import polars as pl

from features.arrays import PARTS, FeatureArrays
from features.dataset import Dataset
from features.split import Split, moment


def describe_data(dataset: Dataset, split: Split | FeatureArrays) -> dict[str, object]:
    """Return checksums, sizes and time ranges, as ``DataSummary`` reads them.

    Args:
        dataset: Whose tables.
        split: Its impressions by time, as tables or as the arrays that were built of them.
    """
    return {
        "name": dataset.spec.name,
        "simulated": dataset.spec.simulated,
        "fingerprint": dataset.fingerprint(),
        "tables": {
            name: dataset.rows(name)
            for name in ("products", "queries", "relevance", "impressions", "events")
            if dataset.has(name)
        },
        "parts": {part: _describe_part(split, part) for part in PARTS},
    }


def _describe_part(split: Split | FeatureArrays, part: str) -> dict[str, object]:
    if isinstance(split, Split):
        rows: pl.DataFrame = getattr(split, part)
        clicked_N, time_us_N = (rows[c].cast(pl.Int64).to_numpy() for c in ("clicked", "time"))
    else:
        clicked_N, time_us_N = (split.array(part, name) for name in ("label_N", "time_us_N"))
    return {
        "impressions": len(clicked_N),
        "clicks": int((clicked_N == 1).sum()),
        "first": str(moment(int(time_us_N.min()))),
        "last": str(moment(int(time_us_N.max()))),
    }
