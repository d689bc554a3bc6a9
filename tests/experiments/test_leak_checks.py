from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from embeddings.relevance_split import is_test_query
from experiments.leak_checks import check_leaks, check_results
from features.dataset import Dataset
from features.schema import DatasetSpec


def some_dataset(rows: int = 600, leaking: bool = False) -> Dataset:
    """One impression a minute; with ``leaking``, a dense column tells the click."""
    rng = np.random.default_rng(0)
    clicked_N = (rng.random(rows) < 0.3).astype(np.int8)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    impressions = pl.DataFrame(
        {
            "request_id": [f"r{i}" for i in range(rows)],
            "user_id": [f"u{i % 40}" for i in range(rows)],
            "query_id": [f"q{i % 9}" for i in range(rows)],
            "product_id": [f"p{i % 17}" for i in range(rows)],
            "position": [1] * rows,
            "time": [start + timedelta(minutes=i) for i in range(rows)],
            "clicked": clicked_N,
            "dwell": clicked_N + 0.01 * rng.random(rows) if leaking else rng.random(rows),
        }
    )
    spec = DatasetSpec.model_validate(
        {"name": "small", "features": {"sparse": ["product_id"], "dense": ["dwell"]}}
    )
    return Dataset.from_tables(spec, impressions=impressions)


def test_a_sound_dataset_is_clean_and_says_what_was_looked_at():
    dataset = some_dataset()
    checks = check_leaks(dataset, dataset.split())
    assert len(checks) == 5 and all(check.clean for check in checks)
    assert all(check.found for check in checks)


def test_a_feature_written_after_the_click_is_named():
    dataset = some_dataset(leaking=True)
    bad = [check for check in check_leaks(dataset, dataset.split()) if not check.clean]
    assert len(bad) == 1 and "'dwell' alone predicts clicks" in bad[0].found


def test_a_request_in_two_parts_is_counted():
    dataset = some_dataset()
    split = dataset.split()
    doubled = replace(split, test=pl.concat([split.test, split.train[:3]]))
    shared, time, *_ = check_leaks(dataset, doubled)
    assert not shared.clean and shared.found == "3 in both train and test"
    assert not time.clean


def test_shuffled_above_random_is_a_leak_and_so_is_a_model_above_the_truth(record):
    comparison = record.some_comparison()
    clean = check_results(comparison, 0.95)
    assert len(clean) == 2 and all(check.clean for check in clean)
    rows = tuple(
        replace(row, delta_placebo=-0.01, delta_placebo_low=-0.02, delta_placebo_high=-0.005)
        if row.name == "random_vectors"
        else row
        for row in comparison.rows
    )
    leaking = replace(comparison, rows=rows, placebo="shuffled_vectors")
    placebos, truth = check_results(leaking, 0.7)
    assert not placebos.clean and "look for a leak" in placebos.found
    assert not truth.clean and "0.7000" in truth.found


def test_without_both_placebos_nothing_is_said_of_them(record):
    comparison = replace(record.some_comparison(), controls=("random_vectors",))
    assert check_results(comparison, None) == ()
    assert check_results(None, 0.9) == ()


def test_a_judged_query_that_training_saw_in_other_letters_is_found():
    words = ("tea", "bread", "cheese", "milk", "apples", "rice", "honey", "salt", "coffee")
    hidden = next(w for w in words if is_test_query(w) != is_test_query(w.upper()))
    for both, clean in (([hidden, hidden.upper()], False), ([hidden], True)):
        dataset = some_dataset()
        ids = [str(i) for i in range(len(both))]
        whole = Dataset.from_tables(
            dataset.spec,
            impressions=dataset.table("impressions"),
            queries=pl.DataFrame({"query_id": ids, "query": both}),
            relevance=pl.DataFrame(
                {
                    "query_id": ids,
                    "product_id": ["p1"] * len(ids),
                    "label": [2] * len(ids),
                    "source": ["human"] * len(ids),
                }
            ),
        )
        last = check_leaks(whole, whole.split())[-1]
        assert last.looked_for.startswith("Queries that vectors were trained on")
        assert last.clean == clean
