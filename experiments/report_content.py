"""What a report shows, and how it is read from a run folder.

The files of a run folder that a report is made of; each may be missing, and its part is then left
out with the reason given in ``notes.json``:

    comparison.json            ``Comparison.to_json``: variants, differences, verdict
    ab.json                    ``AbResult.to_json``: lifts of the simulated A/B test
    ab/NAME/ab.json            the same of experiments run afterwards by ``adtower simulate``
    metrics.json               flat figures; read here: ``oracle.auc``,
                               ``oracle_without_position.auc``, ``VARIANT.fit_seconds``,
                               ``VARIANT.parameters``
    embedding_evaluation.json  kind of vectors to its measures by name
    data.json                  ``DataSummary``
    training.json              ``TrainingRecord``: curves and costs
    leak_checks.json           signs of a leak that were looked for, ``leak_checks.LeakCheck``
    selftest.json              what ``adtower simulate --selftest --json`` wrote
    environment.json           ``records.Environment``
    config.json                the settings, any JSON object
    notes.json                 ``Notes``: command, meanings, limits, reasons for what is missing
    figures/figures.json       the figures that were drawn, by ``write_figure``
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from experiments.ab_result import AbResult
from experiments.comparison import Comparison
from experiments.figures import Curve
from experiments.leak_checks import LEAK_CHECKS, LeakCheck
from experiments.records import (
    DATA,
    ENVIRONMENT,
    METRICS,
    Environment,
    read_json,
    read_metrics,
    write_bytes,
    write_json,
)
from experiments.self_test import SelfTest

FIGURES = "figures"
FIGURE_INDEX = "figures.json"
NOTES = "notes.json"
TRAINING = "training.json"
SELF_TEST = "selftest.json"
SCORED_TOGETHER = 100
"""Candidates of one request, when the time to score them is taken."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cost(_Record):
    """What a part of the run cost."""

    what: str
    """The part, such as "stage 1"."""
    seconds: float
    """Wall time."""
    parameters: int | None = None
    """Learned numbers, where it learns."""
    peak_bytes: int | None = None
    """Most memory that the process held which did it."""
    score_ms: float | None = None
    """Time to score ``SCORED_TOGETHER`` rows at once, where it is a click model."""


class TrainingRecord(_Record):
    """How training went: ``training.json``."""

    curves: tuple[Curve, ...] = ()
    costs: tuple[Cost, ...] = ()


class DataPart(_Record):
    """One part of the impressions, by time."""

    impressions: int
    clicks: int
    first: str
    """Time of the first impression, UTC."""
    last: str
    """Time of the last impression, UTC."""


class DataSummary(_Record):
    """What was learned from: ``data.json``."""

    name: str
    simulated: bool
    """Whether a simulator made the clicks."""
    fingerprint: str
    """SHA-256 over the tables."""
    tables: dict[str, int]
    """Rows by table."""
    parts: dict[str, DataPart]
    """Train, validation, test."""


class Notes(_Record):
    """What only the run itself can say: ``notes.json``."""

    title: str = "adtower report"
    command: str = ""
    """The command line that repeats the run."""
    meanings: dict[str, str] = Field(default_factory=dict)
    """What each variant is, in words, by name."""
    limits: tuple[str, ...] = ()
    """Warnings that belong to this run, one sentence each."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Why a part is missing, by part (comparison, ab, embeddings, figure_4, ...) or variant."""
    fingerprints: dict[str, str] = Field(default_factory=dict)
    """What else a repeat must agree with, such as the vectors, by name."""


class FigureRecord(_Record):
    """One figure of ``figures/``, as its index knows it."""

    name: str
    """Key, such as "figure_4"; letters, digits, - and _."""
    file: str
    """File name in the folder."""
    title: str
    caption: str


class FigureImage(_Record):
    """A figure with its bytes."""

    name: str
    title: str
    caption: str
    image: bytes
    """SVG or PNG."""

    @property
    def is_svg(self) -> bool:
        """Whether the image is an SVG; otherwise it is a PNG."""
        return not self.image.startswith(b"\x89PNG")


class ReportContent(_Record):
    """All that a report shows; whatever is None or empty is left out of the page."""

    notes: Notes = Notes()
    comparison: Comparison | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    ab: AbResult | None = None
    further_ab: dict[str, AbResult] = Field(default_factory=dict)
    """Experiments run afterwards, by the name of their folder."""
    leaks: tuple[LeakCheck, ...] = ()
    """What the data was searched for."""
    self_test: dict[str, float] = Field(default_factory=dict)
    """Figures of the test of the A/B test itself, flat."""
    embeddings: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    """Kind of vectors to measure to value."""
    figures: tuple[FigureImage, ...] = ()
    data: DataSummary | None = None
    training: TrainingRecord = TrainingRecord()
    environment: Environment | None = None
    config: dict[str, Any] = Field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        """Whether the clicks came out of a simulator, which the page then says everywhere."""
        return self.data is not None and self.data.simulated

    def figure(self, name: str) -> FigureImage | None:
        """Return a stored figure by its key, or None."""
        return next((figure for figure in self.figures if figure.name == name), None)


def curve_of_history(
    panel: str,
    name: str,
    history: Iterable[Mapping[str, float]],
    *,
    x: str = "step",
    y: str = "loss",
    x_label: str = "",
    y_label: str = "loss (nats)",
) -> Curve | None:
    """Turn the rows of a training history into a curve.

    Args:
        panel: Title of the axes.
        name: Name of the line.
        history: One mapping a step or epoch; rows without ``y`` are passed over.
        x: Key of the horizontal value; rows without it are numbered from 1.
        y: Key of the vertical value.
        x_label: Label with unit; ``x`` by default.
        y_label: Label with unit.

    Returns:
        The curve, or None where no row has ``y``.
    """
    rows = [row for row in history if row.get(y) is not None]
    if not rows:
        return None
    return Curve(
        panel=panel,
        name=name,
        x=tuple(float(row.get(x, i)) for i, row in enumerate(rows, start=1)),
        y=tuple(float(row[y]) for row in rows),
        x_label=x_label or x,
        y_label=y_label,
    )


def write_figure(
    run_folder: Path | str, name: str, image: bytes, *, title: str, caption: str
) -> Path:
    """Store a figure in a run folder, where the report will find it.

    Args:
        run_folder: The run.
        name: Key. ``report.PLACED`` have their place on the page, others follow after them; what
            the records suffice for is drawn where no figure of that name is stored. A figure of
            that name is replaced.
        image: SVG or PNG.
        title: A short title.
        caption: What to see in it, one to three sentences.

    Returns:
        The image's path.

    Raises:
        ValueError: If the name is no plain word, or the image is neither SVG nor PNG.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"figure name {name!r}: letters, digits, - and _ only; it names a file")
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        suffix = "png"
    elif b"<svg" in image[:2000]:
        suffix = "svg"
    else:
        raise ValueError(f"figure {name}: the {len(image)} bytes are neither an SVG nor a PNG")
    folder = Path(run_folder) / FIGURES
    index = folder / FIGURE_INDEX
    kept = [one for one in _read_index(index) if one.name != name]
    record = FigureRecord(name=name, file=f"{name}.{suffix}", title=title, caption=caption)
    write_bytes(folder / record.file, image)
    write_json(index, [one.model_dump() for one in (*kept, record)])
    return folder / record.file


def read_report_content(run_folder: Path | str) -> ReportContent:
    """Read whatever a run folder holds.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds none of the files above, or one of them is damaged or of another
            version; the message names it.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run folder {folder}; run adtower with --out first")
    if not any((folder / name).is_file() for name in (METRICS, "comparison.json", "config.json")):
        raise ValueError(
            f"{folder} holds no {METRICS}, comparison.json or config.json; is it a run folder?"
        )

    def text(name: str) -> str | None:
        path = folder / name
        return path.read_text(encoding="utf-8") if path.is_file() else None

    comparison, ab = text("comparison.json"), text("ab.json")
    return ReportContent(
        notes=_read(folder / NOTES, Notes) or Notes(title=folder.resolve().name),
        comparison=Comparison.from_json(comparison) if comparison else None,
        metrics=read_metrics(folder / METRICS) if (folder / METRICS).is_file() else {},
        ab=AbResult.from_json(ab) if ab else None,
        further_ab={
            file.parent.name: AbResult.from_json(file.read_text(encoding="utf-8"))
            for file in sorted(folder.glob("ab/*/ab.json"))
        },
        leaks=_read(folder / LEAK_CHECKS, tuple[LeakCheck, ...]) or (),
        self_test=_self_test(folder / SELF_TEST),
        embeddings=_read(folder / "embedding_evaluation.json", dict[str, dict[str, float | None]])
        or {},
        figures=tuple(
            FigureImage(
                name=one.name,
                title=one.title,
                caption=one.caption,
                image=_figure_bytes(folder / FIGURES, one),
            )
            for one in _read_index(folder / FIGURES / FIGURE_INDEX)
        ),
        data=_read(folder / DATA, DataSummary),
        training=_read(folder / TRAINING, TrainingRecord) or TrainingRecord(),
        environment=_read(folder / ENVIRONMENT, Environment),
        config=_read(folder / "config.json", dict[str, Any]) or {},
    )


def _self_test(path: Path) -> dict[str, float]:
    """The run's own file of figures, or those that come with this version, or none."""
    if path.is_file():
        return read_metrics(path)
    stored = SelfTest.stored()
    return {} if stored is None else stored.to_metrics()


def _read(path: Path, kind: Any) -> Any:
    """A file as the type it should have, or None where it is missing."""
    if not path.is_file():
        return None
    try:
        return TypeAdapter(kind).validate_python(read_json(path), strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(
            f"{path}: {place}: {first['msg']}. Was it written by another version, or edited? "
            "Run the command again to write it anew"
        ) from error


def _read_index(path: Path) -> tuple[FigureRecord, ...]:
    return _read(path, tuple[FigureRecord, ...]) or ()


def _figure_bytes(folder: Path, record: FigureRecord) -> bytes:
    if Path(record.file).name != record.file:
        raise ValueError(f"{folder / FIGURE_INDEX} points outside its folder: {record.file!r}")
    path = folder / record.file
    if not path.is_file():
        raise ValueError(
            f"{path} is missing although {FIGURE_INDEX} lists it; run the report again"
        )
    return path.read_bytes()
