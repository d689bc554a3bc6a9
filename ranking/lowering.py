"""Click models as ONNX graphs made for serving: no loops, the request's side worked out once.

What torch's own exporter writes for torchrec's tables is a ``Loop`` a feature, a hundred times
slower than one ``Gather`` from all tables laid end to end; and it cannot say that an input has
either one row or as many as another. So the graph is written operator by operator:

- every linear layer is a chain of ``Gemm`` over the parts of its input, the request's part first,
  whose one row the next ``Gemm`` takes as its bias: nothing is repeated for each candidate;
- the crosses ``x <- x0 * (W x + b) + x`` are ``x0 * G`` with ``G <- G + W x + b`` and G = 1 at the
  start, one pass over the columns a layer instead of two;
- Platt's slope and intercept, or a temperature, are folded into the last layer's weights.

Shape letters: N candidates, R rows of the request's side (1 or N), F sparse features, D size of
the given vectors, E width of an id embedding, K width of the projected vectors, V table rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor, nn

from ranking.baselines import LogisticRegression
from ranking.bundle import OUTPUT_NAME
from ranking.calibration import Calibrator, Isotonic, Platt, Temperature
from ranking.contract import InputSignature
from ranking.feeds import FeatureSplit
from ranking.frequency_gate import FrequencyGate
from ranking.fused_tables import FusedTables
from ranking.graph import Graph, Part, Parts, as_float, side_by_side, width_of
from ranking.layers import CrossNetwork
from ranking.lowered_parts import gated, semantic_ids
from ranking.model import ClickNetwork
from ranking.quantise import ByteTable
from ranking.semantic_ids import ResidualCodebook
from ranking.vector_features import VectorFeatures

_SMALLEST_NORM = 1e-12
"""As ``torch.nn.functional.normalize``: a zero vector stays zero."""


def write_network_(
    network: ClickNetwork,
    signature: InputSignature,
    path: Path,
    *,
    calibrator: Calibrator | None = None,
    int8_tables: bool = False,
    codebook: ResidualCodebook | None = None,
) -> None:
    """Write a click network as ``model.onnx``; ``ranking.feeds`` says what it takes.

    A tower for the position leaves its number of "unknown" alone, and of a network that learned
    purchases too the clicks are written.

    Args:
        network: A fitted network.
        signature: The features and vectors it was fitted with.
        path: Of the file.
        calibrator: Applied inside the graph.
        int8_tables: Write the id tables in one byte a value; their rows should be rounded so.
        codebook: What makes the network's semantic ids, where it has any.

    Raises:
        ValueError: If the network attends to the history, or the calibrator has no form as a graph.
    """
    if network.attention is not None:
        raise ValueError(
            "a network with attention over the history cannot be exported: a bundle is fed the "
            "mean of the history's vectors, not each of them. Export a variant without attention"
        )
    graph = Graph()
    split = FeatureSplit.of(signature)
    tables = network.production.tables
    columns = _Columns(graph, split)
    vectors = _Vectors(graph, signature.vectors_dim) if signature.vectors_dim is not None else None
    parts: Parts = []
    if isinstance(tables, FusedTables):
        first_F = np.cumsum([0, *tables.sizes[:-1]])
        table = _Table(graph, _array(tables.end_to_end()), first_F, int8=int8_tables)
        gate = network.production.gate
        own = None if gate is None else network.production.gated
        parts += columns.embedded(table, apart=own)
        if gate is not None:
            assert vectors is not None
            parts.append(columns.gated(table, network.production.gated, vectors.product, gate))
        if codebook is not None:
            assert vectors is not None
            parts.append(_semantic(graph, table, vectors, codebook, len(signature.sparse_names)))
    parts += columns.dense(width_of(parts))
    plain: Parts = []
    tower: Parts = []
    if network.vectors is not None:
        assert vectors is not None
        crossed = vectors.crossed(network.vectors)
        plain = vectors.plain(network.vectors)
        if network.tower is None:
            parts = side_by_side(parts, crossed, plain)
            plain = []
        else:
            tower = _mlp(graph, graph.merged(side_by_side(crossed, plain)), network.tower)
            plain = graph.merged(plain)
    parts = graph.merged(parts)
    production = side_by_side(
        _cross(graph, parts, network.production.cross), _mlp(graph, parts, network.production.mlp)
    )
    joint = side_by_side(production, tower, plain)
    hidden = _mlp(graph, joint, network.head) if len(network.head) else []
    slope, intercept = _affine(calibrator)
    weight_1W, bias_1 = _array(network.logit.weight), _array(network.logit.bias)
    if network.position is not None:
        bias_1 = bias_1 + _array(network.position.logit.weight)[0]
    logit = graph.linear(side_by_side(joint, hidden), weight_1W * slope, bias_1 * slope + intercept)
    _finish_(graph, logit.tensor, calibrator, path)


def write_logistic_(
    model: LogisticRegression, path: Path, *, calibrator: Calibrator | None = None
) -> None:
    """Write a fitted logistic regression as ``model.onnx``, the scales folded into its weights."""
    graph = Graph()
    signature = model.signature_
    columns = _Columns(graph, FeatureSplit.of(signature))
    slope, intercept = _affine(calibrator)
    ids = int(model.first_weight_F[-1])
    dense_W = model.weight_W[ids:] / model.deviation_C
    parts: Parts = []
    ones: list[float] = []
    if signature.sparse_names:
        first_F = np.asarray(model.first_weight_F[:-1])
        parts += columns.embedded(_Table(graph, model.weight_W[:ids, None], first_F, int8=False))
        ones = [1.0] * len(signature.sparse_names)
    parts += columns.dense(width_of(parts))
    if signature.vectors_dim is not None:
        vectors = _Vectors(graph, signature.vectors_dim)
        parts = side_by_side(parts, vectors.cosines(np.zeros(2), np.ones(2)), vectors.presence())
    weight_1W = np.concatenate([ones, dense_W])[None, :] * slope
    bias = (model.intercept_ - float(dense_W @ model.mean_C)) * slope + intercept
    logit = graph.linear(graph.merged(parts), weight_1W, np.array([bias]))
    _finish_(graph, logit.tensor, calibrator, path)


class _Table:
    """All id tables end to end, gathered from by the number of the row."""

    def __init__(
        self, graph: Graph, table_VE: NDArray, first_F: NDArray[np.integer], *, int8: bool
    ) -> None:
        self.graph, self.width = graph, table_VE.shape[1]
        self.first_F = first_F
        self.scales = None
        table_VE = as_float(table_VE)
        if int8:
            byte_table = ByteTable.of(table_VE)
            self.rows = graph.weight("tables_int8", byte_table.byte_VE)
            self.scales = graph.weight("tables_scale", byte_table.scale_V1)
        else:
            self.rows = graph.weight("tables", table_VE)

    def columns(self, features: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the features' embeddings stand in the first layer's input."""
        return (features[:, None] * self.width + np.arange(self.width)).ravel()

    def gather(self, ids: str, features: NDArray[np.int64]) -> str:
        """Return the features' rows side by side, shape (N or R, F * E)."""
        graph = self.graph
        first_F = self.first_F[features].astype(np.int32)
        row = graph.add("Add", ids, graph.weight("first_row", first_F))
        found = graph.add("Gather", self.rows, row, axis=0)
        if self.scales is not None:
            scale = graph.add("Gather", self.scales, row, axis=0)
            found = graph.add("Mul", graph.add("Cast", found, to=TensorProto.FLOAT), scale)
        shape = np.array([-1, len(features) * self.width], np.int64)
        return graph.add("Reshape", found, graph.weight("shape", shape))


class _Columns:
    """The sparse and dense inputs, as parts of the first layer's input."""

    def __init__(self, graph: Graph, split: FeatureSplit) -> None:
        self.graph, self.split = graph, split

    def embedded(self, table: _Table, *, apart: int | None = None) -> Parts:
        """The features' embeddings, but those of one that is dealt with apart."""
        sides = ((self.split.request_sparse, True), (self.split.candidate_sparse, False))
        parts = []
        for features, of_request in sides:
            if not len(features):
                continue
            name, rows = ("request_sparse", "R") if of_request else ("candidate_sparse", "N")
            ids = self.graph.input(name, np.int32, [rows, len(features)])
            place_of = {int(feature): place for place, feature in enumerate(features)}
            if apart in place_of:
                self.apart = self._columns_of(ids, [place_of.pop(apart)])
                features = np.array([*place_of], np.int64)
                if not len(features):
                    continue
                ids = self._columns_of(ids, [*place_of.values()])
            parts.append(Part(table.gather(ids, features), table.columns(features), of_request))
        return parts

    def gated(self, table: _Table, feature: int, product: str, gate: FrequencyGate) -> Part:
        """The embedding of the feature that ``embedded`` left apart, mixed with the product's."""
        features = np.array([feature])
        mixed = gated(self.graph, self.apart, table.gather(self.apart, features), product, gate)
        return Part(mixed, table.columns(features), False)

    def _columns_of(self, ids: str, places: list[int]) -> str:
        return self.graph.add("Gather", ids, self.graph.weight("places", np.array(places)), axis=1)

    def dense(self, first: int) -> Parts:
        sides = ((self.split.request_dense, True), (self.split.candidate_dense, False))
        parts = []
        for columns, of_request in sides:
            if len(columns):
                name, rows = ("request_dense", "R") if of_request else ("candidate_dense", "N")
                tensor = self.graph.input(name, np.float32, [rows, len(columns)])
                parts.append(Part(tensor, first + columns, of_request))
        return parts


class _Vectors:
    """The given vectors as features, as ``ranking.model.VectorFeatures`` makes them."""

    def __init__(self, graph: Graph, dim: int) -> None:
        self.graph = graph
        self.product = graph.input("product", np.float32, ["N", dim])
        self.product_present = graph.input("product_present", np.float32, ["N", 1])
        self.query = graph.input("query", np.float32, ["R", dim])
        self.history = graph.input("history", np.float32, ["R", dim])
        self.request_present = graph.input("request_present", np.float32, ["R", 2])

    def crossed(self, features: VectorFeatures) -> Parts:
        """Projected vectors and their products, in the order of ``VectorFeatures.forward``."""
        weight_KD = _array(features.project.weight)
        product, query = (self._unit_variance(t, weight_KD) for t in (self.product, self.query))
        tensors = [(product, False), (query, True), (self.graph.add("Mul", product, query), False)]
        if features.derived:
            history = self._unit_variance(self.history, weight_KD)
            cross = self.graph.add("Mul", product, history)
            tensors += [(history, True), (cross, False)]
        width = len(weight_KD)
        return [Part(t, np.arange(width) + n * width, r) for n, (t, r) in enumerate(tensors)]

    def plain(self, features: VectorFeatures) -> Parts:
        """Scaled cosines and masks, where the network has them."""
        parts: Parts = []
        if features.derived:
            mean_2, deviation_2 = features.cosine_mean_2, features.cosine_deviation_2
            parts = self.cosines(_array(mean_2), _array(deviation_2))
        return side_by_side(parts, self.presence() if features.presence else [])

    def cosines(self, mean_2: NDArray, deviation_2: NDArray) -> Parts:
        """Scaled cos(p, q) and cos(p, h), 0 where either is absent."""
        graph = self.graph
        length = self._length(self.product)
        cosines = []
        for other in (self.query, self.history):
            unit = graph.add("Div", other, self._length(other))
            products = graph.add("Mul", self.product, unit)
            dot = graph.add("ReduceSum", products, self._last_axis(), keepdims=1)
            cosines.append(graph.add("Div", dot, length))
        both = graph.add("Concat", *cosines, axis=1)
        centred = graph.add("Sub", both, graph.weight("cosine_mean", as_float(mean_2)))
        scaled = graph.add("Div", centred, graph.weight("cosine_deviation", as_float(deviation_2)))
        present = graph.add("Mul", self.product_present, self.request_present)
        return [Part(graph.add("Mul", scaled, present), np.arange(2), False)]

    def presence(self) -> Parts:
        """The masks of the product, the query and the history."""
        return [
            Part(self.product_present, np.array([0]), False),
            Part(self.request_present, np.array([1, 2]), True),
        ]

    def _unit_variance(self, tensor: str, weight_KD: NDArray) -> str:
        graph = self.graph
        projected = graph.add("Gemm", tensor, graph.weight("project", as_float(weight_KD.T)))
        root = graph.weight("root_width", np.array([len(weight_KD) ** -0.5], np.float32))
        return graph.add("Div", projected, graph.add("Mul", self._length(projected), root))

    def _length(self, tensor: str) -> str:
        length = self.graph.add("ReduceL2", tensor, self._last_axis(), keepdims=1)
        return self.graph.add(
            "Max", length, self.graph.weight("tiny", np.array([_SMALLEST_NORM], np.float32))
        )

    def _last_axis(self) -> str:
        return self.graph.weight("last_axis", np.array([1], np.int64))


def _semantic(
    graph: Graph, table: _Table, vectors: _Vectors, codebook: ResidualCodebook, first: int
) -> Part:
    """The embeddings of the semantic ids, which follow the model's own ``first`` features."""
    features = first + np.arange(len(codebook.centroid_LKD))
    ids = semantic_ids(graph, vectors.product, vectors.product_present, codebook)
    return Part(table.gather(ids, features), table.columns(features), False)


def _mlp(graph: Graph, parts: Parts, layers: nn.Sequential) -> Parts:
    """The hidden layers of ``ranking.model.mlp_of``; the input itself where there are none."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            out = graph.linear(parts, _array(layer.weight), _array(layer.bias))
            parts = [Part(graph.add("Relu", out.tensor), out.columns, out.of_request)]
    return parts


def _cross(graph: Graph, start: Parts, cross: CrossNetwork) -> Parts:
    """The crosses, as products of the input with gates that every layer adds to."""
    x, gates = start, [""] * len(start)
    for layer in cross.layers:
        if isinstance(layer, nn.Linear):
            inner, expand = x, layer
        else:
            assert isinstance(layer, nn.Sequential)
            reduce, expand = layer
            assert isinstance(reduce, nn.Linear)
            assert isinstance(expand, nn.Linear)
            inner = [graph.linear(x, _array(reduce.weight), None)]
        weight_WI, bias_W = _array(expand.weight), _array(expand.bias)
        for number, part in enumerate(start):
            own_WI, own_bias_W = weight_WI[part.columns], bias_W[part.columns]
            if gate := gates[number]:
                bias = graph.weight("bias", as_float(own_bias_W)[None, :])
                gates[number] = graph.linear(inner, own_WI, graph.add("Add", gate, bias)).tensor
            else:
                gates[number] = graph.linear(inner, own_WI, own_bias_W + 1).tensor
        of_request = all(part.of_request for part in inner)
        x = [
            Part(graph.add("Mul", part.tensor, gate), part.columns, of_request)
            for part, gate in zip(start, gates, strict=True)
        ]
    return x


def _finish_(graph: Graph, logit: str, calibrator: Calibrator | None, path: Path) -> None:
    if isinstance(calibrator, Isotonic):
        p_click = _interpolated(graph, logit, calibrator)
    elif not (calibrator is None or isinstance(calibrator, (Platt, Temperature))):
        raise ValueError(
            f"a {type(calibrator).__name__} cannot go inside a graph; Platt, Isotonic and "
            "Temperature can"
        )
    else:
        p_click = graph.add("Sigmoid", logit)
    flat = graph.add("Reshape", p_click, graph.weight("shape", np.array([-1], np.int64)))
    graph.write_(path, flat, OUTPUT_NAME, "N")


def _interpolated(graph: Graph, logit: str, isotonic: Isotonic) -> str:
    """The isotonic function of sigmoid(logit), in float64, because its steps are steep."""
    x_K, y_K = isotonic.predicted_K, isotonic.calibrated_K
    slope_K = np.append(np.diff(y_K) / np.diff(x_K), 0.0)
    p = graph.add("Sigmoid", graph.add("Cast", logit, to=TensorProto.DOUBLE))
    low, high = graph.weight("low", x_K[:1]), graph.weight("high", x_K[-1:])
    held = graph.add("Min", graph.add("Max", p, low), high)
    reached = graph.add("GreaterOrEqual", held, graph.weight("knots", x_K))
    axis = graph.weight("last_axis", np.array([1], np.int64))
    count = graph.add("ReduceSum", graph.add("Cast", reached, to=TensorProto.INT32), axis)
    piece = graph.add("Sub", count, graph.weight("one", np.array([1], np.int32)))
    from_x, from_y, slope = (
        graph.add("Gather", graph.weight("piece", values_K), piece, axis=0)
        for values_K in (x_K, y_K, slope_K)
    )
    rise = graph.add("Mul", graph.add("Sub", held, from_x), slope)
    return graph.add("Cast", graph.add("Add", from_y, rise), to=TensorProto.FLOAT)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().numpy()


def _affine(calibrator: Calibrator | None) -> tuple[float, float]:
    """What is done to the logit itself: slope and intercept."""
    if isinstance(calibrator, Platt):
        return calibrator.slope, calibrator.intercept
    if isinstance(calibrator, Temperature):
        return 1 / calibrator.temperature, 0.0
    return 1.0, 0.0
