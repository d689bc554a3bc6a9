"""What a server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ranking.live_bundle import Served
from ranking.request_table import Diagnostics

LATENCY_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
CANDIDATES = (1, 5, 10, 25, 50, 100, 200, 500, 1000)


class ServeMetrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "adtower_requests", "Requests answered.", ["endpoint", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "adtower_request_seconds", "From the first byte of a request to its answer.",
            ["endpoint"], buckets=LATENCY_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._candidates = Histogram(
            "adtower_candidates", "Candidates of a scored request.", buckets=CANDIDATES,
            registry=self._registry,
        )  # fmt: skip
        self._unknown = Counter(
            "adtower_unknown_ids", "Ids that the bundle does not know.", ["kind"],
            registry=self._registry,
        )  # fmt: skip
        self._without_vector = Counter(
            "adtower_products_without_vector", "Known candidates that have no vector.",
            registry=self._registry,
        )  # fmt: skip
        self._query_vectors = Counter(
            "adtower_query_vectors", "Where the query vectors of requests came from.", ["source"],
            registry=self._registry,
        )  # fmt: skip
        self._bundle = Gauge(
            "adtower_bundle_info", "The bundle that serves now.", ["name", "sha256"],
            registry=self._registry,
        )  # fmt: skip
        self._reloads = Counter(
            "adtower_reloads", "Attempts to take a new bundle.", ["result"],
            registry=self._registry,
        )  # fmt: skip
        self._dropped = Gauge(
            "adtower_log_dropped", "Requests that the log did not keep up with.",
            registry=self._registry,
        )  # fmt: skip

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def scored(self, candidates: int, diagnostics: Diagnostics) -> None:
        """Count what a scored request had that the bundle does not know."""
        self._candidates.observe(candidates)
        self._query_vectors.labels(diagnostics.query_vector).inc()
        for kind, count in (
            ("user", int(diagnostics.unknown_user)),
            ("query", int(diagnostics.unknown_query)),
            ("product", len(diagnostics.unknown_products)),
        ):
            if count:
                self._unknown.labels(kind).inc(count)
        if diagnostics.products_without_vector:
            self._without_vector.inc(len(diagnostics.products_without_vector))

    def serves(self, served: Served) -> None:
        """Note the bundle that serves from now on."""
        self._bundle.clear()
        self._bundle.labels(served.scorer.manifest.name, served.fingerprint).set(1)

    def reloaded(self, accepted: bool) -> None:
        """Count an attempt to take a new bundle."""
        self._reloads.labels("accepted" if accepted else "refused").inc()

    def text(self, dropped: int) -> bytes:
        """Return all of it in Prometheus' text format.

        Args:
            dropped: Requests that the log lost so far.
        """
        self._dropped.set(dropped)
        return generate_latest(self._registry)
