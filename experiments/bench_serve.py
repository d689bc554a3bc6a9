"""What ``adtower serve`` sustains, and that taking new bundles costs no request.

A server process and a load generator share this machine. Every client asks again as soon as it has
its answer, over a connection that it keeps. While the clients ask, the server is made to take
another bundle, again and again.

Shape letters: K candidates of a request.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embeddings.baselines import random_vectors
from features.dataset import Dataset
from features.embedding_join import join_vectors
from features.pipeline import FeaturePipeline
from ranking.bundle import open_bundle
from ranking.export import export_bundle
from ranking.request import request_of
from ranking.score import Scorer
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig

CANDIDATES, CLIENTS, REQUESTS, RELOADS = 100, (1, 4), 300, 10
DIM = 128
_WARM_UP_SECONDS, _START_SECONDS, _RELOAD_SECONDS = 0.5, 60.0, 0.3

Metrics = dict[str, float]


@dataclass
class Load:
    """What the clients saw."""

    seconds: float = 0.0
    latency_ms: list[float] = field(default_factory=list)
    failures: int = 0
    """Connections that broke, and answers other than 200."""
    mixed: int = 0
    """Answers whose scores are not those of the bundle that they name."""
    bundles: set[str] = field(default_factory=set)


def bench_serve(world: Dataset, folder: Path, *, seconds: float = 5.0) -> Metrics:
    """Serve a bundle of the paper's two towers to clients on this machine.

    Args:
        world: Gives products, queries, users and clicks.
        folder: Where the bundles are written.
        seconds: That each number of clients asks for.

    Returns:
        ``serve.requests_per_s_N``, ``serve.p50_ms_N`` and ``serve.p99_ms_N`` with N clients, of
        requests with 100 candidates; ``serve.cpu_ms``, the server's processor time a request; and
        of ten reloads under load ``serve.reload_failures``, ``serve.reload_mixed`` and
        ``serve.reload_p99_ms``.
    """
    bundles = [_write_bundle(world, folder / name, seed) for seed, name in enumerate("ab")]
    asked = _requests(world)
    expected = {
        open_bundle(bundle).fingerprint: Scorer.load(bundle).score(request_of(asked[0])).p_click_K
        for bundle in bundles
    }
    link = folder / "live"
    _point(link, bundles[0])
    metrics: Metrics = {}
    with _served(link) as (server, port):
        _ask(port, asked, clients=1, seconds=_WARM_UP_SECONDS)
        began_s, answered = _cpu_seconds(server.pid), 0
        for clients in CLIENTS:
            load = _ask(port, asked, clients=clients, seconds=seconds)
            answered += len(load.latency_ms)
            metrics[f"serve.requests_per_s_{clients}"] = len(load.latency_ms) / load.seconds
            for percent in (50, 99):
                name = f"serve.p{percent}_ms_{clients}"
                metrics[name] = float(np.percentile(load.latency_ms, percent))
        metrics["serve.cpu_ms"] = (_cpu_seconds(server.pid) - began_s) / answered * 1e3
        changes = [(bundles[(n + 1) % 2], server) for n in range(RELOADS)]
        load = _ask(
            port, asked[:1], clients=CLIENTS[-1], seconds=RELOADS * _RELOAD_SECONDS + 1,
            expected=expected, link=link, changes=changes,
        )  # fmt: skip
    metrics["serve.reload_failures"] = float(load.failures)
    metrics["serve.reload_mixed"] = float(load.mixed)
    metrics["serve.reload_bundles"] = float(len(load.bundles))
    metrics["serve.reload_p99_ms"] = float(np.percentile(load.latency_ms, 99))
    return metrics


@dataclass
class _Client:
    connection: socket.socket
    sent_s: float = 0.0
    answer: bytearray = field(default_factory=bytearray)

    def ask(self, packet: bytes) -> None:
        self.answer.clear()
        self.sent_s = time.perf_counter()
        self.connection.sendall(packet)

    def body(self) -> bytes | None:
        """The body of the answer; None until all of it is there."""
        end = self.answer.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(self.answer[:end]).lower()
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        body = bytes(self.answer[end + 4 :])
        return body if len(body) == length else None


def _ask(
    port: int,
    asked: list[dict],
    *,
    clients: int,
    seconds: float,
    expected: dict[str, NDArray] | None = None,
    link: Path | None = None,
    changes: list[tuple[Path, subprocess.Popen]] | None = None,
) -> Load:
    """Have clients ask for some seconds, changing the bundle now and then."""
    packets = [_packet(request) for request in asked]
    load, chooser = Load(), selectors.DefaultSelector()
    pending = list(changes or [])
    for number in range(clients):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = _Client(connection)
        chooser.register(connection, selectors.EVENT_READ, client)
        client.ask(packets[number % len(packets)])
    began = next_change = time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        if pending and now >= next_change:
            bundle, server = pending.pop(0)
            assert link is not None
            _point(link, bundle)
            server.send_signal(signal.SIGHUP)
            next_change = now + _RELOAD_SECONDS
        for key, _ in chooser.select(1.0):
            client: _Client = key.data
            part = client.connection.recv(1 << 18)
            client.answer += part
            body = client.body()
            if body is None and part:
                continue
            load.latency_ms.append((time.perf_counter() - client.sent_s) * 1e3)
            if body is None or not client.answer.startswith(b"HTTP/1.1 200 "):
                load.failures += 1
            elif expected is not None:
                _compare_(load, json.loads(body), expected)
            if not part:
                chooser.unregister(client.connection)
                continue
            client.ask(packets[len(load.latency_ms) % len(packets)])
    load.seconds = time.perf_counter() - began
    for key in list(chooser.get_map().values()):
        key.data.connection.close()
    chooser.close()
    return load


def _compare_(load: Load, answer: dict, expected: dict[str, NDArray]) -> None:
    load.bundles.add(answer["bundle"])
    scores_K = expected[answer["bundle"]]
    load.mixed += not np.allclose(answer["p_click"], scores_K, rtol=0, atol=1e-6)


def _packet(request: dict) -> bytes:
    body = json.dumps(request).encode()
    head = f"POST /score HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _requests(world: Dataset) -> list[dict]:
    rng = np.random.default_rng(0)
    users, queries, products = (
        world.table(table)[column].unique().sort().to_list()
        for table, column in (
            ("impressions", "user_id"), ("queries", "query_id"), ("products", "product_id"),
        )
    )  # fmt: skip
    moment = world.table("impressions")["time"].max()
    return [
        {
            "user_id": users[rng.integers(len(users))],
            "query_id": queries[rng.integers(len(queries))],
            "time": str(moment),
            "candidates": rng.choice(products, CANDIDATES, replace=False).tolist(),
        }
        for _ in range(REQUESTS)
    ]


def _write_bundle(world: Dataset, out: Path, seed: int) -> Path:
    split = world.split()
    pipeline = FeaturePipeline(world.spec).fit(world, split.train)
    products, queries = pipeline.product_ids_, pipeline.query_ids_
    product_store, query_store = (random_vectors(ids, DIM, seed) for ids in (products, queries))
    vectors = join_vectors(product_store, query_store, products, queries)
    model = TowerRanker(TowerConfig(max_epochs=1)).fit(
        pipeline.transform(split.train), pipeline.transform(split.validation), vectors, seed=seed
    )
    return export_bundle(model, pipeline, product_store, query_store, split.validation, out)


def _point(link: Path, bundle: Path) -> None:
    fresh = link.with_name(f".{link.name}.new")
    fresh.symlink_to(bundle.resolve())
    fresh.replace(link)


@contextmanager
def _served(bundle: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """The server as it is typed, and its port."""
    command = [sys.executable, "-m", "experiments", "serve", str(bundle), "--port", "0",
               "--watch-seconds", "0"]  # fmt: skip
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if "http://" not in line:
            raise ValueError(f"the server did not start: {line!r}; try `adtower serve` by hand")
        yield server, int(line.rsplit(":", 1)[1])
        server.send_signal(signal.SIGTERM)
        server.wait(_START_SECONDS)
    finally:
        server.kill()
        # Waits for the end, and closes the pipe.
        server.communicate()


def _cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, from the system's table of processes."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
