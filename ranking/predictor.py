"""The models of a bundle, loaded: arrays in, calibrated P(click) out.

A network needs onnxruntime, trees need LightGBM, and each is imported only where a bundle has one.

Shape letters: N impressions, M members of an ensemble.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from features.embedding_join import Vectors
from features.examples import Examples
from ranking.bundle import OUTPUT_NAME, Average, Bundle, BundleManifest, Member
from ranking.columns import tree_columns, tree_names
from ranking.contract import check_examples
from ranking.feeds import FeatureSplit, graph_feed

if TYPE_CHECKING:
    from lightgbm import Booster
    from onnxruntime import InferenceSession

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


def open_session(path: Path, *, threads: int = 1) -> InferenceSession:
    """Open a graph in onnxruntime, set up for requests of some hundred candidates.

    Idle threads sleep instead of spinning, so that several processes on one machine do not slow
    each other down.

    Args:
        path: Of the ``.onnx`` file.
        threads: That one run may use.

    Raises:
        ValueError: If onnxruntime does not take the graph.
    """
    # Imported here, because bundles of trees must load where onnxruntime is not installed.
    import onnxruntime
    from onnxruntime.capi import (
        onnxruntime_pybind11_state as refusals,  # pyright: ignore[reportAttributeAccessIssue]
    )

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (
        refusals.Fail,
        refusals.InvalidArgument,
        refusals.InvalidGraph,
        refusals.InvalidProtobuf,
        refusals.NotImplemented,
        refusals.RuntimeException,
    ) as error:
        raise ValueError(f"onnxruntime does not take {path}: {error}") from error


def _network(bundle: Bundle, member: Member, threads: int) -> Predict:
    session = open_session(bundle.path(member.file), threads=threads)
    split = FeatureSplit.of(member.signature_of(bundle.manifest))

    def predict(examples: Examples, vectors: Vectors | None) -> NDArray[np.float32]:
        return np.asarray(session.run([OUTPUT_NAME], graph_feed(split, examples, vectors))[0])

    return predict


def load_trees(bundle: Bundle, member: Member) -> Booster:
    """Load the trees of a member, and refuse them if they expect other columns.

    Raises:
        ValueError: If the text changed since the bundle was opened, or its columns are not those
            of the bundle's features, by name and order; LightGBM itself goes by position alone.
    """
    # Imported here, because bundles of networks must load where LightGBM is not installed.
    import lightgbm

    # A damaged text kills the process, so what is parsed is the very bytes that were hashed.
    text = bundle.read(member.file).decode("utf-8")
    booster = lightgbm.Booster(model_str=text)
    expected = tree_names(member.signature_of(bundle.manifest))
    if booster.feature_name() != expected:
        raise ValueError(
            f"{bundle.path(member.file)} splits on the columns {booster.feature_name()}, but the "
            f"bundle's features are {expected}; were its parts exported by different models?"
        )
    return booster


def _trees(bundle: Bundle, member: Member, threads: int) -> Predict:
    booster = load_trees(bundle, member)

    def predict(examples: Examples, vectors: Vectors | None) -> NDArray[np.float64]:
        columns = tree_columns(examples, vectors)
        return np.asarray(booster.predict(columns, num_threads=threads), np.float64)

    return predict
