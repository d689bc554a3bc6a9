import io

import pytest
from rich.console import Console

from features.dataset import Dataset
from features.describe import describe_dataset, describe_table
from features.schema import DatasetSpec


def test_figures_by_hand(dataset):
    numbers = describe_dataset(dataset)
    assert numbers["impressions.rows"] == 120 and numbers["impressions.requests"] == 40
    assert numbers["impressions.clicks"] == dataset.table("impressions")["clicked"].sum()
    assert numbers["products.with_image"] == pytest.approx(5 / 6)
    assert numbers["relevance.label_2"] == pytest.approx(3 / 5)
    assert numbers["queries.mean_words"] == 1.0
    assert (numbers["split.train.rows"], numbers["split.test.rows"]) == (84, 24)
    assert numbers["split.test.new_products"] == 0.0
    assert (numbers["events.purchase"], numbers["events.cart"]) == (2, 1)
    assert all(isinstance(value, (int, float, str)) for value in numbers.values())


def test_absent_tables_have_no_figures(tables):
    numbers = describe_dataset(
        Dataset.from_tables(DatasetSpec(name="q"), queries=tables["queries"])
    )
    assert set(numbers) == {"name", "simulated", "queries.rows", "queries.mean_words"}


def test_it_prints(dataset):
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(describe_table(describe_dataset(dataset)))
    assert "impressions.ctr" in console.export_text()
