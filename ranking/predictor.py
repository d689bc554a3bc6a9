"""The models of a bundle, loaded: arrays in, calibrated P(click) out.

A network needs onnxruntime, trees need LightGBM, and each is imported only where a bundle has one.

Shape letters: N impressions, M members of an ensemble.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
from numpy.typing import NDArray

from features.embedding_join import Vectors, gather_vectors
from features.examples import Examples
from ranking.bundle import OUTPUT_NAME, Average, Bundle, BundleManifest, Member, onnx_inputs
from ranking.contract import check_examples

Predict = Callable[[Examples, Vectors | None], NDArray[np.floating]]
"""Takes N checked impressions and returns their probabilities, shape (N,)."""

# Vectors of this many rows are gathered at once; at 384 dimensions they take 40 MB.
_BATCH = 8192
_SMALLEST = 1e-12


class Predictor:
    """The models of one bundle behind one ``predict``.

    Args:
        manifest: Says which inputs are scored, how members are averaged and what calibrates.
        members: One function a member, in the manifest's order.
    """

    def __init__(self, manifest: BundleManifest, members: list[Predict]) -> None:
        self.manifest = manifest
        self._members = members
        self._calibrate: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None
        if manifest.calibration is not None and not manifest.calibration_inside:
            from ranking.calibration import calibrator_from_dict

            self._calibrate = calibrator_from_dict(manifest.calibration).calibrate

    @classmethod
    def load(cls, bundle: Bundle, *, threads: int = 1) -> Self:
        """Load the model files of a verified bundle.

        Args:
            bundle: What ``open_bundle`` returned.
            threads: Of each member. One is fastest for some hundred candidates.
        """
        return cls(bundle.manifest, [_loaded(bundle, m, threads) for m in bundle.manifest.members])

    def predict(self, examples: Examples, vectors: Vectors | None) -> NDArray[np.float64]:
        """Return P(click) of every row, shape (N,).

        Raises:
            ValueError: If features or vectors are not those the model was trained with, an id
                lies beyond its table, or a dense value is not finite.
        """
        vectors = None if self.manifest.signature.vectors_fingerprint is None else vectors
        self.manifest.signature.check(examples, vectors)
        check_examples(examples, vectors)
        p_click_N = np.empty(len(examples), np.float64)
        for start in range(0, len(examples), _BATCH):
            rows = slice(start, start + _BATCH)
            p_click_N[rows] = self._averaged(examples.take(rows), vectors)
        return p_click_N if self._calibrate is None else self._calibrate(p_click_N)

    def _averaged(self, examples: Examples, vectors: Vectors | None) -> NDArray[np.floating]:
        if len(self._members) == 1:
            return self._members[0](examples, vectors)
        p_MN = np.stack([member(examples, vectors) for member in self._members])
        return average(p_MN, self.manifest.average)


def average(p_MN: NDArray[np.floating], of: Average) -> NDArray[np.float64]:
    """Return the mean of several models' probabilities, or of their logits, shape (N,).

    The mean of logits keeps members' confidence (it is the geometric mean of their odds); the
    mean of probabilities keeps their mean click rate.

    Args:
        p_MN: One row of probabilities a model, shape (M, N).
        of: "logit" or "probability".
    """
    p_MN = np.asarray(p_MN, np.float64)
    if of == "probability":
        return p_MN.mean(axis=0)
    p_MN = np.clip(p_MN, _SMALLEST, 1 - _SMALLEST)
    return 1 / (1 + np.exp(-np.log(p_MN / (1 - p_MN)).mean(axis=0)))


def _loaded(bundle: Bundle, member: Member, threads: int) -> Predict:
    load = _trees if member.kind == "lightgbm" else _network
    predict = load(bundle, member, threads)
    if member.uses_vectors:
        return predict
    return lambda examples, _: predict(examples, None)


def _network(bundle: Bundle, member: Member, threads: int) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    path = bundle.path(member.file)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def predict(examples: Examples, vectors: Vectors | None) -> NDArray[np.float32]:
        rows = None if vectors is None else gather_vectors(vectors, examples)
        inputs = onnx_inputs(examples.sparse_NF, examples.dense_NC, rows)
        return np.asarray(session.run([OUTPUT_NAME], inputs)[0])

    return predict


def _trees(bundle: Bundle, member: Member, threads: int) -> Predict:
    # Imported here, because bundles of networks must load where LightGBM is not installed.
    import lightgbm

    from ranking.columns import tree_columns

    # A damaged text kills the process, so what is parsed is the very bytes that were hashed.
    text = bundle.read(member.file).decode("utf-8")
    booster = lightgbm.Booster(model_str=text)

    def predict(examples: Examples, vectors: Vectors | None) -> NDArray[np.float64]:
        columns = tree_columns(examples, vectors)
        return np.asarray(booster.predict(columns, num_threads=threads), np.float64)

    return predict
