"""The same function over many parts of the data: in a pool of processes here, or by Ray Data.

A task is a list of plain values and its result a dict of them, so both ways carry the same; what
is large lies in files. Functions must not depend on which parts their process saw before.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, Self

Task = Callable[..., dict[str, Any]]
"""A function of a module, called with the plain values of one task."""

ONE_THREAD: dict[str, str] = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
}
"""What a worker's libraries are told; workers share the cores instead of fighting over them."""


class Workers:
    """Those who do tasks; for use in a ``with`` block.

    Args:
        workers: ``local:N`` for N processes here (1 works in this one), ``ray`` for all that a Ray
            cluster has, or ``ray:N`` for N of its processors.

    Raises:
        ValueError: If ``workers`` is none of these.
    """

    def __init__(self, workers: str = "local:1") -> None:
        self.kind, self.count = parse_workers(workers)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, function: Task, tasks: Sequence[Sequence[Any]]) -> Iterator[dict[str, Any]]:
        """Call a function of a module once for every task; yield results in the tasks' order.

        Raises:
            ValueError: If Ray is asked for and not installed.
        """
        if self.kind == "ray":
            yield from _run_by_ray(function, tasks, self.count)
        elif self.count == 1 or len(tasks) < 2:
            for task in tasks:
                yield function(*task)
        else:
            with _environment(ONE_THREAD):
                waiting = [self._processes().submit(function, *task) for task in tasks]
            for future in waiting:
                yield future.result()

    def _processes(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Fresh processes: a forked one would inherit threads' locks that nobody releases.
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, mp_context=spawn)
        return self._pool


def parse_workers(workers: str) -> tuple[str, int | None]:
    """Return the kind of workers and how many; None is as many as there are.

    Raises:
        ValueError: If it is not ``local:N``, ``ray`` or ``ray:N``.
    """
    kind, colon, count = workers.partition(":")
    if kind not in ("local", "ray") or (colon and not (count.isdecimal() and int(count) > 0)):
        raise ValueError(f"workers is {workers!r}; must be local:N, ray or ray:N with N from 1")
    if not colon:
        return kind, (os.cpu_count() or 1) if kind == "local" else None
    return kind, int(count)


def _run_by_ray(
    function: Task, tasks: Sequence[Sequence[Any]], processors: int | None
) -> Iterator[dict[str, Any]]:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(
            "workers ray needs Ray Data; install it with pip install 'adtower[ray]', or use local:N"
        ) from error
    if not ray.is_initialized():
        ray.init(
            num_cpus=processors,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": ONE_THREAD},
        )

    def call(row: dict[str, Any]) -> dict[str, Any]:
        return {"place": row["place"], "result": json.dumps(function(*json.loads(row["task"])))}

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"place": place, "task": json.dumps(list(task))} for place, task in enumerate(tasks)]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(call).take_all()
    for row in sorted(done, key=lambda row: row["place"]):
        yield json.loads(row["result"])


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started within the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
