"""The server as a process: listening, watching for new bundles, stopping without haste."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from ranking.live_bundle import LiveBundle
from ranking.serve import make_app
from ranking.serve_config import ServeConfig
from ranking.serve_metrics import ServeMetrics
from ranking.served_log import ServedLog

# While a bundle loads in a thread, the loop waits at most this long for the interpreter's lock.
_SWITCH_SECONDS = 0.0005


def serve(
    bundle: str | Path,
    config: ServeConfig,
    *,
    started: Callable[[str, LiveBundle], None] | None = None,
) -> None:
    """Serve a bundle until the process gets SIGTERM or SIGINT; then finish what is under way.

    SIGHUP takes the bundle that the path points to now; so does a change of the folder or link, if
    ``watch_seconds`` is not 0.

    Args:
        bundle: A bundle's folder, or a link to one.
        config: Address and limits.
        started: Called with the URL once requests are answered.

    Raises:
        ValueError: If the bundle cannot be served.
        OSError: If the address cannot be had, or the log not be written.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    metrics = ServeMetrics()
    live = LiveBundle(Path(bundle), threads=config.threads, changed=metrics.serves)
    log = ServedLog(config.log, every=config.log_every) if config.log is not None else None
    try:
        asyncio.run(_run(live, config, metrics, log, started))
    finally:
        if log is not None:
            log.close()


async def _run(
    live: LiveBundle,
    config: ServeConfig,
    metrics: ServeMetrics,
    log: ServedLog | None,
    started: Callable[[str, LiveBundle], None] | None,
) -> None:
    settings = uvicorn.Config(
        make_app(live, config, metrics, log),
        log_config=None,
        access_log=False,
        lifespan="off",
        limit_concurrency=config.max_connections,
        timeout_graceful_shutdown=config.grace_seconds,
        server_header=False,
    )
    listening = _listen(config)
    address, port = listening.getsockname()[:2]
    server = _Server(settings)
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
    watching = asyncio.create_task(_watch(live, config.watch_seconds, asked, metrics))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if started is not None and server.started:
        host = f"[{address}]" if ":" in address else address
        started(f"http://{host}:{port}", live)
    try:
        await serving
    finally:
        watching.cancel()
        listening.close()


async def _watch(
    live: LiveBundle, seconds: float, asked: asyncio.Event, metrics: ServeMetrics
) -> None:
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asked.wait(), seconds or None)
        look = live.reload if asked.is_set() else live.poll
        asked.clear()
        accepted = await asyncio.to_thread(look)
        if accepted is not None:
            metrics.reloaded(accepted)


def _listen(config: ServeConfig) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        config.host, config.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )[0]
    # asyncio sends small packets at once only where the socket says it is TCP, which uvicorn's own
    # does not; without that every answer over a kept connection waits 40 ms for the client.
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except BaseException:
        listening.close()
        raise
    return listening


class _Server(uvicorn.Server):
    """uvicorn's server, which would end the process by the signal it was stopped with."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield
