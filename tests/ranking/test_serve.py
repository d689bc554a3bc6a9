"""The server's answers, whatever it is sent."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from ranking.live_bundle import LiveBundle
from ranking.request import parse_request
from ranking.score import Scorer
from ranking.serve import make_app
from ranking.serve_config import ServeConfig
from ranking.serve_metrics import ServeMetrics

REQUEST = {
    "request_id": "r1",
    "user_id": "u1",
    "query_id": "q5",
    "time": "2024-03-05T10:00:00Z",
    "columns": {"device": "phone"},
    "candidates": [{"product_id": f"p{k}", "columns": {"bid": k / 10}} for k in range(5)],
}
INFER = "/v2/models/adtower/infer"


@pytest.fixture(scope="module")
def app(front):
    metrics = ServeMetrics()
    live = LiveBundle(front.bundle, changed=metrics.serves)
    config = ServeConfig(max_body_bytes=100_000, max_candidates=50, max_purchases=3)
    return make_app(live, config, metrics, None)


@pytest.fixture(scope="module")
def client(app):
    with TestClient(app) as client:
        yield client


def without(request, *fields):
    return {name: value for name, value in request.items() if name not in fields}


def counted(client, name, **labels):
    """Sum of a metric's samples with these labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def test_an_answer_is_what_the_scorer_says(client, front):
    answer = client.post("/score", json=REQUEST)
    scorer = Scorer.load(front.bundle)
    scored = scorer.score(parse_request(json.dumps(REQUEST).encode()))
    assert answer.status_code == 200
    assert answer.json()["p_click"] == scored.p_click_K.tolist()
    assert answer.json()["order"] == scored.order_K.tolist()
    assert answer.json()["bundle"] == scorer.bundle.fingerprint
    assert answer.json()["request_id"] == "r1"
    assert answer.json()["diagnostics"]["query_vector"] == "stored"


def test_both_protocols_give_the_same_scores(client):
    plain = client.post("/score", json=REQUEST).json()
    inputs = [
        {"name": name, "shape": [len(data)], "datatype": kind, "data": data}
        for name, kind, data in (
            ("product_id", "BYTES", [c["product_id"] for c in REQUEST["candidates"]]),
            ("bid", "FP64", [c["columns"]["bid"] for c in REQUEST["candidates"]]),
            ("device", "BYTES", ["phone"]),
            ("user_id", "BYTES", ["u1"]),
            ("query_id", "BYTES", ["q5"]),
            ("time", "BYTES", ["2024-03-05T10:00:00Z"]),
        )
    ]
    answer = client.post(INFER, json={"inputs": inputs}).json()
    assert {output["name"]: output["data"] for output in answer["outputs"]} == {
        "p_click": plain["p_click"],
        "order": plain["order"],
    }
    assert answer["model_version"] == plain["bundle"][:12]


def test_health_and_metadata_speak_the_protocol(client):
    assert client.get("/v2").json()["name"] == "adtower"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/adtower/ready").json() == {"name": "adtower", "ready": True}
    metadata = client.get("/v2/models/adtower").json()
    assert {"product_id", "device", "bid"} <= {tensor["name"] for tensor in metadata["inputs"]}
    assert len(metadata["versions"]) == 1


def test_what_is_not_there_is_404_in_the_same_words(client):
    answer = client.post("/v2/models/other/infer", json={})
    assert (answer.status_code, answer.json()) == (
        404, {"error": "there is no model of this name; 'adtower' is served"},
    )  # fmt: skip
    assert client.get("/nothing").json() == {"error": "Not Found"}
    assert client.get("/score").status_code == 405


def test_metrics_count_requests_candidates_and_strangers(client, front):
    before = [
        counted(client, "adtower_requests_total", endpoint="score", status="200"),
        counted(client, "adtower_candidates_sum"),
        counted(client, "adtower_unknown_ids_total", kind="product"),
        counted(client, "adtower_unknown_ids_total", kind="user"),
        counted(client, "adtower_query_vectors_total", source="missing"),
        counted(client, "adtower_request_seconds_count", endpoint="score"),
    ]
    strangers = {**REQUEST, "user_id": "nobody", "query_id": "x", "candidates": ["a", "b", "p1"],
                 "columns": {"device": "tv", "bid": None}}  # fmt: skip
    assert client.post("/score", json=strangers).status_code == 200
    after = [
        counted(client, "adtower_requests_total", endpoint="score", status="200"),
        counted(client, "adtower_candidates_sum"),
        counted(client, "adtower_unknown_ids_total", kind="product"),
        counted(client, "adtower_unknown_ids_total", kind="user"),
        counted(client, "adtower_query_vectors_total", source="missing"),
        counted(client, "adtower_request_seconds_count", endpoint="score"),
    ]
    assert np.subtract(after, before).tolist() == [1, 3, 2, 1, 1, 1]
    sha256 = Scorer.load(front.bundle).bundle.fingerprint
    assert counted(client, "adtower_bundle_info", sha256=sha256) == 1


@pytest.mark.parametrize("path", ["/score", INFER])
@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "is not JSON"),
        (b"{", 400, "is not JSON"),
        (b"\xff\xfe\x00", 400, "is not JSON"),
        (b"[" * 50_000, 400, "recursion limit"),
        (b'{"candidates": ' + b"[" * 50_000, 400, "recursion limit"),
        (b'{"query": "\xed\xa0\x80"}', 400, "is not JSON"),
        (b"null", 422, "object"),
        (b"[]", 422, "object"),
        (b"{}", 422, "Field required"),
        (b'{"candidates": ["p1"], "nonsense": 1}', 422, "is not a known field"),
        (b" " * 100_001, 413, "larger than 100000 bytes"),
    ],
)
def test_a_body_that_is_no_request_is_refused(client, path, body, status, words):
    answer = client.post(path, content=body)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"candidates": []}, "at least 1 item"),
        (
            {"candidates": [f"p{k}" for k in range(51)]},
            "51 candidates; this server takes at most 50",
        ),
        ({"candidates": [f"x{k}" for k in range(10_000)]}, "10000 candidates"),
        ({"candidates": ["p1", "p1"]}, "product 'p1' was there before"),
        ({"candidates": ["p1"]}, "candidates.0 lacks the column 'bid'"),
        ({"query": "x" * 1001}, "1001 characters of query"),
        ({"purchases": [{"product_id": "p1", "time": "2024-01-01"}] * 4}, "4 purchases"),
        ({"columns": {"device": 1.5}}, "column 'device' of candidates.0 is 1.5"),
        ({"columns": {"device": "tv", "colour": "red"}}, "'colour', which is no feature"),
        ({"columns": {"bid": "1", "device": "tv"}, "candidates": ["p1"]}, "must be a number"),
        ({"columns": {"bid": 1e200, "device": "tv"}, "candidates": ["p1"]}, "dense feature 'bid'"),
        ({"time": "soon"}, "time: Invalid isoformat string"),
    ],
)
def test_a_request_that_cannot_be_scored_says_why(client, change, words):
    answer = client.post("/score", content=json.dumps({**REQUEST, **change}))
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["error"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(client, number):
    body = json.dumps({**REQUEST, "columns": {"device": "tv", "bid": 0.5}, "candidates": ["p1"]})
    assert client.post("/score", content=body).status_code == 200
    answer = client.post("/score", content=body.replace("0.5", number))
    assert answer.status_code == 422
    assert "must be finite" in answer.json()["error"]


def test_packed_bodies_and_binary_tensors_are_refused(client):
    for header in ({"content-encoding": "gzip"}, {"inference-header-content-length": "10"}):
        assert client.post(INFER, content=b"{}", headers=header).status_code == 415


def test_a_body_is_limited_even_if_its_length_is_not_announced(client):
    answer = client.post("/score", content=(b" " * 30_000 for _ in range(4)))
    assert answer.status_code == 413


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from([*REQUEST, "product_id", "bid", "device", "name", "shape",
                                       "datatype", "data", "inputs", "outputs", "purchases",
                                       "query"]) | st.text(max_size=5), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@st.composite
def nearly_requests(draw):
    """A sound request with some of its values, at any depth, replaced by anything."""
    request = json.loads(json.dumps(REQUEST))
    for _ in range(draw(st.integers(1, 3))):
        at = request
        while True:
            key = draw(st.sampled_from(sorted(at)) if isinstance(at, dict)
                       else st.integers(0, len(at) - 1))  # fmt: skip
            if isinstance(at[key], dict | list) and at[key] and draw(st.booleans()):
                at = at[key]
                continue
            at[key] = draw(JSON)
            break
    return request


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=st.binary(max_size=200) | JSON.map(json.dumps) | nearly_requests().map(json.dumps),
       path=st.sampled_from(["/score", INFER]))  # fmt: skip
def test_nothing_that_is_sent_makes_a_server_fail(client, body, path):
    assert_answered_or_refused(client, body, path)


@pytest.mark.slow
@settings(
    max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=st.binary(max_size=200) | JSON.map(json.dumps) | nearly_requests().map(json.dumps),
       path=st.sampled_from(["/score", INFER]))  # fmt: skip
def test_ten_thousand_of_anything_make_no_server_fail(client, body, path):
    assert_answered_or_refused(client, body, path)


def assert_answered_or_refused(client, body, path):
    answer = client.post(path, content=body)
    assert answer.status_code in (200, 400, 422), (answer.status_code, answer.text, body)
    if answer.status_code == 200:
        p_click = answer.json()["p_click"]
        assert all(0 <= p <= 1 for p in p_click)
    else:
        assert list(answer.json()) == ["error"]
        assert len(answer.json()["error"]) < 2000


def test_a_failure_of_the_scorer_is_500_and_the_server_goes_on(app, monkeypatch):
    def broken(self, request):
        raise RuntimeError("out of luck")

    client = TestClient(app)
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "prepare", broken)
        answer = client.post("/score", json=REQUEST)
    assert (answer.status_code, "luck" in answer.text) == (500, False)
    assert client.post("/score", json=REQUEST).status_code == 200
