"""What a bundle is: a folder that scores raw impressions without the code that trained it.

========================  ======================================================================
``manifest.json``         format, kind, inputs, vectors, calibration, versions, SHA-256 of the rest
``model.onnx``            the network with tables lowered to one Gather (or ``trees.txt``: LightGBM)
``features/``             the fitted ``FeaturePipeline``, as data
``product_vectors/``      the vector stores the model was fitted with, where it uses vectors
``query_vectors/``
``golden.parquet``        raw impressions and the trained model's score of each
``certificate.json``      how far the bundle's scores were from the trained model's, case by case
========================  ======================================================================

Reading needs numpy, polars and onnxruntime; nothing here imports torch.

Shape letters: N impressions, D size of the given vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from features.embedding_join import VectorRows
from ranking.checkpoint import verify_folder
from ranking.contract import InputSignature

FORMAT = "adtower-bundle-1"

ONNX_FILE = "model.onnx"
TREES_FILE = "trees.txt"
FEATURES = "features"
PRODUCT_VECTORS = "product_vectors"
QUERY_VECTORS = "query_vectors"
GOLDEN_FILE = "golden.parquet"
CERTIFICATE_FILE = "certificate.json"
GOLDEN_SCORE = "expected_p_click"
"""The column of ``golden.parquet`` that holds the trained model's scores."""

OUTPUT_NAME = "p_click"

ModelKind = Literal["onnx", "lightgbm"]


@dataclass(frozen=True, kw_only=True)
class BundleManifest:
    """What ``manifest.json`` says, beside the SHA-256 sums."""

    name: str
    """Name of the model, for reports."""
    kind: ModelKind
    """What scores: onnxruntime or LightGBM."""
    signature: InputSignature
    """The features and vectors it scores."""
    calibration: dict[str, Any] | None
    """What ``ranking.calibration.calibrator_from_dict`` reads; None if there is none."""
    calibration_inside: bool
    """Whether ``model.onnx`` calibrates already, so that the reader must not."""
    versions: dict[str, str]
    """Of the libraries that wrote it."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for ``write_manifest``."""
        return {
            "format": FORMAT,
            "name": self.name,
            "kind": self.kind,
            "signature": self.signature.to_json(),
            "calibration": self.calibration,
            "calibration_inside": self.calibration_inside,
            "versions": self.versions,
        }


def open_bundle(folder: Path) -> BundleManifest:
    """Verify every file of a bundle and return its manifest; nothing is parsed before.

    Raises:
        ValueError: If the folder is no bundle, is of another format, or a file was changed.
    """
    fields = verify_folder(Path(folder))
    if fields.get("format") != FORMAT:
        raise ValueError(
            f"{folder} has format {fields.get('format')!r}, this version reads {FORMAT!r}; "
            "is it a bundle that `adtower export` wrote?"
        )
    return BundleManifest(
        name=fields["name"],
        kind=fields["kind"],
        signature=InputSignature.from_json(fields["signature"]),
        calibration=fields["calibration"],
        calibration_inside=fields["calibration_inside"],
        versions=fields["versions"],
    )


def onnx_inputs(
    sparse_NF: NDArray[np.integer], dense_NC: NDArray[np.floating], rows: VectorRows | None
) -> dict[str, NDArray]:
    """Return what ``model.onnx`` is fed, by input name.

    ``sparse`` int64 (N, F), ``dense`` (N, C) and, where the model uses vectors, ``product``,
    ``query``, ``history`` (N, D) and ``present`` (N, 3), all float32.
    """
    inputs: dict[str, NDArray] = {
        "sparse": np.ascontiguousarray(sparse_NF, np.int64),
        "dense": np.ascontiguousarray(dense_NC, np.float32),
    }
    if rows is not None:
        inputs["product"] = rows.product_ND
        inputs["query"] = rows.query_ND
        inputs["history"] = rows.history_ND
        inputs["present"] = rows.present_N3
    return inputs
