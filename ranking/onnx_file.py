"""What an ONNX file holds, read without the onnx package and before onnxruntime sees it.

A bundle's reader has onnxruntime alone, which tells little about a file until it has opened it.
The protobuf is walked field by field: operators are counted, and every weight must have as many
bytes as its shape says, inside the file or in a listed file beside it.

Source: the field numbers of onnx.proto (onnx 1.23) and protobuf's wire format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_SPARSE = 1, 5, 11, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_VALUE_NAME, _ENTRY_KEY, _ENTRY_VALUE = 1, 1, 2

# float, uint8, int8, int32, int64, bool, double: what lowered graphs are made of.
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 11: 8}
_DEEPEST = 16


@dataclass
class OnnxContent:
    """What was found in a file."""

    operators: Counter[str] = field(default_factory=Counter)
    """How often each operator occurs, those of subgraphs included."""
    inputs: list[str] = field(default_factory=list)
    external: set[str] = field(default_factory=set)
    """The files beside it that hold weights."""


def read_onnx(content: bytes, beside: Mapping[str, int]) -> OnnxContent:
    """Return what an ONNX file holds.

    Args:
        content: The file.
        beside: Size in bytes of every file that may hold weights, by name.

    Raises:
        ValueError: If it is no ONNX file, a weight's bytes are not those of its shape, its data
            lies in another file or beyond its end, or it brings functions of its own.
    """
    found = OnnxContent()
    graphs = 0
    for number, value in _fields(memoryview(content)):
        if number == _MODEL_GRAPH:
            graphs += 1
            _read_graph(_bytes(value), beside, found, depth=0)
        elif number == _MODEL_FUNCTIONS:
            raise ValueError("the ONNX file defines functions, which no exported model does")
    if graphs != 1:
        raise ValueError(f"the file holds {graphs} ONNX graphs, must be one; is it an ONNX model?")
    return found


def _read_graph(
    graph: memoryview, beside: Mapping[str, int], found: OnnxContent, depth: int
) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"the ONNX graph nests deeper than {_DEEPEST} levels")
    for number, value in _fields(graph):
        if number == _GRAPH_NODE:
            _read_node(_bytes(value), beside, found, depth)
        elif number == _GRAPH_INITIALIZER:
            _read_tensor(_bytes(value), beside, found)
        elif number == _GRAPH_SPARSE:
            raise ValueError("the ONNX file holds sparse weights, which no exported model does")
        elif number == _GRAPH_INPUT and depth == 0:
            found.inputs += [_text(v) for n, v in _fields(_bytes(value)) if n == _VALUE_NAME]


def _read_node(node: memoryview, beside: Mapping[str, int], found: OnnxContent, depth: int) -> None:
    operator, domain = "", ""
    for number, value in _fields(node):
        if number == _NODE_OPERATOR:
            operator = _text(value)
        elif number == _NODE_DOMAIN:
            domain = _text(value)
        elif number == _NODE_ATTRIBUTE:
            for kind, inner in _fields(_bytes(value)):
                if kind in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                    _read_graph(_bytes(inner), beside, found, depth + 1)
                elif kind in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                    _read_tensor(_bytes(inner), beside, found)
    found.operators[f"{domain}.{operator}" if domain else operator] += 1


def _read_tensor(tensor: memoryview, beside: Mapping[str, int], found: OnnxContent) -> None:
    dims: list[int] = []
    kind, name, held, external = 0, "", 0, False
    where: dict[str, str] = {}
    for number, value in _fields(tensor):
        if number == _TENSOR_DIMS:
            dims += [value] if isinstance(value, int) else list(_varints(value))
        elif number == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif number == _TENSOR_NAME:
            name = _text(value)
        elif number == _TENSOR_RAW:
            held = len(_bytes(value))
        elif number == _TENSOR_EXTERNAL:
            entry = dict(_fields(_bytes(value)))
            where[_text(entry.get(_ENTRY_KEY, b""))] = _text(entry.get(_ENTRY_VALUE, b""))
        elif number == _TENSOR_LOCATION:
            external = value == 1
    if kind not in _ITEM_BYTES or any(size < 0 for size in dims):
        raise ValueError(f"weight {name!r} has type {kind} and shape {dims}, which is not read")
    needed = prod(dims) * _ITEM_BYTES[kind]
    if external:
        held = _external_bytes(name, where, beside)
        found.external.add(where["location"])
    if held != needed:
        raise ValueError(
            f"weight {name!r} of shape {dims} has {held} bytes, but its shape says {needed}"
        )


def _external_bytes(name: str, where: dict[str, str], beside: Mapping[str, int]) -> int:
    location = where.get("location", "")
    if location not in beside:
        raise ValueError(f"weight {name!r} lies in {location!r}, no listed file of the bundle")
    numbers = where.get("offset", "0"), where.get("length", "")
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise ValueError(f"weight {name!r} has offset {numbers[0]!r} and length {numbers[1]!r}")
    offset, length = map(int, numbers)
    if offset + length > beside[location]:
        raise ValueError(
            f"weight {name!r} ends at byte {offset + length} of {location!r}, which has "
            f"{beside[location]}"
        )
    return length


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of one protobuf message: number, and an integer or the bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(message, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"the ONNX file is damaged: wire type {wire}")
        if size > len(message) - place:
            raise ValueError("the ONNX file is damaged: a field goes beyond its end")
        yield number, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            # Ten bytes hold a negative number in two's complement.
            return value - (1 << 64) if value >= 1 << 63 else value, place
    raise ValueError("the ONNX file is damaged: a number does not end")


def _varints(packed: memoryview) -> Iterator[int]:
    place = 0
    while place < len(packed):
        value, place = _varint(packed, place)
        yield value


def _bytes(value: int | memoryview | bytes) -> memoryview:
    if isinstance(value, int):
        raise ValueError("the ONNX file is damaged: a number stands where a message belongs")
    return memoryview(value)


def _text(value: int | memoryview | bytes) -> str:
    try:
        return bytes(_bytes(value)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the ONNX file is damaged: a name is no text ({error})") from error
