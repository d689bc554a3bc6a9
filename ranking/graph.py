"""An ONNX graph under construction: operators added one by one, weights as initializers.

Shape letters: N candidates, R rows of the request's side (1 or N), O outputs and I inputs of a
linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 20, 10
EXTERNAL_BYTES = 1 << 20
"""A weight from this size on lies beside the graph, where a reader can map it into memory."""

_ONNX_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int32): TensorProto.INT32,
}


@dataclass(frozen=True)
class Part:
    """Some columns of a layer's input, as one tensor."""

    tensor: str
    columns: NDArray[np.int64]
    """Which columns of the whole input these are."""
    of_request: bool
    """Whether it has R rows instead of N."""


Parts = list[Part]


class Graph:
    """Collects inputs, weights and operators, each under a name of its own."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._weights: dict[str, NDArray] = {}

    def input(self, name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> str:
        """Declare an input; a text in ``shape`` names a dimension of any size."""
        kind = _ONNX_TYPES[np.dtype(dtype)]
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def weight(self, name: str, values: NDArray) -> str:
        """Add an initializer and return its name, made distinct by a number."""
        name = f"{name}_{len(self._weights)}"
        self._weights[name] = np.ascontiguousarray(values)
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator with one output and return the output's name."""
        name = f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def linear(self, parts: Parts, weight_OI: NDArray, bias: NDArray | str | None) -> Part:
        """Add ``W x + b`` as one Gemm a part, each taking the one before as its bias.

        The request's parts come first, so that their one row is spread over the candidates by
        the first Gemm that has N rows.

        Args:
            parts: The input.
            weight_OI: Shape (O, I).
            bias: Shape (O,), or the name of a tensor of as many rows as the output, or of one.
        """
        if isinstance(bias, np.ndarray):
            bias = self.weight("bias", as_float(bias)[None, :])
        result = bias
        for part in sorted(parts, key=lambda part: not part.of_request):
            weight = self.weight("weight", as_float(weight_OI[:, part.columns].T))
            result = self.add("Gemm", part.tensor, weight, *([result] if result else []))
        assert result is not None
        return Part(result, np.arange(len(weight_OI)), all(part.of_request for part in parts))

    def merged(self, parts: Parts) -> Parts:
        """Return the same columns as at most two parts, the request's and the candidate's."""
        merged = []
        for of_request in (True, False):
            side = [part for part in parts if part.of_request == of_request]
            if len(side) > 1:
                joined = self.add("Concat", *(part.tensor for part in side), axis=1)
                columns = np.concatenate([part.columns for part in side])
                side = [Part(joined, columns, of_request)]
            merged += side
        return merged

    def write_(self, path: Path, output: str, output_name: str, dimension: str) -> None:
        """Write the graph; large weights go, one after another, to a ``.bin`` file beside it.

        Args:
            path: Of the ``.onnx`` file.
            output: What the graph returns, a vector.
            output_name: What readers call it.
            dimension: Name of its dimension.
        """
        self._nodes.append(helper.make_node("Identity", [output], [output_name]))
        result = helper.make_tensor_value_info(output_name, TensorProto.FLOAT, [dimension])
        tensors = self._initializers(path.with_suffix(".bin"))
        graph = helper.make_graph(self._nodes, "click", self._inputs, [result], tensors)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
        path.write_bytes(model.SerializeToString(deterministic=True))
        # By path, so that the weights beside it are found.
        onnx.checker.check_model(str(path))

    def _initializers(self, beside: Path) -> list[onnx.TensorProto]:
        tensors = []
        for name, values in self._weights.items():
            if values.nbytes < EXTERNAL_BYTES:
                tensors.append(numpy_helper.from_array(values, name))
                continue
            tensor = onnx.TensorProto(
                name=name,
                dims=values.shape,
                data_type=helper.np_dtype_to_tensor_dtype(values.dtype),
                data_location=TensorProto.EXTERNAL,
            )
            offset = beside.stat().st_size if beside.exists() else 0
            where = {"location": beside.name, "offset": offset, "length": values.nbytes}
            for key, value in where.items():
                tensor.external_data.add(key=key, value=str(value))
            with beside.open("ab") as file:
                values.tofile(file)
            tensors.append(tensor)
        return tensors


def side_by_side(*groups: Parts) -> Parts:
    """Return the groups' columns one group after another."""
    placed: Parts = []
    for group in groups:
        first = width_of(placed)
        placed += [Part(part.tensor, part.columns + first, part.of_request) for part in group]
    return placed


def width_of(parts: Parts) -> int:
    """Return how many columns the parts have together."""
    return sum(len(part.columns) for part in parts)


def as_float(values: NDArray) -> NDArray[np.float32]:
    """Return weights in the precision that graphs compute in."""
    return np.asarray(values, np.float32)
