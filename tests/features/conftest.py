"""A tiny world: 6 products, 3 queries, 40 requests of 3 impressions over 40 days."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from PIL import Image

from features.dataset import Dataset
from features.schema import DatasetSpec, FeatureNames

START = datetime(2024, 1, 1, 12, tzinfo=UTC)


def png(width: int = 4, height: int = 3) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def tables() -> dict[str, pl.DataFrame]:
    products = pl.DataFrame(
        {
            "product_id": [f"p{i}" for i in range(6)],
            "title": ["red apple", "green apple", None, "oat milk", "soy milk", "rye bread"],
            "category": ["fruit", "fruit", "fruit", "milk", "milk", "bread"],
            "brand": ["a", "b", "a", None, "b", "a"],
            "price": [1.0, 2.0, None, 4.0, 5.0, 60.0],
            "image": [png(), png(), None, png(), png(), png()],
        }
    )
    queries = pl.DataFrame({"query_id": ["q0", "q1", "q2"], "query": ["apple", "milk", "bread"]})
    relevance = pl.DataFrame(
        {
            "query_id": ["q0", "q0", "q1", "q1", "q2"],
            "product_id": ["p0", "p1", "p3", "p0", "p5"],
            "label": [2, 1, 2, 0, 2],
            "source": ["human"] * 5,
        }
    )
    rows = [(request, slot) for request in range(40) for slot in range(3)]
    impressions = pl.DataFrame(
        {
            "request_id": [f"r{request}" for request, _ in rows],
            "time": [START + timedelta(days=request) for request, _ in rows],
            "user_id": [f"u{request % 5}" for request, _ in rows],
            "query_id": [f"q{request % 3}" for request, _ in rows],
            "product_id": [f"p{(request + 2 * slot) % 6}" for request, slot in rows],
            "position": [slot + 1 for _, slot in rows],
            "clicked": [int((request * 7 + slot * 3) % 4 == 0) for request, slot in rows],
        }
    )
    events = pl.DataFrame(
        {
            "user_id": ["u0", "u0", "u1"],
            "product_id": ["p1", "p3", "p5"],
            "time": [START + timedelta(days=d, hours=1) for d in (1, 8, 2)],
            "kind": ["purchase", "purchase", "cart"],
        }
    )
    return {
        "products": products,
        "queries": queries,
        "relevance": relevance,
        "impressions": impressions,
        "events": events,
    }


@pytest.fixture
def spec() -> DatasetSpec:
    return DatasetSpec(
        name="tiny",
        features=FeatureNames(
            sparse=("user_id", "query_id", "product_id", "products.brand", "time.weekday"),
            dense=("products.price",),
        ),
    )


@pytest.fixture
def dataset(spec: DatasetSpec, tables: dict[str, pl.DataFrame]) -> Dataset:
    return Dataset.from_tables(spec, **tables)
