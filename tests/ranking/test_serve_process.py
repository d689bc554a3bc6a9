"""A real server on this machine: under load, through reloads, to a stop in good order."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ranking.bundle import open_bundle, seal_
from ranking.live_bundle import LiveBundle
from ranking.request import request_of
from ranking.score import Scorer
from ranking.serve_config import ServeConfig
from ranking.serve_process import _listen
from ranking.served_log import read_served

REQUEST = {
    "user_id": "u1",
    "query_id": "q5",
    "time": "2024-03-05T10:00:00Z",
    "columns": {"device": "phone"},
    "candidates": [{"product_id": f"p{k}", "columns": {"bid": k / 10}} for k in range(20)],
}
BODY = json.dumps(REQUEST)
SERVER = """
import logging, sys
from ranking.serve_config import ServeConfig
from ranking.serve_process import serve
logging.basicConfig()
config = ServeConfig.model_validate_json(sys.argv[2])
serve(sys.argv[1], config, started=lambda url, live: print(url, flush=True))
"""


@contextlib.contextmanager
def running(bundle, **config):
    """A server process and the port it answers on."""
    settings = json.dumps({"port": 0, **config}, default=str)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(bundle), settings],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), process.communicate()[1]
        yield process, int(url.rsplit(":", 1)[1])
    finally:
        process.kill()
        process.communicate()


def post(connection, body=BODY):
    connection.request("POST", "/score", body)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


class Load(threading.Thread):
    """Asks again and again over one connection, and keeps the answers."""

    def __init__(self, port, stop):
        super().__init__()
        self.answers, self.failure = [], None
        self._port, self._stop_asked = port, stop

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            while not self._stop_asked.is_set():
                self.answers.append(post(connection))
        except (OSError, http.client.HTTPException) as error:
            self.failure = error
        finally:
            connection.close()


@contextlib.contextmanager
def load(port, threads=3):
    """Clients that keep asking until the block ends."""
    stop = threading.Event()
    clients = [Load(port, stop) for _ in range(threads)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        stop.set()
        for client in clients:
            client.join()


def point(link: Path, bundle: Path) -> None:
    """Have the link point to another bundle, at one stroke."""
    fresh = link.with_name(f".{link.name}.new")
    fresh.symlink_to(bundle)
    fresh.replace(link)


def scores(bundle):
    scorer = Scorer.load(bundle)
    return scorer.bundle.fingerprint, scorer.score(request_of(REQUEST)).p_click_K


def serving_now(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    fingerprint = post(connection)[1]["bundle"]
    connection.close()
    return fingerprint


def reloads(port, result):
    """How many attempts to take a new bundle came out so."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    start = f'adtower_reloads_total{{result="{result}"}} '
    return sum(float(line.removeprefix(start)) for line in lines if line.startswith(start))


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_ten_reloads_under_load_lose_nothing_and_mix_nothing(front, tmp_path):
    expected = dict(map(scores, (front.bundle, front.other_bundle)))
    first, second = expected
    assert np.abs(expected[first] - expected[second]).max() > 1e-3
    link = tmp_path / "live"
    point(link, front.bundle)
    with running(link, watch_seconds=0) as (process, port):
        with load(port) as clients:
            for bundle in [front.other_bundle, front.bundle] * 5:
                point(link, bundle)
                process.send_signal(signal.SIGHUP)
                wait_for(lambda bundle=bundle: serving_now(port) == open_bundle(bundle).fingerprint)
        assert reloads(port, "accepted") == 10
    answers = [answer for client in clients for answer in client.answers]
    assert [client.failure for client in clients] == [None] * len(clients)
    assert {status for status, _ in answers} == {200}
    assert {answer["bundle"] for _, answer in answers} == {first, second}
    for _, answer in answers:
        np.testing.assert_allclose(answer["p_click"], expected[answer["bundle"]], rtol=0, atol=1e-7)


def test_a_changed_link_is_noticed_without_a_signal(front, tmp_path):
    link = tmp_path / "live"
    point(link, front.bundle)
    with running(link, watch_seconds=0.05) as (_, port):
        point(link, front.other_bundle)
        wait_for(lambda: serving_now(port) == open_bundle(front.other_bundle).fingerprint)


def test_a_bad_bundle_is_refused_and_the_old_one_goes_on(front, tmp_path):
    link, bad = tmp_path / "live", tmp_path / "bad"
    shutil.copytree(front.other_bundle, bad)
    content = bytearray((bad / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bad / "model.onnx").write_bytes(content)
    point(link, front.bundle)
    with running(link, watch_seconds=0) as (process, port):
        for refused, target in enumerate((bad, tmp_path / "nowhere"), start=1):
            point(link, target)
            process.send_signal(signal.SIGHUP)
            wait_for(lambda refused=refused: reloads(port, "refused") == refused)
            assert serving_now(port) == open_bundle(front.bundle).fingerprint
        point(link, front.other_bundle)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: serving_now(port) == open_bundle(front.other_bundle).fingerprint)


def test_stopping_finishes_what_is_under_way(front, tmp_path):
    log = tmp_path / "served.jsonl"
    with running(front.bundle, log=log) as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        # The request has begun, and its body has not arrived, when the server is told to stop.
        connection.putrequest("POST", "/score")
        connection.putheader("Content-Length", str(len(BODY)))
        connection.endheaders()
        connection.send(BODY[:50].encode())
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        # Refused or reset, as the kernel likes.
        with pytest.raises(OSError):
            serving_now(port)
        connection.send(BODY[50:].encode())
        answer = connection.getresponse()
        assert answer.status == 200
        assert len(json.loads(answer.read())["p_click"]) == 20
        connection.close()
        assert process.wait(10) == 0
    assert [number for number, _ in read_served(log)] == [1]


def test_answers_are_sent_at_once():
    # asyncio switches the delay of small packets off only where the socket says it is TCP.
    with _listen(ServeConfig(port=0)) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_a_body_that_does_not_arrive_is_given_up(front):
    with running(front.bundle, body_seconds=0.2) as (_, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.putrequest("POST", "/score")
        connection.putheader("Content-Length", "100")
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 408
        assert "within 0.2 seconds" in json.loads(answer.read())["error"]
        connection.close()


def test_a_bundle_that_cannot_be_served_stops_the_start(front, tmp_path):
    with pytest.raises(ValueError, match=r"manifest.json does not exist"):
        LiveBundle(tmp_path)
    copy = tmp_path / "bundle"
    shutil.copytree(front.bundle, copy)
    manifest = open_bundle(copy).manifest
    golden = pl.read_parquet(copy / "golden.parquet")
    off = golden.with_columns(pl.col("expected_low", "expected_high") + 0.01)
    off.write_parquet(copy / "golden.parquet")
    seal_(copy, manifest)
    with pytest.raises(ValueError, match=r"scores its golden rows 0.01 off on this machine"):
        LiveBundle(copy)


def test_a_bundle_with_other_columns_does_not_take_over(front, tmp_path, caplog, monkeypatch):
    link = tmp_path / "live"
    point(link, front.bundle)
    live = LiveBundle(link)
    before = live.current
    spec = front_features(before.scorer)
    point(link, front.other_bundle)
    load_scorer = Scorer.load

    def with_another_column(*args, **options):
        scorer = load_scorer(*args, **options)
        scorer.pipeline.spec = spec
        monkeypatch.setattr("ranking.live_bundle.golden_distance", lambda scorer: 0.0)
        return scorer

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "load", with_another_column)
        assert live.reload() is False
    assert live.current is before
    assert "takes the columns ['bid', 'device', 'page']" in caplog.text


def front_features(scorer):
    """The spec of a bundle, with one more feature column."""
    spec = scorer.pipeline.spec
    features = replace(spec.features, sparse=(*spec.features.sparse, "page"))
    return replace(spec, features=features)


def test_a_folder_that_is_being_copied_is_left_alone(front, tmp_path):
    target = tmp_path / "bundle"
    shutil.copytree(front.bundle, target)
    live = LiveBundle(target)
    assert live.poll() is None
    for path in sorted(front.other_bundle.rglob("*")):
        if path.is_file():
            shutil.copy(path, target / path.relative_to(front.other_bundle))
            assert live.poll() is None
    assert live.poll() is True
    assert live.current.fingerprint == open_bundle(front.other_bundle).fingerprint
    assert live.poll() is None
    os.utime(target / "model.onnx")
    assert live.poll() is None
    assert live.poll() is True
