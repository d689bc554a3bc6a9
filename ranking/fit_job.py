"""One fit of a click network as a record, and as a folder for the ranks of a torchrun job.

The first rank writes it to storage that all ranks share; the others read rows memory-mapped.

Shape letters: N rows, V table rows, E width of an id embedding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from features.embedding_join import Vectors
from features.examples import Examples
from ranking.checkpoint import verify_folder, write_manifest
from ranking.contract import InputSignature
from ranking.inputs import ExampleTensors, FrozenVectors
from ranking.model import ClickNetwork
from ranking.network import build_network
from ranking.tower_config import TowerConfig

WEIGHTS = "initial.safetensors"


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """Everything that decides a fit but the network's first weights and who carries it out."""

    config: TowerConfig
    signature: InputSignature
    history_rows: int | None
    """Of attention by ids; None where there is none."""
    seed: int
    train: Examples
    outcome_N: NDArray[np.float32]
    """What the network learns of each training row."""
    validation: Examples
    label_N: NDArray[np.float32]
    """Clicks of the validation rows."""
    vectors: Vectors | None
    column_wise: tuple[str, ...] = ()
    """Features whose tables are split by columns."""

    def write_(self, folder: Path, network: ClickNetwork) -> None:
        """Write the job with a network's initial weights into a new folder."""
        folder = Path(folder)
        folder.mkdir(parents=True)
        records: dict[str, Any] = {
            "config": self.config.model_dump(mode="json"),
            "signature": self.signature.to_json(),
            "history_rows": self.history_rows,
            "seed": self.seed,
            "column_wise": list(self.column_wise),
        }
        for part, examples in (("train", self.train), ("validation", self.validation)):
            records[part] = _write_arrays_(folder, part, examples)
        if self.vectors is not None:
            records["vectors"] = _write_arrays_(folder, "vectors", self.vectors)
        np.save(folder / "outcome.npy", self.outcome_N)
        np.save(folder / "label.npy", self.label_N)
        state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
        save_file(state, folder / WEIGHTS)
        (folder / "job.json").write_text(json.dumps(records), encoding="utf-8")
        write_manifest(folder)

    @classmethod
    def read(cls, folder: Path) -> FitJob:
        """Read what ``write_`` wrote, rows memory-mapped.

        Raises:
            ValueError: If a file is missing or changed.
        """
        folder = Path(folder)
        verify_folder(folder)
        records = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        vectors = None
        if "vectors" in records:
            vectors = Vectors(**_read_arrays(folder, "vectors", records["vectors"]))
        return cls(
            config=TowerConfig(**records["config"]),
            signature=InputSignature.from_json(records["signature"]),
            history_rows=records["history_rows"],
            seed=records["seed"],
            column_wise=tuple(records["column_wise"]),
            train=Examples(**_read_arrays(folder, "train", records["train"])),
            validation=Examples(**_read_arrays(folder, "validation", records["validation"])),
            outcome_N=np.load(folder / "outcome.npy", mmap_mode="r"),
            label_N=np.load(folder / "label.npy", mmap_mode="r"),
            vectors=vectors,
        )

    def network(self, folder: Path) -> ClickNetwork:
        """Return the network with the initial weights that lie in the job's folder."""
        with torch.random.fork_rng(devices=[]):
            network, _ = build_network(self.config, self.signature, self.history_rows)
        with safe_open(Path(folder) / WEIGHTS, "pt") as file:
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        if self.vectors is not None and network.attention is not None:
            network.attention.set_vectors(self.vectors)
        return network

    def tensors(self) -> tuple[ExampleTensors, ExampleTensors]:
        """Return training and validation rows as the network reads them."""
        frozen = None if self.vectors is None else FrozenVectors(self.vectors)
        return ExampleTensors(self.train, frozen), ExampleTensors(self.validation, frozen)


def _write_arrays_(folder: Path, part: str, record: Examples | Vectors) -> dict[str, Any]:
    """Save the arrays of a record and return what else it has."""
    plain: dict[str, Any] = {}
    for each in fields(record):
        value = getattr(record, each.name)
        if isinstance(value, np.ndarray):
            np.save(folder / f"{part}.{each.name}.npy", value)
        else:
            plain[each.name] = value
    return plain


def _read_arrays(folder: Path, part: str, plain: Mapping[str, Any]) -> dict[str, Any]:
    record = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
    for path in sorted(folder.glob(f"{part}.*.npy")):
        record[path.name.split(".")[1]] = np.load(path, mmap_mode="r")
    return record
