"""The decision rule of an experiment, written down and hashed before its first impression.

Whoever chooses metric, test or stopping time after the figures are in can turn chance into a lift.
The record says all of it beforehand; its SHA-256 goes into the result, and the file is compared
with it once the figures are there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from experiments.records import write_bytes

REGISTRATION = "preregistration.json"

Test = Literal["delta", "cuped", "always_valid"]


class Preregistration(BaseModel):
    """What is decided by which figure, at what level, and when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    control: str
    """The arm that serves today."""
    treatment: str
    """The arm that is proposed."""
    metric: str
    """The one metric that decides."""
    test: Test
    """delta: users' interval at the end. cuped: the same, adjusted by the users' past.
    always_valid: the first look whose always-valid interval excludes zero decides."""
    alpha: float = Field(gt=0, lt=1)
    """Two-sided level."""
    requests: int = Field(ge=1)
    """The experiment stops after so many requests."""
    looks: int = Field(ge=0)
    """Looks that always_valid may stop at; the other tests look once, at the end."""
    salt: str = Field(min_length=1)
    """Names the assignment of users."""
    seed: int
    """Of requests and clicks."""
    calibration_requests: int = Field(ge=0)
    """Requests that the calibration gate is fitted to; 0 leaves the models' scores as they are."""
    minimum_detectable: float | None
    """Lift found in 80% of such experiments, from the pre-period; None where there was none."""
    data: str = ""
    """Fingerprint of the data both arms were trained on."""

    def to_bytes(self) -> bytes:
        """Return the record as JSON, always the same bytes for the same record."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @property
    def sha256(self) -> str:
        """Of ``to_bytes``, as hex digits."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def write_(self, folder: Path) -> None:
        """Write the record into ``folder``.

        Raises:
            ValueError: If another record stands there: a rule cannot change once it is registered.
        """
        file = folder / REGISTRATION
        if file.exists() and file.read_bytes() != self.to_bytes():
            raise ValueError(
                f"{file} registers another decision for this experiment; nothing was simulated. "
                "A new question needs a new experiment: choose another --ab.salt or --out"
            )
        write_bytes(file, self.to_bytes())

    def check(self, folder: Path) -> None:
        """Refuse a record that was changed since it was written.

        Raises:
            ValueError: If the file is gone, or its hash is another.
        """
        file = folder / REGISTRATION
        found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"
        if found != self.sha256:
            raise ValueError(
                f"{file} was registered as {self.sha256} and is now {found}: the decision rule was "
                "changed while the experiment ran, so its result is void"
            )
