"""Optional parts of the click network as ONNX operators: semantic ids, and the gate by frequency.

Shape letters: N candidates, D size of the given vectors, E width of an id embedding, K centroids a
level, L levels, V table rows.
"""

from __future__ import annotations

import numpy as np
import torch
from onnx import TensorProto

from ranking.frequency_gate import FrequencyGate
from ranking.graph import Graph, as_float
from ranking.semantic_ids import ResidualCodebook


def semantic_ids(graph: Graph, product: str, present: str, codebook: ResidualCodebook) -> str:
    """Return the name of the semantic ids of the candidates' vectors, int32 (N, L).

    They are worked out from the vector, so that a product that training never saw has them too.
    In float64, as ``ResidualCodebook.codes``: both then find the same nearest centroid.

    Args:
        graph: Added to.
        product: The vectors, float32 (N, D).
        present: 1 where there is one, float32 (N, 1).
        codebook: The centroids.
    """
    left = graph.add("Cast", product, to=TensorProto.DOUBLE)
    known = graph.add("Cast", present, to=TensorProto.INT64)
    one = graph.weight("one", np.array([1], np.int64))
    flat = graph.weight("shape", np.array([-1], np.int64))
    codes = codebook.centroid_LKD.shape[1]
    prefix = ""
    levels = []
    for centroid_KD in codebook.centroid_LKD.astype(np.float64):
        dot = graph.add("MatMul", left, graph.weight("centroids", -2 * centroid_KD.T))
        squares = graph.weight("squares", (centroid_KD**2).sum(1)[None, :])
        code = graph.add("ArgMin", graph.add("Add", dot, squares), axis=1, keepdims=1)
        rows = graph.add("Reshape", code, flat)
        nearest = graph.add("Gather", graph.weight("centroids", centroid_KD), rows, axis=0)
        left = graph.add("Sub", left, nearest)
        if prefix:
            count = graph.weight("codes", np.array([codes], np.int64))
            code = graph.add("Add", graph.add("Mul", prefix, count), code)
        prefix = code
        levels.append(graph.add("Mul", graph.add("Add", prefix, one), known))
    side_by_side = graph.add("Concat", *levels, axis=1) if len(levels) > 1 else levels[0]
    return graph.add("Cast", side_by_side, to=TensorProto.INT32)


def gated(graph: Graph, ids: str, embedded: str, product: str, gate: FrequencyGate) -> str:
    """Return the name of ``FrequencyGate.forward``, float32 (N, E).

    Args:
        graph: Added to.
        ids: Of the gated feature, int32 (N, 1) or (1, 1).
        embedded: Their embeddings, as many rows of E.
        product: The vectors of the candidates, (N, D).
        gate: A fitted gate.
    """
    with torch.no_grad():
        # What the gate says depends on the id alone, so it is a table of its own.
        share_VE = gate.share_of_id(torch.arange(len(gate.z_V))).numpy()
    shape = graph.weight("shape", np.array([-1, share_VE.shape[1]], np.int64))
    found = graph.add("Gather", graph.weight("gate", as_float(share_VE)), ids, axis=0)
    share = graph.add("Reshape", found, shape)
    rest = graph.add("Sub", graph.weight("one", np.array([1], np.float32)), share)
    weight_DE = as_float(gate.content.weight.detach().numpy().T)
    content = graph.add("MatMul", product, graph.weight("content", weight_DE))
    return graph.add("Add", graph.add("Mul", share, embedded), graph.add("Mul", rest, content))
