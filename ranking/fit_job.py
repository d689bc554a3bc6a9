"""One fit of a click network as a record, and as a folder for the ranks of a torchrun job.

The first rank writes it to storage that all ranks share; the others read rows memory-mapped. Rows
that are mapped from files already, as those of built features are, are read where they lie.

Shape letters: N rows, V table rows, E width of an id embedding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from embeddings.tensor_file import write_tensors_
from features.array_record import map_record, write_record
from features.embedding_join import Vectors
from features.examples import Examples
from ranking.checkpoint import verify_folder, write_manifest
from ranking.contract import InputSignature
from ranking.fused_tables import FirstRows, id_tables
from ranking.inputs import ExampleTensors, FrozenVectors
from ranking.model import ClickNetwork
from ranking.network import network_to_fill
from ranking.tower_config import TowerConfig
from ranking.warm_start import adagrad_tensors, restore_adagrad_

WEIGHTS = "initial.safetensors"
SUMS = "adagrad.safetensors"


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
    state_folder: Path | None = None
    """Where ranks keep the state of the training for a repeat to go on from; None for nowhere."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What the training is, JSON values; another one's state is refused."""

    def write_(self, folder: Path, network: ClickNetwork) -> None:
        """Write the job with a network's initial weights into a new folder."""
        folder = Path(folder)
        folder.mkdir(parents=True)
        settings: dict[str, Any] = {
            "config": self.config.model_dump(mode="json"),
            "signature": self.signature.to_json(),
            "history_rows": self.history_rows,
            "seed": self.seed,
            "column_wise": list(self.column_wise),
            "state_folder": None if self.state_folder is None else str(self.state_folder),
            "identity": dict(self.identity),
        }
        write_record(self.train, folder / "train")
        write_record(self.validation, folder / "validation")
        if self.vectors is not None:
            write_record(self.vectors, folder / "vectors")
        np.save(folder / "outcome.npy", self.outcome_N)
        np.save(folder / "label.npy", self.label_N)
        write_tensors_(folder / WEIGHTS, network.state_dict())
        write_tensors_(folder / SUMS, adagrad_tensors(network))
        (folder / "job.json").write_text(json.dumps(settings), encoding="utf-8")
        write_manifest(folder)

    @classmethod
    def read(cls, folder: Path) -> FitJob:
        """Read what ``write_`` wrote, rows memory-mapped.

        Raises:
            ValueError: If a file is missing or changed.
        """
        folder = Path(folder)
        verify_folder(folder)
        settings = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        vectors = None
        if (folder / "vectors").is_dir():
            vectors = map_record(Vectors, folder / "vectors")
        kept_at = settings["state_folder"]
        return cls(
            config=TowerConfig(**settings["config"]),
            signature=InputSignature.from_json(settings["signature"]),
            history_rows=settings["history_rows"],
            seed=settings["seed"],
            column_wise=tuple(settings["column_wise"]),
            state_folder=None if kept_at is None else Path(kept_at),
            identity=settings["identity"],
            train=map_record(Examples, folder / "train"),
            validation=map_record(Examples, folder / "validation"),
            outcome_N=np.load(folder / "outcome.npy", mmap_mode="r"),
            label_N=np.load(folder / "label.npy", mmap_mode="r"),
            vectors=vectors,
        )

    def network(self, folder: Path, *, rows: bool = True) -> ClickNetwork:
        """Return the network with the initial weights, and sums, that lie in the job's folder.

        Args:
            folder: Where the job was written to.
            rows: False for id tables without rows, whose shards ``first_rows`` fills.
        """
        folder = Path(folder)
        network = network_to_fill(self.config, self.signature, self.history_rows, rows=rows)
        elsewhere = () if rows else tuple(f"{name}.table." for name, _ in id_tables(network))
        with safe_open(folder / WEIGHTS, "pt") as file:
            held = {
                name: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
                if not name.startswith(elsewhere)
            }
        missing, unexpected = network.load_state_dict(held, strict=False)
        assert not unexpected, unexpected
        assert all(name.startswith(elsewhere) for name in missing), missing
        if rows:
            restore_adagrad_(network, load_file(folder / SUMS))
        if self.vectors is not None and network.attention is not None:
            network.attention.set_vectors(self.vectors)
        return network

    def tensors(self) -> tuple[ExampleTensors, ExampleTensors]:
        """Return training and validation rows as the network reads them."""
        frozen = None if self.vectors is None else FrozenVectors(self.vectors)
        return ExampleTensors(self.train, frozen), ExampleTensors(self.validation, frozen)


@contextmanager
def first_rows(folder: Path, network: ClickNetwork) -> Iterator[Callable[[str], FirstRows]]:
    """Read what id tables begin with out of a job's folder, part by part.

    Yields:
        From the name of a ``FusedTables`` in the network to the reader of its rows.
    """
    folder = Path(folder)
    groups = {name: number for number, (name, _) in enumerate(id_tables(network))}
    with safe_open(folder / WEIGHTS, "pt") as weights, safe_open(folder / SUMS, "pt") as sums:

        def reader(name: str) -> FirstRows:
            def read(table: int, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
                weight = weights.get_slice(f"{name}.table.{table}")[rows, columns]
                return weight, sums.get_slice(f"{groups[name]}.{table}")[rows]

            return read

        yield reader
