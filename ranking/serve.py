"""Scores over HTTP: the Open Inference Protocol, plain requests, health and metrics.

Requests are scored in the event loop itself: one takes a millisecond or two of one core, less than
what handing it to a thread and waiting for the interpreter's lock costs in the worst case. One
server therefore uses one core.

Every refusal is ``{"error": "..."}``: 400 for what is not JSON, 404 for another model, 408 for a
body that does not arrive, 413 for one too large, 415 for one that is packed, 422 for one that
cannot be scored.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ranking.live_bundle import LiveBundle, Served
from ranking.open_inference import inference_answer, model_metadata, parse_inference
from ranking.request import MalformedJsonError, ScoreRequest, parse_request
from ranking.request_table import ScoredRequest
from ranking.serve_config import ServeConfig
from ranking.serve_metrics import ServeMetrics
from ranking.served_log import ServedLog

_LOG = logging.getLogger("adtower.serve")
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def make_app(
    live: LiveBundle, config: ServeConfig, metrics: ServeMetrics, log: ServedLog | None
) -> FastAPI:
    """Return the application that answers with whatever ``live`` holds."""
    app = FastAPI(title="adtower", docs_url=None, redoc_url=None)
    model = f"/v2/models/{config.name}"

    def score(request: ScoreRequest, served: Served) -> ScoredRequest:
        _within_limits(request, config)
        prepared = served.scorer.prepare(request)
        scored = served.scorer.score_prepared(prepared)
        metrics.scored(len(request.candidates), scored.diagnostics)
        if log is not None:
            log.add(served, request, prepared, scored)
        return scored

    def plain(body: bytes, served: Served) -> dict[str, Any]:
        request = parse_request(body)
        scored = score(request, served)
        return {
            "request_id": request.request_id,
            "bundle": served.fingerprint,
            "p_click": scored.p_click_K.tolist(),
            "order": scored.order_K.tolist(),
            "diagnostics": asdict(scored.diagnostics),
        }

    def infer(body: bytes, served: Served) -> dict[str, Any]:
        request, inference = parse_inference(body)
        scored = score(request, served)
        return inference_answer(scored, inference, name=config.name, version=served.version)

    def answering(
        endpoint: str, work: Callable[[bytes, Served], dict[str, Any]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            began = time.perf_counter()
            response = await _answer(request, work, live, config)
            metrics.answered(endpoint, response.status_code, time.perf_counter() - began)
            return response

        return answer

    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": {
        "type": "object"}}}}}  # fmt: skip
    app.post("/score", openapi_extra=body)(answering("score", plain))
    app.post(f"{model}/infer", openapi_extra=body)(answering("infer", infer))

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        return {"name": "adtower", "version": live.current.version, "extensions": []}

    @app.get("/v2/health/live")
    async def alive() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.get(model)
    async def metadata() -> dict[str, Any]:
        served = live.current
        features = served.scorer.pipeline.spec.features
        return model_metadata(features, name=config.name, version=served.version)

    @app.get(f"{model}/ready")
    async def model_ready() -> dict[str, Any]:
        return {"name": config.name, "ready": True}

    @app.get("/metrics")
    async def prometheus() -> Response:
        dropped = 0 if log is None else log.dropped
        return Response(metrics.text(dropped), media_type=_PROMETHEUS)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404 and request.url.path.startswith("/v2/models/"):
            return _refusal(404, f"there is no model of this name; {config.name!r} is served")
        return _refusal(error.status_code, str(error.detail))

    return app


async def _answer(
    request: Request,
    work: Callable[[bytes, Served], dict[str, Any]],
    live: LiveBundle,
    config: ServeConfig,
) -> Response:
    """Read a body within its limits and answer it wholly with the bundle that serves now."""
    packed = request.headers.get("content-encoding", "identity")
    if packed != "identity":
        return _refusal(415, f"content-encoding is {packed!r}; send the body as it is")
    if "inference-header-content-length" in request.headers:
        return _refusal(415, "tensors come in JSON; the binary data extension is not supported")
    try:
        async with asyncio.timeout(config.body_seconds):
            body = await _body_of(request, config.max_body_bytes)
    except TimeoutError:
        return _refusal(408, f"the body did not arrive within {config.body_seconds:g} seconds")
    except ClientDisconnect:
        return _refusal(400, "the client left before its body had arrived")
    if body is None:
        return _refusal(413, f"the body is larger than {config.max_body_bytes} bytes")
    served = live.current
    try:
        return Response(to_json(work(body, served)), media_type="application/json")
    except MalformedJsonError as error:
        return _refusal(400, f"the body is not JSON: {error}")
    except ValueError as error:
        return _refusal(422, str(error))
    except Exception:  # noqa: BLE001 - whatever fails, it fails for one request alone
        _LOG.exception("a request failed")
        return _refusal(500, "the server failed on this request; its log says how")


async def _body_of(request: Request, limit: int) -> bytes | None:
    """Return the body; None if it is larger than the limit, which is told as early as it shows."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        return None
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > limit:
            return None
    return bytes(parts)


def _within_limits(request: ScoreRequest, config: ServeConfig) -> None:
    for what, found, limit in (
        ("candidates", len(request.candidates), config.max_candidates),
        ("purchases", len(request.purchases or ()), config.max_purchases),
        ("characters of query", len(request.query or ""), config.max_text_chars),
    ):
        if found > limit:
            raise ValueError(f"the request has {found} {what}; this server takes at most {limit}")


def _refusal(status: int, message: str) -> Response:
    return Response(to_json({"error": message}), status, media_type="application/json")
