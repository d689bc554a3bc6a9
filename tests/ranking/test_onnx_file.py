"""ONNX files read without the onnx package agree with it, and damage ends in words."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ranking.graph import Graph
from ranking.onnx_file import read_onnx


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr("ranking.graph.EXTERNAL_BYTES", 64)
    graph = Graph()
    x = graph.input("x", np.float32, ["N", 3])
    ids = graph.input("ids", np.int32, ["N"])
    rows = graph.add("Gather", graph.weight("table", np.ones((50, 2), np.float32)), ids, axis=0)
    both = graph.add("Concat", x, rows, axis=1)
    total = graph.add("ReduceSum", both, graph.weight("axis", np.array([1], np.int64)), keepdims=0)
    graph.write_(tmp_path / "model.onnx", total, "y", "N")
    return tmp_path / "model.onnx"


def test_operators_and_inputs_are_those_onnx_finds(path):
    found = read_onnx(path.read_bytes(), {"model.bin": 400})
    graph = onnx.load(path).graph
    assert found.operators == Counter(node.op_type for node in graph.node)
    assert found.inputs == [value.name for value in graph.input] == ["x", "ids"]
    assert found.external == {"model.bin"}


def test_operators_inside_a_loop_are_found():
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["x"], ["y"])],
        "body",
        [helper.make_tensor_value_info(n, t, []) for n, t in (("i", 7), ("go", 9), ("x", 1))],
        [helper.make_tensor_value_info(n, t, []) for n, t in (("on", 9), ("y", 1))],
    )
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    outside = helper.make_graph([loop], "outside", [], [])
    found = read_onnx(helper.make_model(outside).SerializeToString(), {})
    assert found.operators == Counter({"Loop": 1, "Identity": 1, "Relu": 1})


def test_every_cut_and_most_flips_end_in_words_and_none_in_another_error(path):
    content = path.read_bytes()
    for end in range(len(content) - 1):
        try:
            read_onnx(content[:end], {"model.bin": 400})
        except ValueError:
            continue
        # What is cut at the end of a field reads as a shorter file; the sums catch that.
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 0x80
        try:
            read_onnx(bytes(flipped), {"model.bin": 400})
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (TensorProto(name="w", dims=[3], data_type=1, raw_data=b"1234"), "shape says 12"),
        (TensorProto(name="w", dims=[1 << 40], data_type=1), "has 0 bytes"),
        (TensorProto(name="w", dims=[-1], data_type=1), r"shape \[-1\]"),
        (TensorProto(name="w", dims=[1], data_type=8), "type 8"),
    ],
)
def test_weights_whose_bytes_are_not_their_shapes_are_refused(tensor, message):
    graph = helper.make_graph([], "g", [], [], [tensor])
    with pytest.raises(ValueError, match=message):
        read_onnx(helper.make_model(graph).SerializeToString(), {})


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match="holds 0 ONNX graphs"):
        read_onnx(b"", {})
    with pytest.raises(ValueError, match="damaged"):
        read_onnx(b"\xff" * 40, {})
    nested = helper.make_graph([], "g", [], [])
    for _ in range(20):
        node = helper.make_node("If", ["c"], ["y"], then_branch=nested)
        nested = helper.make_graph([node], "g", [], [])
    with pytest.raises(ValueError, match="nests deeper"):
        read_onnx(helper.make_model(nested).SerializeToString(), {})


def test_a_weight_held_in_the_file_counts_its_own_bytes():
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w")
    graph = helper.make_graph([], "g", [], [], [weight])
    assert read_onnx(helper.make_model(graph).SerializeToString(), {}).external == set()
