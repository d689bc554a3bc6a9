"""Requests and answers as the tensors of the Open Inference Protocol, version 2, in JSON.

``product_id`` holds the candidates; ``user_id``, ``query_id``, ``query`` and ``time`` have one
element; a feature column has one, or one a candidate; ``purchase_product_id`` and
``purchase_time`` go together. All but ``product_id`` and the feature columns may be left out.

Shape letters: K candidates.

Source: the Open Inference Protocol of KServe, "Predict Protocol - Version 2", HTTP/REST.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from features.feature_spec import FeatureNames
from ranking.request import ScoreRequest, parse_problem, request_of
from ranking.request_table import KEYS, ScoredRequest

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES",
]  # fmt: skip

OF_THE_REQUEST = ("request_id", "user_id", "query_id", "query", "time")
"""Tensors of one element."""
PURCHASES = ("purchase_product_id", "purchase_time")
CANDIDATES = "product_id"
OUTPUTS: dict[str, Datatype] = {"p_click": "FP64", "order": "INT64"}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class InputTensor(_Record):
    """One input of an inference request."""

    name: str
    shape: tuple[int, ...]
    datatype: Datatype
    data: list[Any]
    """Flat, in row-major order; null is a missing value."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Read by nobody: the protocol lets clients send them."""


class RequestedOutput(_Record):
    """One output that the client asks for."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferenceRequest(_Record):
    """The body of ``POST /v2/models/NAME/infer``."""

    inputs: list[InputTensor]
    outputs: list[RequestedOutput] | None = None
    """All of them if absent."""
    id: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


def parse_inference(body: bytes) -> tuple[ScoreRequest, InferenceRequest]:
    """Read an inference request.

    Returns:
        What is asked, and how it was put, for ``inference_answer``.

    Raises:
        MalformedJsonError: If the bytes are not JSON in UTF-8, or are nested too deeply.
        ValueError: If a tensor is missing, unknown, given twice, or its shape, type and data do
            not fit together.
    """
    try:
        inference = InferenceRequest.model_validate_json(body)
    except ValidationError as error:
        raise parse_problem(error) from None
    for output in inference.outputs or ():
        if output.name not in OUTPUTS:
            raise ValueError(f"there is no output {output.name!r}; it must be one of {[*OUTPUTS]}")
    values: dict[str, list[Any]] = {}
    for tensor in inference.inputs:
        if tensor.name in values:
            raise ValueError(f"input {tensor.name!r} is given twice")
        values[tensor.name] = _values_of(tensor)
    if CANDIDATES not in values:
        raise ValueError(f"there is no input {CANDIDATES!r}; it holds the candidates")
    return request_of(_fields(values)), inference


def inference_answer(
    scored: ScoredRequest, inference: InferenceRequest, *, name: str, version: str
) -> dict[str, Any]:
    """Return the answer to an inference request, ready for JSON."""
    wanted = [o.name for o in inference.outputs] if inference.outputs is not None else [*OUTPUTS]
    arrays = {"p_click": scored.p_click_K, "order": scored.order_K}
    outputs = [
        {
            "name": output,
            "datatype": OUTPUTS[output],
            "shape": list(arrays[output].shape),
            "data": arrays[output].tolist(),
        }
        for output in wanted
    ]
    answer: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": outputs}
    return answer if inference.id is None else {**answer, "id": inference.id}


def model_metadata(features: FeatureNames, *, name: str, version: str) -> dict[str, Any]:
    """Return what ``GET /v2/models/NAME`` says: the tensors taken and given; -1 is any length."""
    inputs = [{"name": CANDIDATES, "datatype": "BYTES", "shape": [-1]}]
    inputs += [{"name": key, "datatype": "BYTES", "shape": [1]} for key in OF_THE_REQUEST]
    inputs += [{"name": key, "datatype": "BYTES", "shape": [-1]} for key in PURCHASES]
    inputs += [
        {"name": column, "datatype": "FP64" if column in features.dense else "BYTES",
         "shape": [-1]}
        for column in features.of_impressions()
        if column not in KEYS
    ]  # fmt: skip
    outputs = [{"name": out, "datatype": kind, "shape": [-1]} for out, kind in OUTPUTS.items()]
    return {
        "name": name,
        "versions": [version],
        "platform": "adtower",
        "inputs": inputs,
        "outputs": outputs,
    }


def _values_of(tensor: InputTensor) -> list[Any]:
    if tensor.shape != (len(tensor.data),):
        raise ValueError(
            f"input {tensor.name!r} has shape {list(tensor.shape)[:8]} and {len(tensor.data)} "
            "elements of data; it must be flat, with as many elements as its shape says"
        )
    for place, value in enumerate(tensor.data):
        if value is not None and not _is_of(value, tensor.datatype):
            raise ValueError(
                f"input {tensor.name!r} has datatype {tensor.datatype}, but element {place} is "
                f"{value!r:.80}"
            )
    return tensor.data


def _is_of(value: object, datatype: Datatype) -> bool:
    if datatype == "BYTES":
        return isinstance(value, str)
    if datatype == "BOOL" or isinstance(value, bool):
        return datatype == "BOOL" and isinstance(value, bool)
    return isinstance(value, int if "INT" in datatype else int | float)


def _fields(values: dict[str, list[Any]]) -> dict[str, Any]:
    """Tensors as the fields of a ``ScoreRequest``."""
    products = values[CANDIDATES]
    fields: dict[str, Any] = {"columns": {}}
    by_candidate: list[dict[str, Any]] = [{} for _ in products]
    for name, given in values.items():
        if name == CANDIDATES or name in PURCHASES:
            continue
        if name in OF_THE_REQUEST:
            if len(given) != 1:
                raise ValueError(f"input {name!r} has {len(given)} elements; it must have one")
            # An absent time is now, which null says too.
            if given[0] is not None:
                fields[name] = given[0]
        elif len(given) == 1:
            fields["columns"][name] = given[0]
        elif len(given) == len(products):
            for columns, value in zip(by_candidate, given, strict=True):
                columns[name] = value
        else:
            raise ValueError(
                f"input {name!r} has {len(given)} elements; it must have one, or one for each of "
                f"the {len(products)} candidates"
            )
    fields["candidates"] = [
        {"product_id": product, "columns": columns}
        for product, columns in zip(products, by_candidate, strict=True)
    ]
    if any(name in values for name in PURCHASES):
        bought, times = (values.get(name, []) for name in PURCHASES)
        if len(bought) != len(times):
            raise ValueError(
                f"inputs {PURCHASES[0]!r} and {PURCHASES[1]!r} have {len(bought)} and {len(times)} "
                "elements; they go together"
            )
        fields["purchases"] = [
            {"product_id": product, "time": time}
            for product, time in zip(bought, times, strict=True)
        ]
    return fields
