"""Skew between serving and offline is found under the name of what differs."""

import dataclasses
import json
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from features.pipeline import FeaturePipeline
from features.sparse import Vocabulary
from ranking.live_bundle import Served
from ranking.request import request_of
from ranking.score import Scorer
from ranking.served_log import ServedLog, features_of, read_served
from ranking.skew import find_skew


def requests(front, count=12):
    """Requests of ten candidates each, some with purchases, texts or strangers."""
    for number in range(count):
        rows = front.impressions[number * 10 : number * 10 + 10]
        rows = rows.unique("product_id", maintain_order=True)
        first = rows.row(0, named=True)
        candidates = rows.select("product_id", columns=pl.struct("bid")).to_dicts()
        request = {
            "user_id": first["user_id"],
            "query_id": first["query_id"],
            "time": first["time"] + timedelta(hours=12 * number),
            "columns": {"device": first["device"]},
            "candidates": candidates,
        }
        if number % 3 == 1:
            request |= {"query_id": None, "query": "red tea"}
        if number % 3 == 2:
            request["purchases"] = [{"product_id": "p3", "time": "2024-01-20T00:00:00Z"}]
            request["candidates"].append({"product_id": "stranger", "columns": {"bid": None}})
        yield request_of(request)


@pytest.fixture
def scorer(front):
    return Scorer.load(front.bundle)


def serve(scorer, asked, path, *, every=1):
    """The log of a server that computes as ``scorer`` does."""
    served = Served(scorer=scorer, fingerprint=scorer.bundle.fingerprint)
    with ServedLog(path, every=every) as log:
        for request in asked:
            prepared = scorer.prepare(request)
            log.add(served, request, prepared, scorer.score_prepared(prepared))
    return path


def names(report):
    return {skew.name for skew in report.skewed}


def test_a_faithful_server_has_no_skew(front, scorer, tmp_path):
    path = serve(scorer, requests(front), tmp_path / "served.jsonl")
    report = find_skew(Scorer.load(front.bundle), path)
    assert report.clean
    assert report.skewed == []
    assert (report.requests, report.other_bundle) == (12, 0)
    assert report.features["p_click"].values == report.candidates > 100
    assert set(report.features) == {
        "user_id", "product_id", "products.category", "device", "time.hour", "products.price",
        "bid", "cosine_product_query", "cosine_product_history",
        "has_product_vector", "has_query_vector", "has_history_vector", "history", "p_click",
    }  # fmt: skip


def test_what_is_logged_reads_back_to_the_bit(front, scorer, tmp_path):
    asked = list(requests(front))
    path = serve(scorer, asked, tmp_path / "served.jsonl")
    for (_, line), request in zip(read_served(path), asked, strict=True):
        assert line.request == request
        for name, values in features_of(scorer.prepare(request), scorer).items():
            if name != "history":
                read = np.broadcast_to(np.array(line.features[name], values.dtype), values.shape)
                np.testing.assert_array_equal(read, values)


def test_a_changed_vocabulary_is_found_by_name(front, scorer, tmp_path):
    values = scorer.pipeline._vocabularies["device"].values_
    changed = Vocabulary.from_dict({"min_count": 1, "values": [values[1], values[0], *values[2:]]})
    scorer.pipeline._vocabularies["device"] = changed
    path = serve(scorer, requests(front), tmp_path / "served.jsonl")
    report = find_skew(Scorer.load(front.bundle), path)
    assert names(report) == {"device", "p_click"}
    skew = report.features["device"]
    assert {skew.example.served, skew.example.offline} == {1, 2}
    assert skew.largest_difference is None
    assert report.features["p_click"].largest_difference > 1e-4


def test_a_shifted_clock_is_found_by_name(front, scorer, tmp_path, monkeypatch):
    transform = FeaturePipeline.without_cosines
    monkeypatch.setattr(
        scorer.pipeline,
        "without_cosines",
        lambda frame: transform(
            scorer.pipeline, frame.with_columns(pl.col("time") + pl.duration(hours=2))
        ),
    )
    path = serve(scorer, requests(front), tmp_path / "served.jsonl")
    report = find_skew(Scorer.load(front.bundle), path)
    assert "time.hour" in names(report)
    assert report.features["time.hour"].share == 1.0
    assert names(report) <= {"time.hour", "history", "cosine_product_history",
                             "has_history_vector", "p_click"}  # fmt: skip


def test_swapped_columns_are_found_by_name(front, scorer, tmp_path, monkeypatch):
    transform = FeaturePipeline.without_cosines

    def swapped(frame):
        examples = transform(scorer.pipeline, frame)
        return dataclasses.replace(examples, dense_NC=examples.dense_NC[:, ::-1])

    monkeypatch.setattr(scorer.pipeline, "without_cosines", swapped)
    path = serve(scorer, requests(front), tmp_path / "served.jsonl")
    report = find_skew(Scorer.load(front.bundle), path)
    assert names(report) == {"products.price", "bid", "p_click"}
    assert report.features["bid"].largest_difference > 0.1
    example = report.features["bid"].example
    assert abs(example.served - example.offline) > 1e-6
    assert example.product_id.startswith("p")


def test_purchases_that_only_the_server_knew_are_found(front, scorer, tmp_path):
    asked = [request.model_copy(update={"purchases": None}) for request in requests(front)]
    earlier = scorer.pipeline._purchases.with_columns(pl.col("time") - timedelta(days=30))
    scorer.pipeline.learn_purchases(earlier)
    path = serve(scorer, asked, tmp_path / "served.jsonl")
    report = find_skew(Scorer.load(front.bundle), path)
    assert {"history", "cosine_product_history"} <= names(report)
    assert report.features["history"].values == len(asked)
    assert isinstance(report.features["history"].example.served, list)


def test_a_score_that_the_features_do_not_explain_is_found(front, scorer, tmp_path):
    path = serve(scorer, requests(front), tmp_path / "served.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[4]["p_click"][2] += 0.25
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = find_skew(scorer, path)
    assert names(report) == {"p_click"}
    skew = report.features["p_click"]
    assert (skew.differing, skew.example.line) == (1, 5)
    assert skew.largest_difference == pytest.approx(0.25)


def test_a_feature_that_one_side_lacks_is_found(front, scorer, tmp_path):
    path = serve(scorer, requests(front, 1), tmp_path / "served.jsonl")
    line = json.loads(path.read_text())
    del line["features"]["bid"]
    line["features"]["weather"] = "rain"
    path.write_text(json.dumps(line) + "\n")
    report = find_skew(scorer, path)
    assert names(report) == {"bid", "weather"}
    assert report.features["weather"].example.offline is None
    assert report.features["bid"].example.served is None
    assert report.features["bid"].share == 1.0


def test_another_bundle_is_told_apart_from_skew(front, tmp_path):
    path = serve(Scorer.load(front.other_bundle), requests(front), tmp_path / "served.jsonl")
    report = find_skew(Scorer.load(front.bundle), path)
    assert report.other_bundle == 12
    assert "p_click" in names(report)


def test_requests_that_offline_refuses_are_counted_with_the_reason(front, scorer, tmp_path):
    path = serve(scorer, requests(front, 3), tmp_path / "served.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["request"]["columns"]["colour"] = "red"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = find_skew(scorer, path)
    assert not report.clean
    ((reason, count),) = report.refused.items()
    assert (count, "'colour', which is no feature" in reason) == (1, True)
    assert report.to_metrics()["refused"] == 1


def test_a_log_keeps_one_request_in_so_many(front, scorer, tmp_path):
    path = serve(scorer, requests(front), tmp_path / "served.jsonl", every=5)
    assert len(path.read_text().splitlines()) == 3


def test_a_log_that_does_not_keep_up_drops_and_counts(front, scorer, tmp_path, monkeypatch):
    monkeypatch.setattr("ranking.served_log._WAITING", 2)
    monkeypatch.setattr(
        "ranking.served_log.threading",
        SimpleNamespace(Thread=lambda **_: SimpleNamespace(start=lambda: None, join=lambda: None)),
    )
    log = ServedLog(tmp_path / "served.jsonl")
    served = Served(scorer=scorer, fingerprint="x")
    request = next(requests(front))
    prepared = scorer.prepare(request)
    for _ in range(5):
        log.add(served, request, prepared, scorer.score_prepared(prepared))
    assert log.dropped == 3
    log._file.close()


def test_a_line_cut_off_by_a_kill_is_passed_over_and_others_are_named(front, scorer, tmp_path):
    path = serve(scorer, requests(front, 3), tmp_path / "served.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert find_skew(scorer, path).requests == 2
    path.write_bytes(whole.replace(b'"features"', b'"futures"', 1))
    with pytest.raises(ValueError, match=r"served.jsonl, line 1: features: Field required"):
        find_skew(scorer, path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="holds no request"):
        find_skew(scorer, path)
    with pytest.raises(ValueError, match="does not exist; `adtower serve --log FILE`"):
        find_skew(scorer, tmp_path / "nowhere.jsonl")
