"""What is in a dataset, in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from features.dataset import Dataset
from features.schema import TABLE_NAMES

if TYPE_CHECKING:
    from rich.table import Table

Number = str | int | float


def describe_dataset(dataset: Dataset) -> dict[str, Number]:
    """Return the figures of a dataset, flat: ``{"impressions.rows": 480000, ...}``.

    Tables that are absent have no entries. Rates are shares from 0 to 1; ``.new_products`` is the
    share of test rows whose product was never shown in training.

    Raises:
        ValueError: If a table cannot be used (see ``Dataset.table``).
    """
    numbers: dict[str, Number] = {
        "name": dataset.spec.name,
        "simulated": int(dataset.spec.simulated),
    }
    for name in TABLE_NAMES:
        if dataset.has(name):
            numbers[f"{name}.rows"] = len(dataset.table(name))
    if dataset.has("products"):
        numbers |= _products(dataset.table("products"))
    if dataset.has("queries"):
        words = dataset.table("queries")["query"].str.split(" ").list.len()
        numbers["queries.mean_words"] = _float(words.mean())
    if dataset.has("relevance"):
        numbers |= _relevance(dataset.table("relevance"))
    if dataset.has("impressions"):
        numbers |= _impressions(dataset.table("impressions"))
        numbers |= _split(dataset)
    if dataset.has("events"):
        kinds = dataset.table("events")["kind"].value_counts().sort("kind")
        numbers |= {f"events.{kind}": count for kind, count in kinds.iter_rows()}
    return numbers


def describe_table(numbers: dict[str, Number]) -> Table:
    """Return what ``describe_dataset`` found as a table for ``rich.print``."""
    from rich.table import Table

    table = Table(title=str(numbers["name"]), box=None)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in numbers.items():
        if name == "name":
            continue
        text = f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else text)
    return table


def _products(products: pl.DataFrame) -> dict[str, Number]:
    numbers: dict[str, Number] = {}
    for column in ("title", "description", "image"):
        if column in products.columns:
            numbers[f"products.with_{column}"] = 1 - products[column].null_count() / len(products)
    for column in ("category", "brand", "group_id"):
        if column in products.columns:
            numbers[f"products.distinct_{column}"] = products[column].drop_nulls().n_unique()
    return numbers


def _relevance(relevance: pl.DataFrame) -> dict[str, Number]:
    label = relevance["label"]
    numbers: dict[str, Number] = {
        f"relevance.label_{value}": _float((label == value).mean()) for value in (0, 1, 2)
    }
    numbers["relevance.queries"] = relevance["query_id"].n_unique()
    numbers["relevance.products"] = relevance["product_id"].n_unique()
    return numbers


def _impressions(impressions: pl.DataFrame) -> dict[str, Number]:
    numbers: dict[str, Number] = {
        "impressions.requests": impressions["request_id"].n_unique(),
        "impressions.users": impressions["user_id"].drop_nulls().n_unique(),
        "impressions.queries": impressions["query_id"].drop_nulls().n_unique(),
        "impressions.products": impressions["product_id"].n_unique(),
        "impressions.first_time": str(impressions["time"].min()),
        "impressions.last_time": str(impressions["time"].max()),
        "impressions.clicks": int(impressions["clicked"].sum()),
        "impressions.ctr": _float(impressions["clicked"].mean()),
    }
    if "purchased" in impressions.columns:
        numbers["impressions.purchases"] = int(impressions["purchased"].sum())
    by_position = impressions.group_by("position").agg(pl.col("clicked").mean()).sort("position")
    for position, rate in by_position.head(10).iter_rows():
        numbers[f"impressions.ctr_at_{position}"] = rate
    return numbers


def _split(dataset: Dataset) -> dict[str, Number]:
    split = dataset.split()
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    numbers: dict[str, Number] = {}
    for name, part in parts.items():
        numbers[f"split.{name}.rows"] = len(part)
        numbers[f"split.{name}.ctr"] = _float(part["clicked"].mean())
    shown = split.train["product_id"].unique().implode()
    numbers["split.validation_start"] = str(split.boundaries[0])
    numbers["split.test_start"] = str(split.boundaries[1])
    numbers["split.test.new_products"] = _float((~split.test["product_id"].is_in(shown)).mean())
    return numbers


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
