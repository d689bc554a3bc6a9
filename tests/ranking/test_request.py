"""Requests: read strictly, and turned into the table that offline scoring reads."""

import json
from datetime import UTC, datetime

import polars as pl
import pytest

from features.feature_spec import FeatureNames
from ranking.request import (
    MalformedJsonError,
    ScoreRequest,
    parse_request,
    request_of,
)
from ranking.request_table import request_frame

FEATURES = FeatureNames(sparse=("user_id", "product_id", "device"), dense=("products.price", "bid"))


def body(**fields):
    return json.dumps({"candidates": ["p1", "p2"], **fields}).encode()


def test_a_request_is_one_row_a_candidate():
    request = parse_request(
        body(
            candidates=["p1", {"product_id": 7, "columns": {"bid": 2.5}}],
            user_id=12,
            query="red tea",
            time="2024-03-01T01:00:00+02:00",
            columns={"device": "phone", "bid": 1},
        )
    )
    frame = request_frame(request, FEATURES)
    assert frame.to_dicts() == [
        {
            "product_id": product,
            "time": datetime(2024, 2, 29, 23, tzinfo=UTC),
            "user_id": "12",
            "query_id": None,
            "query": "red tea",
            "device": "phone",
            "bid": bid,
        }
        for product, bid in (("p1", 1.0), ("7", 2.5))
    ]
    assert frame.schema["time"] == pl.Datetime("us", "UTC")


def test_a_time_without_a_zone_is_utc_and_none_is_now():
    assert parse_request(body(time="2024-03-01T01:00:00")).time.isoformat().endswith("+00:00")
    before = datetime.now(UTC)
    assert before <= parse_request(body()).time <= datetime.now(UTC)


def test_values_of_one_sparse_column_may_differ_in_kind():
    candidates = [
        {"product_id": f"p{k}", "columns": {"device": value}}
        for k, value in enumerate(["3", 3, True, None])
    ]
    frame = request_frame(request_of({"candidates": candidates, "columns": {"bid": 1}}), FEATURES)
    assert frame["device"].to_list() == ["3", "3", "true", None]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"candidates": []}, "candidates: Tuple should have at least 1 item"),
        ({"candidates": None}, "candidates: must be a list of product ids"),
        ({"candidates": ["p1", "p2", "p1"]}, r"candidates.2: product 'p1' was there before"),
        ({"candidates": [{"id": "p1"}]}, r"candidates.0.product_id: Field required"),
        ({"candidates": [["p1"]]}, "candidates.0: Input should be an object"),
        ({"candidates": [""]}, "candidates.0.product_id: .* at least 1"),
        ({"candidates": ["x" * 513]}, "at most 512"),
        ({"candidates": [True]}, "candidates.0.product_id: Input should be a valid string"),
        ({"user": "u1"}, "user: is not a known field"),
        ({"user_id": 1.5}, "user_id: Input should be a valid string"),
        ({"time": 1711111111}, "time: must be a date and time as text"),
        ({"time": "yesterday"}, "time: Invalid isoformat string"),
        ({"time": "0001-01-01T00:00:00+14:00"}, "time: lies outside the years"),
        ({"columns": {"bid": [1]}}, "columns: bid: must be text, a number"),
        ({"columns": {"bid": 2**63}}, "columns: bid: must fit into 64 bits"),
        ({"columns": {"bid": float("inf")}}, "columns: bid: must be finite"),
        ({"columns": {"bid": float("nan")}}, "columns: bid: must be finite"),
        ({"purchases": [{"product_id": "p1"}]}, "purchases.0.time: Field required"),
        ({"query": 5}, "query: Input should be a valid string"),
    ],
)
def test_what_is_no_request_is_refused_by_field(fields, message):
    with pytest.raises(ValueError, match=message):
        parse_request(body(**fields))


@pytest.mark.parametrize(
    "bytes_",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"query": "\\ud800"}', b'{"x": 1' + b"0" * 9999],
)
def test_what_is_no_json_is_told_apart(bytes_):
    with pytest.raises(MalformedJsonError):
        parse_request(bytes_)


def test_at_most_five_problems_are_told():
    with pytest.raises(ValueError, match=r"candidates.4.*and 96 more$"):
        parse_request(body(candidates=[[] for _ in range(100)]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"bid": 1.0}, r"candidates.0 lacks the column 'device'"),
        ({"device": 1.5, "bid": 1.0}, "column 'device' of candidates.0 is 1.5; a sparse feature"),
        ({"device": "phone", "bid": "1"}, "column 'bid' of candidates.0 is '1'; a dense feature"),
        (
            {"clicked": 1},
            r"the request has the column 'clicked', which is no feature .* device, bid",
        ),
        ({"user_id": "u1"}, "the request has the column 'user_id', which is no feature"),
    ],
)
def test_columns_must_be_those_of_the_features(columns, message):
    request = request_of({"candidates": ["p1"], "columns": columns})
    with pytest.raises(ValueError, match=message):
        request_frame(request, FEATURES)


def test_a_misspelt_column_of_one_candidate_is_found():
    candidates = ["p1", {"product_id": "p2", "columns": {"bdi": 1}}]
    request = request_of({"candidates": candidates, "columns": {"device": "tv", "bid": 1}})
    with pytest.raises(ValueError, match=r"candidates.1 has the column 'bdi'"):
        request_frame(request, FEATURES)


def test_a_request_that_was_written_reads_back():
    request = parse_request(
        body(
            user_id="u1",
            purchases=[{"product_id": "p9", "time": "2024-01-01T00:00:00Z"}],
            columns={"bid": 0.1, "device": None},
        )
    )
    assert ScoreRequest.model_validate_json(request.model_dump_json()) == request
