"""Progress of long work: what runs, how far it is, and how long it will still take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

Report = Callable[[int, int, str], None]
"""Called with steps done, steps at most, and a line on how it goes."""


class Progress(Protocol):
    """Who is told of a run's stages."""

    def stage(self, name: str) -> AbstractContextManager[Report]:
        """Announce a stage for as long as the block lasts; yields what its steps are told to."""
        ...

    def steps(self, stage: str, step: int, total: int, metrics: dict[str, float]) -> None:
        """Tell of one training step of a named stage."""
        ...


class Silent:
    """Tells nobody."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Report]:
        """Yield a report that does nothing."""
        yield lambda done, total, text: None

    def steps(self, stage: str, step: int, total: int, metrics: dict[str, float]) -> None:
        """Do nothing."""


class Terminal:
    """A bar with the time left on a terminal; elsewhere one line a finished stage.

    Everything goes to standard error, so that standard output holds results alone.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._began = time.monotonic()
        self._bar: RichProgress | None = None
        self._steps_name: str | None = None
        self._steps_began = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[Report]:
        """Show a bar for the stage, and its time when it is done."""
        began = time.monotonic()
        last = ""
        with self._shown(name) as update:

            def report(done: int, total: int, text: str) -> None:
                nonlocal last
                last = text
                update(done, total, text)

            yield report
        self._line(name, time.monotonic() - began, last)

    def steps(self, stage: str, step: int, total: int, metrics: dict[str, float]) -> None:
        """Show the steps of a stage that reports by itself."""
        text = "  ".join(f"{key} {value:.3g}" for key, value in metrics.items())
        if stage != self._steps_name:
            self._end_steps()
            self._steps_name, self._steps_began = stage, time.monotonic()
            self._steps_shown = self._shown(stage)
            self._steps_update = self._steps_shown.__enter__()
        self._steps_update(step, total, text)
        if step >= total:
            self._end_steps()
            self._line(stage, time.monotonic() - self._steps_began, text)

    def _end_steps(self) -> None:
        if self._steps_name is not None:
            self._steps_shown.__exit__(None, None, None)
            self._steps_name = None

    @contextmanager
    def _shown(self, name: str) -> Iterator[Report]:
        if self._bar is not None or not sys.stderr.isatty():
            yield lambda done, total, text: None
            return
        with RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=self._console,
            transient=True,
        ) as self._bar:
            bar, task = self._bar, self._bar.add_task(name, total=None, text="")
            try:
                yield lambda done, total, text: bar.update(
                    task, completed=done, total=total, text=text
                )
            finally:
                self._bar = None

    def _line(self, name: str, seconds: float, text: str) -> None:
        total = time.monotonic() - self._began
        line = Text.assemble(
            (f"{total:7.1f} s", "dim"), f"  {name} ", (f"({seconds:.1f} s)  {text}".rstrip(), "dim")
        )
        self._console.print(line, soft_wrap=True)
