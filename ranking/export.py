"""Turn a trained click model into a bundle, and prove it before it is published.

Shape letters: B batch, F sparse features, C dense columns, D size of the given vectors.
"""

from __future__ import annotations

import json
import platform
import warnings
from copy import deepcopy
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from embeddings.store import VectorStore
from features.embedding_join import Vectors, join_vectors
from features.pipeline import FeaturePipeline
from ranking.baselines import LightGBMRanker, LogisticRegression
from ranking.bundle import (
    CERTIFICATE_FILE,
    FEATURES,
    GOLDEN_FILE,
    GOLDEN_SCORE,
    OUTPUT_NAME,
    PRODUCT_VECTORS,
    QUERY_VECTORS,
    BundleManifest,
    Member,
    seal_,
)
from ranking.calibration import Calibrator, Platt
from ranking.certificate import TOLERANCE, certify
from ranking.checkpoint import published_folder
from ranking.contract import ClickModel, InputSignature
from ranking.model import ClickNetwork, FusedTables, GatherTables
from ranking.score import Scorer
from ranking.tower import TowerRanker

_GOLDEN_ROWS = 64
_ONNX_FILE, _TREES_FILE = "model.onnx", "trees.txt"
_OPSET = 20
# protobuf ends at 2 GB; above this the weights lie in a file beside the graph.
_INLINE_BYTES = 1_500_000_000
_LIBRARIES = ("torch", "torchrec", "onnx", "onnxscript", "lightgbm", "polars", "numpy")


def export_bundle(
    model: ClickModel,
    pipeline: FeaturePipeline,
    product_store: VectorStore | None,
    query_store: VectorStore | None,
    sample: pl.DataFrame,
    out: str | Path,
    *,
    calibrator: Calibrator | None = None,
    tolerance: float = TOLERANCE,
) -> Path:
    """Write a bundle, after it has scored as the trained model does; otherwise write nothing.

    Args:
        model: A fitted tower, logistic regression or LightGBM model.
        pipeline: The fitted pipeline that made its training examples.
        product_store, query_store: The vectors it was fitted with; ignored if it uses none.
        sample: Raw impressions to prove the export with, at least one and best some hundreds. The
            first 64 become the golden rows.
        out: A folder that does not exist yet.
        calibrator: Calibrates the bundle's scores; a Platt goes inside ``model.onnx``.
        tolerance: Largest distance between the bundle's and the model's probabilities.

    Returns:
        ``out``.

    Raises:
        ValueError: If the model cannot be exported, the vectors are not those it was fitted with,
            ``out`` exists, or a case of the certificate fails.
    """
    out = Path(out)
    if len(sample) == 0:
        raise ValueError("sample has no rows; the export proves itself on raw impressions")
    signature = _signature_of(model)
    vectors = _joined(model, pipeline, product_store, query_store)
    signature.check(pipeline.transform(sample.head(1)), vectors)
    inside = isinstance(calibrator, Platt) and not isinstance(model, LightGBMRanker)
    manifest = BundleManifest(
        name=model.name,
        members=(_member(model),),
        average="logit",
        signature=signature,
        vectors="none" if vectors is None else "inside",
        calibration=None if calibrator is None else calibrator.to_dict(),
        calibration_inside=inside,
        versions={"python": platform.python_version(), **{n: version(n) for n in _LIBRARIES}},
    )
    with published_folder(out) as folder:
        if isinstance(model, LightGBMRanker):
            (folder / _TREES_FILE).write_text(model.booster_.model_to_string(), encoding="utf-8")
        else:
            platt = calibrator if isinstance(calibrator, Platt) else None
            write_onnx(_network_of(model, platt), signature, folder / _ONNX_FILE)
        pipeline.save_(folder / FEATURES)
        if vectors is not None:
            assert product_store is not None and query_store is not None
            _copy_store(product_store, folder / PRODUCT_VECTORS)
            _copy_store(query_store, folder / QUERY_VECTORS)
        golden = sample.head(_GOLDEN_ROWS)
        expected_N = model.predict_proba(pipeline.transform(golden), vectors)
        if calibrator is not None:
            expected_N = calibrator.calibrate(expected_N)
        golden.with_columns(pl.Series(GOLDEN_SCORE, expected_N)).write_parquet(folder / GOLDEN_FILE)
        # The scorer reads only what a manifest lists, so there is one before the certificate and
        # one that lists the certificate too.
        seal_(folder, manifest)
        certificate = certify(
            Scorer.load(folder),
            model,
            pipeline,
            vectors,
            sample,
            calibrate=None if calibrator is None else calibrator.calibrate,
            tolerance=tolerance,
        )
        text = json.dumps(asdict(certificate), indent=2) + "\n"
        (folder / CERTIFICATE_FILE).write_text(text, encoding="utf-8")
        seal_(folder, manifest)
    return out


class ServedNetwork(nn.Module):
    """A click network as it is served: tables lowered to one Gather, probabilities calibrated."""

    def __init__(self, network: nn.Module, platt: Platt | None) -> None:
        super().__init__()
        self.network = network
        self.slope = 1.0 if platt is None else platt.slope
        self.intercept = 0.0 if platt is None else platt.intercept

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return P(click), shape (B,)."""
        return torch.sigmoid(self.slope * self.network(*inputs) + self.intercept)


class LogisticNetwork(nn.Module):
    """A fitted logistic regression as a network over the same inputs as a tower."""

    first_weight_F: Tensor

    def __init__(self, model: LogisticRegression) -> None:
        super().__init__()
        first_F = model.first_weight_F
        ids = int(first_F[-1])
        weight_W1 = torch.from_numpy(model.weight_W[:ids, None].astype(np.float32))
        self.id_weights = nn.Embedding.from_pretrained(weight_W1, freeze=True)
        self.register_buffer("first_weight_F", torch.from_numpy(first_F[:-1].copy()))
        scaled_C = model.weight_W[ids:] / model.deviation_C
        self.dense = nn.Linear(len(scaled_C), 1)
        with torch.no_grad():
            self.dense.weight.copy_(torch.from_numpy(scaled_C[None, :]))
            self.dense.bias.fill_(model.intercept_ - float(scaled_C @ model.mean_C))

    def forward(self, sparse_BF: Tensor, dense_BC: Tensor, *vectors: Tensor) -> Tensor:
        """Return the logits, shape (B,)."""
        if vectors:
            product_BD, query_BD, history_BD, present_B3 = vectors
            unit_BD = functional.normalize(product_BD)
            cosines = [
                (unit_BD * functional.normalize(other_BD)).sum(1, keepdim=True)
                for other_BD in (query_BD, history_BD)
            ]
            dense_BC = torch.cat([dense_BC, *cosines, present_B3], dim=1)
        logit_B1 = self.id_weights(sparse_BF + self.first_weight_F).sum(dim=1)
        return (logit_B1 + self.dense(dense_BC)).squeeze(1)


def lowered(network: ClickNetwork) -> ClickNetwork:
    """Return a copy whose id tables are one matrix and one Gather.

    Exported as they are, torchrec's tables become a ``Loop`` a feature, a hundred times slower.
    """
    tables = network.production.tables
    # The fused tables cannot be copied, so they step aside while the rest is.
    network.production.tables = None
    try:
        copied = deepcopy(network)
    finally:
        network.production.tables = tables
    if isinstance(tables, FusedTables):
        copied.production.tables = GatherTables(tables.weights())
    return copied


def write_onnx(network: nn.Module, signature: InputSignature, path: Path) -> None:
    """Write a network as ONNX with a batch of any size; inputs as ``ranking.bundle.onnx_inputs``.

    Raises:
        ValueError: If the graph holds a ``Loop``, which would be slow.
    """
    # A batch of more than one, because the exporter takes a one for a constant.
    example = [
        torch.zeros(3, len(signature.sparse_names), dtype=torch.int64),
        torch.zeros(3, len(signature.dense_names)),
    ]
    names = ["sparse", "dense"]
    if signature.vectors_dim is not None:
        example += [torch.ones(3, signature.vectors_dim) for _ in range(3)] + [torch.ones(3, 3)]
        names += ["product", "query", "history", "present"]
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        # The exporter warns of its own internals, which nobody here can mend.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(),
            tuple(example),
            dynamo=True,
            # Once more in a tuple, because forward takes them as one ``*inputs``.
            dynamic_shapes=(tuple({0: batch} for _ in example),),
            input_names=names,
            output_names=[OUTPUT_NAME],
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None
    operators = {node.op_type for node in program.model.graph}
    if "Loop" in operators:
        raise ValueError("the exported graph holds a Loop; were the id tables not lowered?")
    size = sum(p.numel() * p.element_size() for p in network.state_dict().values())
    program.save(path, external_data=size > _INLINE_BYTES)


def _member(model: ClickModel) -> Member:
    trees = isinstance(model, LightGBMRanker)
    return Member(
        name=model.name,
        kind="lightgbm" if trees else "onnx",
        file=_TREES_FILE if trees else _ONNX_FILE,
        uses_vectors=model.uses_vectors,
    )


def _network_of(model: ClickModel, platt: Platt | None) -> nn.Module:
    if isinstance(model, TowerRanker):
        return ServedNetwork(lowered(model.network_), platt)
    assert isinstance(model, LogisticRegression)
    return ServedNetwork(LogisticNetwork(model), platt)


def _signature_of(model: ClickModel) -> InputSignature:
    if not isinstance(model, (TowerRanker, LogisticRegression, LightGBMRanker)):
        raise ValueError(
            f"a {model.name!r} model cannot be exported; a tower, logistic_regression or lightgbm "
            "model can. A base rate is one number and needs no bundle"
        )
    return model.signature_


def _joined(
    model: ClickModel,
    pipeline: FeaturePipeline,
    product_store: VectorStore | None,
    query_store: VectorStore | None,
) -> Vectors | None:
    if not model.uses_vectors:
        return None
    if product_store is None or query_store is None:
        missing = "product_store" if product_store is None else "query_store"
        raise ValueError(f"{missing} is None, but the model was fitted with vectors")
    return join_vectors(product_store, query_store, pipeline.product_ids_, pipeline.query_ids_)


def _copy_store(store: VectorStore, folder: Path) -> None:
    VectorStore.write_(
        folder,
        store.ids,
        np.asarray(store.vectors_VD),
        kind=store.manifest.kind,
        encoder_fingerprint=store.manifest.encoder_fingerprint,
        data_fingerprint=store.manifest.data_fingerprint,
    )
