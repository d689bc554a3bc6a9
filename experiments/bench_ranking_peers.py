"""DCN-v2 in FuxiCTR and in DeepCTR-Torch: a script that runs in each library's own environment.

``python bench_ranking_peers.py LIBRARY DATA TRAIN BATCH EPOCHS LR`` prints one line of JSON. It
imports nothing of adtower. Network, batch, epochs, rate and optimizer (Adam) are given to both;
regularisation is off, which spares them a pass over all tables each step; the rest is their
default. Shuffling is theirs.

Shape letters: N rows, B batch, F sparse features, C dense columns.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, CROSSES, MLP = 16, 3, (400, 400, 400)
"""Of the network: id embeddings, full crosses, hidden layers beside them."""


def fit_fuxictr(
    arrays: dict[str, NDArray], train: int, sizes: list[int], batch: int, epochs: int, lr: float
) -> tuple[float, NDArray[np.float64]]:
    """Fit by ``BaseModel.fit`` over its ``NpzDataLoader``; return seconds and test scores.

    The model is FuxiCTR's own layers put together as its DCN-v2 is ("parallel"), dense columns as
    they are. (The wheel's ready-made DCNv2 is one for histories.)
    """
    import torch
    from fuxictr.features import FeatureMap  # pyright: ignore[reportMissingImports]
    from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader  # pyright: ignore[reportMissingImports]
    from fuxictr.pytorch.layers import CrossNetV2, FeatureEmbedding, MLP_Block  # pyright: ignore[reportMissingImports]
    from fuxictr.pytorch.models import BaseModel  # pyright: ignore[reportMissingImports]

    sparse_NF, dense_NC, label_N = (arrays[name] for name in ("sparse", "dense", "label"))
    ids, numbers = (
        [f"{letter}{n + 1}" for n in range(array.shape[1])]
        for letter, array in (("C", sparse_NF), ("I", dense_NC))
    )
    features = FeatureMap("clicks", ".")
    features.labels = ["clicked"]
    features.features = OrderedDict(
        {name: {"type": "categorical", "source": "", "vocab_size": size}
         for name, size in zip(ids, sizes, strict=True)}
        | {name: {"type": "numeric", "source": "dense"} for name in numbers}
    )  # fmt: skip
    features.num_fields = len(features.features)
    features.default_emb_dim = WIDTH
    features.set_column_index()

    class Dcn(BaseModel):
        def __init__(self, folder: str) -> None:
            super().__init__(
                features, verbose=0, model_root=folder, metrics=["AUC"], reduce_lr_on_plateau=False
            )
            Path(self.model_dir).mkdir(parents=True, exist_ok=True)
            width = len(ids) * WIDTH + len(numbers)
            self.embedding = FeatureEmbedding(features, WIDTH, required_feature_columns=ids)
            self.cross = CrossNetV2(width, CROSSES)
            self.mlp = MLP_Block(input_dim=width, hidden_units=list(MLP))
            self.last = torch.nn.Linear(width + MLP[-1], 1)
            self.compile("adam", "binary_crossentropy", lr)
            self.reset_parameters()
            self.model_to_device()

        def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
            given = self.get_inputs(inputs)
            embedded_BW = self.embedding({name: given[name] for name in ids}, flatten_emb=True)
            dense_BC = torch.stack([given[name] for name in numbers], dim=1).float()
            x_BW = torch.cat([embedded_BW, dense_BC], dim=1)
            joint_BW = torch.cat([self.cross(x_BW), self.mlp(x_BW)], dim=1)
            return {"y_pred": self.output_activation(self.last(joint_BW))}

    with tempfile.TemporaryDirectory() as folder:

        def loader(name: str, rows: slice, *, shuffle: bool) -> Any:
            path = f"{folder}/{name}.npz"
            columns = {n: sparse_NF[rows, i] for i, n in enumerate(ids)}
            columns |= {n: dense_NC[rows, i] for i, n in enumerate(numbers)}
            np.savez(path, clicked=label_N[rows], **columns)  # pyright: ignore[reportArgumentType]
            # num_workers=0: with its default of 1 the rows travel between processes.
            return NpzDataLoader(features, path, batch_size=batch, shuffle=shuffle, num_workers=0)

        rows = loader("train", slice(0, train), shuffle=True)
        # It insists on a validation after each epoch; one small batch costs next to nothing.
        few = loader("validation", slice(0, min(train, 1024)), shuffle=False)
        held_out = loader("test", slice(train, None), shuffle=False)
        model = Dcn(folder)
        began = time.perf_counter()
        model.fit(rows, epochs=epochs, validation_data=few)
        seconds = time.perf_counter() - began
        return seconds, model.predict(held_out)


def fit_deepctr(
    arrays: dict[str, NDArray], train: int, sizes: list[int], batch: int, epochs: int, lr: float
) -> tuple[float, NDArray[np.float64]]:
    """Fit DeepCTR-Torch's ``DCN`` with full matrices; return seconds and test scores."""
    import torch
    from deepctr_torch.inputs import DenseFeat, SparseFeat  # pyright: ignore[reportMissingImports]
    from deepctr_torch.models import DCN  # pyright: ignore[reportMissingImports]

    sparse_NF, dense_NC, label_N = (arrays[name] for name in ("sparse", "dense", "label"))
    columns: list[Any] = [
        SparseFeat(f"C{f + 1}", vocabulary_size=size, embedding_dim=WIDTH)
        for f, size in enumerate(sizes)
    ]
    columns += [DenseFeat(f"I{c + 1}", 1) for c in range(dense_NC.shape[1])]

    def inputs(rows: slice) -> dict[str, NDArray]:
        ids = {f"C{f + 1}": sparse_NF[rows, f] for f in range(sparse_NF.shape[1])}
        return ids | {f"I{c + 1}": dense_NC[rows, c] for c in range(dense_NC.shape[1])}

    model = DCN(
        [], columns, cross_num=CROSSES, cross_parameterization="matrix", dnn_hidden_units=MLP,
        l2_reg_linear=0, l2_reg_embedding=0, l2_reg_cross=0, l2_reg_dnn=0,
    )  # fmt: skip
    model.compile(torch.optim.Adam(model.parameters(), lr=lr), "binary_crossentropy")
    given = inputs(slice(0, train))
    began = time.perf_counter()
    model.fit(given, label_N[:train], batch_size=batch, epochs=epochs, verbose=0)
    seconds = time.perf_counter() - began
    return seconds, model.predict(inputs(slice(train, None)), batch_size=batch)[:, 0]


def main() -> None:
    """Fit the library named first on the command line and print what it took."""
    library, folder, train, batch, epochs, lr = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    names = ("sparse", "dense", "label")
    arrays = {name: np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in names}
    sizes = json.loads((Path(folder) / "sizes.json").read_text())
    fit = {"fuxictr": fit_fuxictr, "deepctr": fit_deepctr}[library]
    seconds, p_click_N = fit(arrays, int(train), sizes, int(batch), int(epochs), float(lr))
    np.save(Path(folder) / f"{library}.scores.npy", p_click_N)
    # getrusage would count what the benchmark held when it started this process.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak_gb = 1024 * int(status["VmHWM"].split()[0]) / 1e9
    print(json.dumps({"fit_seconds": seconds, "peak_memory_gb": peak_gb}))


if __name__ == "__main__":
    main()
