"""The Open Inference Protocol's tensors say what a plain request says."""

import json

import numpy as np
import pytest

from features.feature_spec import FeatureNames
from ranking.open_inference import inference_answer, model_metadata, parse_inference
from ranking.request import request_of
from ranking.request_table import Diagnostics, ScoredRequest

FEATURES = FeatureNames(sparse=("user_id", "product_id", "device"), dense=("products.price", "bid"))


def tensor(name, data, datatype="BYTES", shape=None):
    return {"name": name, "shape": shape or [len(data)], "datatype": datatype, "data": data}


def body(*tensors, **fields):
    return json.dumps({"inputs": [tensor("product_id", ["p1", "p2"]), *tensors], **fields}).encode()


def test_tensors_say_what_a_plain_request_says():
    request, inference = parse_inference(
        body(
            tensor("user_id", ["u1"]),
            tensor("query", ["red tea"]),
            tensor("time", ["2024-03-01T00:00:00Z"]),
            tensor("device", ["phone"]),
            tensor("bid", [1.5, None], "FP32"),
            tensor("purchase_product_id", ["p9"]),
            tensor("purchase_time", ["2024-02-01T00:00:00Z"]),
            id="42",
            parameters={"any": "thing"},
        )
    )
    assert request == request_of(
        {
            "user_id": "u1",
            "query": "red tea",
            "time": "2024-03-01T00:00:00Z",
            "columns": {"device": "phone"},
            "candidates": [
                {"product_id": "p1", "columns": {"bid": 1.5}},
                {"product_id": "p2", "columns": {"bid": None}},
            ],
            "purchases": [{"product_id": "p9", "time": "2024-02-01T00:00:00Z"}],
        }
    )
    assert inference.id == "42"


SCORED = ScoredRequest(
    p_click_K=np.array([0.25, 0.5]),
    order_K=np.array([1, 0]),
    diagnostics=Diagnostics(
        unknown_user=False,
        unknown_query=False,
        unknown_products=(),
        products_without_vector=(),
        query_vector="unused",
        history_length=0,
    ),
)


def test_an_answer_names_model_version_and_outputs():
    _, inference = parse_inference(body(id="42"))
    assert inference_answer(SCORED, inference, name="adtower", version="abc") == {
        "model_name": "adtower",
        "model_version": "abc",
        "id": "42",
        "outputs": [
            {"name": "p_click", "datatype": "FP64", "shape": [2], "data": [0.25, 0.5]},
            {"name": "order", "datatype": "INT64", "shape": [2], "data": [1, 0]},
        ],
    }
    _, inference = parse_inference(body(outputs=[{"name": "order"}]))
    answer = inference_answer(SCORED, inference, name="adtower", version="abc")
    assert [output["name"] for output in answer["outputs"]] == ["order"]
    assert "id" not in answer


def test_metadata_names_every_tensor_that_can_be_sent():
    metadata = model_metadata(FEATURES, name="adtower", version="abc")
    kinds = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in metadata["inputs"]}
    assert kinds["product_id"] == ("BYTES", [-1])
    assert kinds["user_id"] == ("BYTES", [1])
    assert kinds["device"] == ("BYTES", [-1])
    assert kinds["bid"] == ("FP64", [-1])
    assert "products.price" not in kinds


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([tensor("device", ["a", "b", "c"])], "'device' has 3 elements; it must have one, or one"),
        ([tensor("user_id", ["a", "b"])], "'user_id' has 2 elements; it must have one"),
        ([tensor("bid", [1.0], shape=[2])], r"'bid' has shape \[2\] and 1 elements"),
        ([tensor("bid", [[1.0, 2.0]], shape=[1, 2])], r"'bid' has shape \[1, 2\] and 1"),
        ([tensor("bid", ["1"], "FP32")], "'bid' has datatype FP32, but element 0 is '1'"),
        ([tensor("bid", [1.5], "INT64")], "'bid' has datatype INT64, but element 0 is 1.5"),
        ([tensor("bid", [True], "INT64")], "'bid' has datatype INT64, but element 0 is True"),
        ([tensor("bid", [1], "FP8")], r"inputs.1.datatype: Input should be 'BOOL'"),
        ([tensor("product_id", ["p1"])], "'product_id' is given twice"),
        ([tensor("purchase_product_id", ["p1"])], "have 1 and 0 elements; they go together"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tensors, message):
    with pytest.raises(ValueError, match=message):
        parse_inference(body(*tensors))


def test_candidates_must_be_there_and_outputs_known():
    with pytest.raises(ValueError, match="there is no input 'product_id'"):
        parse_inference(b'{"inputs": []}')
    with pytest.raises(ValueError, match="there is no output 'logit'"):
        parse_inference(body(outputs=[{"name": "logit"}]))
