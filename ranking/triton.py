"""A bundle's network laid out as a model repository of NVIDIA's Triton Inference Server.

``OUT/NAME/config.pbtxt`` and ``OUT/NAME/1/model.onnx``; with a query encoder also
``OUT/NAME_query_encoder``. Triton runs the graph alone: whoever calls it computes the features
(``FeaturePipeline``, ``ranking.feeds.graph_feed``), one row a candidate in every input, because
Triton joins requests into batches row by row.

Shape letters: N candidates.

Source: Triton's model configuration (model_config.proto) and its ONNX Runtime backend.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ranking.bundle import Bundle, open_bundle
from ranking.checkpoint import published_folder
from ranking.onnx_file import read_onnx
from ranking.predictor import open_session
from ranking.query_encoder import ENCODER_FILE, QUERY_ENCODER

CONFIG_FILE = "config.pbtxt"
_VERSION = "1"
_TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(bool)": "TYPE_BOOL",
}


def write_triton(
    bundle: str | Path,
    out: str | Path,
    *,
    name: str = "adtower",
    max_batch_size: int = 1024,
    max_delay_micros: int = 500,
) -> Path:
    """Write a Triton model repository in a new folder, all of it or nothing.

    Args:
        bundle: What ``adtower export`` wrote, of one network.
        out: A folder that does not exist.
        name: Of the model in Triton.
        max_batch_size: Candidates of one batch, which several requests may share.
        max_delay_micros: How long a request may wait for others to share its batch.

    Raises:
        ValueError: If the bundle cannot be opened, is an ensemble or of trees, is calibrated
            outside its graph, an input has a type or shape that Triton does not batch, or ``out``
            exists.
    """
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"name {name!r} must be of letters, digits, '_' and '-'")
    if max_batch_size < 1 or max_delay_micros < 0:
        raise ValueError(
            f"max_batch_size={max_batch_size} must be at least 1, and "
            f"max_delay_micros={max_delay_micros} not negative"
        )
    opened = open_bundle(bundle)
    models = {name: opened.path(_network_of(opened))}
    if f"{QUERY_ENCODER}/{ENCODER_FILE}" in opened.files:
        models[f"{name}_query_encoder"] = opened.folder / QUERY_ENCODER / ENCODER_FILE
    with published_folder(Path(out)) as folder:
        for model, graph in models.items():
            text = _config_of(model, graph, max_batch_size, max_delay_micros)
            version = folder / model / _VERSION
            version.mkdir(parents=True)
            shutil.copyfile(graph, version / "model.onnx")
            for weights in _beside(graph):
                shutil.copyfile(weights, version / weights.name)
            (folder / model / CONFIG_FILE).write_text(text, encoding="utf-8")
    return Path(out)


def _network_of(bundle: Bundle) -> str:
    manifest = bundle.manifest
    member = manifest.members[0]
    if len(manifest.members) > 1 or member.kind != "onnx":
        kinds = ", ".join(one.kind for one in manifest.members)
        raise ValueError(
            f"the bundle's models are {kinds}; a Triton repository is written for one network, "
            "because Triton would neither average models nor read LightGBM's exactly"
        )
    if manifest.calibration is not None and not manifest.calibration_inside:
        raise ValueError("the bundle is calibrated outside its graph, which Triton would leave out")
    return member.file


def _config_of(name: str, graph: Path, max_batch_size: int, max_delay_micros: int) -> str:
    session = open_session(graph)
    tensors = [
        _tensor_text("input", tensor.name, tensor.type, tensor.shape)
        for tensor in session.get_inputs()
    ] + [
        _tensor_text("output", tensor.name, tensor.type, tensor.shape)
        for tensor in session.get_outputs()
    ]
    return "\n".join(
        [
            f'name: "{name}"',
            'backend: "onnxruntime"',
            f"max_batch_size: {max_batch_size}",
            *tensors,
            f"dynamic_batching {{ max_queue_delay_microseconds: {max_delay_micros} }}",
            "instance_group [ { kind: KIND_CPU count: 1 } ]",
            'parameters { key: "intra_op_thread_count" value: { string_value: "1" } }',
            "",
        ]
    )


def _tensor_text(role: str, name: str, kind: str, shape: list[int | str | None]) -> str:
    """One input or output; the first dimension is the batch, which the text leaves out."""
    sizes = [-1 if isinstance(size, str) or size is None else size for size in shape[1:]]
    if kind not in _TYPES or not shape or isinstance(shape[0], int) or 0 in sizes:
        raise ValueError(
            f"the graph's {role} {name!r} is {kind} of shape {shape}; Triton batches tensors of "
            f"{', '.join(_TYPES)} whose first dimension is free and no other one is 0"
        )
    # Triton demands a dimension beside the batch, so a vector of scores is shown as a column.
    reshape = "" if sizes else " reshape { shape: [ ] }"
    dims = ", ".join(str(size) for size in sizes or [1])
    return f'{role} [ {{ name: "{name}" data_type: {_TYPES[kind]} dims: [ {dims} ]{reshape} }} ]'


def _beside(graph: Path) -> list[Path]:
    """The files that hold a graph's large weights."""
    sizes = {path.name: path.stat().st_size for path in graph.parent.iterdir() if path.is_file()}
    return [graph.parent / name for name in sorted(read_onnx(graph.read_bytes(), sizes).external)]
