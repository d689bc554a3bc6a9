"""What an exported bundle is timed against: eager torch, torchrec's own export, LightGBM.

All score the same network (or a LightGBM of 300 trees of 63 leaves) on the same arrays, and must
not be improved: a ratio is only worth something while its denominator stays.

Shape letters: N candidates, F sparse features, E width of an id embedding.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import lightgbm
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from ranking.fused_tables import FusedTables
from ranking.model import ClickNetwork
from ranking.predictor import open_session

TREES, LEAVES = 300, 63

Score = Callable[[list[NDArray]], NDArray[np.floating]]
"""Takes the network's inputs, in its order, and returns N probabilities."""


def eager_scorer(network: ClickNetwork) -> Score:
    """Return the network as torch runs it, without gradients."""

    def score(inputs: list[NDArray]) -> NDArray[np.floating]:
        with torch.no_grad():
            return torch.sigmoid(network(*(torch.from_numpy(array) for array in inputs))).numpy()

    return score


class TorchrecTables(nn.Module):
    """The same tables as torchrec's own collection, fed the way its documentation does."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.names = [f"f{number}" for number in range(len(weights))]
        self.collection = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=f"t{name}",
                    embedding_dim=weight.shape[1],
                    num_embeddings=len(weight),
                    feature_names=[name],
                )
                for name, weight in zip(self.names, weights, strict=True)
            ],
            device=torch.device("cpu"),
        )
        with torch.no_grad():
            for name, weight in zip(self.names, weights, strict=True):
                self.collection.embedding_bags[f"t{name}"].get_parameter("weight").copy_(weight)

    def forward(self, sparse_NF: Tensor) -> Tensor:
        """Return the rows of all features side by side, shape (N, F * E)."""
        bags = KeyedJaggedTensor(
            keys=self.names,
            values=sparse_NF.t().reshape(-1),
            lengths=torch.ones(sparse_NF.shape[0] * sparse_NF.shape[1], dtype=torch.int32),
        )
        by_name = self.collection(bags).to_dict()
        return torch.cat([by_name[name] for name in self.names], dim=1)


class _Served(nn.Module):
    def __init__(self, network: ClickNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.sigmoid(self.network(*inputs))


def torchrec_onnx_scorer(network: ClickNetwork, example: list[NDArray], path: Path) -> Score:
    """Export the network with torchrec's tables as torch's exporter does, and open it.

    Args:
        network: With fused tables.
        example: Inputs of two candidates or more.
        path: Of the ``.onnx`` file to write.
    """
    tables = network.production.tables
    assert isinstance(tables, FusedTables)
    # The fused tables cannot be copied, so they step aside while the rest is.
    network.production.tables = None
    try:
        plain = deepcopy(network)
    finally:
        network.production.tables = tables
    plain.production.tables = TorchrecTables([w.detach() for w in tables.weights()])
    names = [f"input_{number}" for number in range(len(example))]
    batch = torch.export.Dim("batch", min=2)
    with warnings.catch_warnings():
        # The exporter warns of its own internals, which nobody here can mend.
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            program = torch.onnx.export(
                _Served(plain).eval(),
                tuple(torch.from_numpy(array) for array in example),
                dynamo=True,
                dynamic_shapes=(tuple({0: batch} for _ in example),),
                input_names=names,
                output_names=["p_click"],
                opset_version=20,
                verbose=False,
            )
        finally:
            logging.disable(logging.NOTSET)
    assert program is not None
    program.save(path, external_data=True)
    session = open_session(path)
    known = {value.name for value in session.get_inputs()}

    def score(inputs: list[NDArray]) -> NDArray[np.floating]:
        feed = {n: array for n, array in zip(names, inputs, strict=True) if n in known}
        return np.asarray(session.run(["p_click"], feed)[0])

    return score


def train_trees(column_NT: NDArray[np.float32], label_N: NDArray, *, seed: int) -> lightgbm.Booster:
    """Train 300 trees of 63 leaves; ids are numbers, which LightGBM scores fastest.

    Raises:
        ValueError: If the rows were too few for trees of that size.
    """
    parameters = {
        "objective": "binary", "num_leaves": LEAVES, "min_data_in_leaf": 5, "seed": seed,
        "num_threads": 1, "verbosity": -1,
    }  # fmt: skip
    booster = lightgbm.train(parameters, lightgbm.Dataset(column_NT, label_N), TREES)
    leaves = [tree["num_leaves"] for tree in booster.dump_model()["tree_info"]]
    if len(leaves) != TREES or min(leaves) < LEAVES:
        raise ValueError(
            f"{len(leaves)} trees of at least {min(leaves)} leaves grew from {len(label_N)} rows; "
            f"{TREES} of {LEAVES} are needed to compare with"
        )
    return booster
