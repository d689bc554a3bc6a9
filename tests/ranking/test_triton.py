"""The Triton layout: a configuration Triton's schema takes, of graphs that run as it declares."""

import numpy as np
import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from ranking.baselines import LightGBMConfig, LightGBMRanker
from ranking.export import export_bundle
from ranking.feeds import FeatureSplit, graph_feed
from ranking.score import Scorer
from ranking.triton import write_triton

DTYPES = {"TYPE_FP32": np.float32, "TYPE_INT32": np.int32, "TYPE_INT64": np.int64}


@pytest.fixture(scope="module")
def model_config():
    """The part of Triton's ModelConfig message that a configuration uses, as protobuf knows it."""
    field = descriptor_pb2.FieldDescriptorProto
    kinds = {
        "string": field.TYPE_STRING, "int32": field.TYPE_INT32, "int64": field.TYPE_INT64,
        "uint64": field.TYPE_UINT64,
    }  # fmt: skip
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="t")

    def enum(parent, name, *values):
        made = parent.enum_type.add(name=name)
        for number, value in enumerate(values):
            made.value.add(name=value, number=number)

    def message(parent, called, /, **fields):
        made = parent.add(name=called)
        for number, (field_name, kind) in enumerate(fields.items(), start=1):
            repeated = kind.startswith("*")
            kind = kind.removeprefix("*")
            of = made.field.add(
                name=field_name,
                number=number,
                label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL,
                type=kinds.get(kind, field.TYPE_ENUM if kind[1:].isupper() else field.TYPE_MESSAGE),
            )
            if kind not in kinds:
                of.type_name = f".t.{kind}"
        return made

    enum(file, "_DATATYPE", "TYPE_INVALID", "TYPE_BOOL", "TYPE_INT32", "TYPE_INT64", "TYPE_FP32")
    enum(file, "_KIND", "KIND_AUTO", "KIND_GPU", "KIND_CPU")
    types = file.message_type
    message(types, "Reshape", shape="*int64")
    tensor = {"name": "string", "data_type": "_DATATYPE", "dims": "*int64", "reshape": "Reshape"}
    message(types, "Tensor", **tensor)
    message(types, "Batching", max_queue_delay_microseconds="uint64")
    message(types, "Group", kind="_KIND", count="int32")
    message(types, "Value", string_value="string")
    message(types, "Entry", key="string", value="Value")
    message(
        types, "ModelConfig", name="string", backend="string", max_batch_size="int32",
        input="*Tensor", output="*Tensor", dynamic_batching="Batching", instance_group="*Group",
        parameters="*Entry",
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))


@pytest.fixture(scope="module")
def repository(front, tmp_path_factory):
    return write_triton(front.bundle, tmp_path_factory.mktemp("triton") / "models")


def read(model_config, folder):
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config())


def as_declared(config, feed):
    """Arrays checked against the declared names, types and shapes, without the batch."""
    assert set(feed) == {tensor.name for tensor in config.input}
    kinds = config.DESCRIPTOR.file.enum_types_by_name["_DATATYPE"].values_by_number
    for tensor in config.input:
        array = feed[tensor.name]
        assert array.dtype == DTYPES[kinds[tensor.data_type].name]
        dims = list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
        assert len(dims) == array.ndim - 1
        assert all(dim in (-1, size) for dim, size in zip(dims, array.shape[1:], strict=True))
    return feed


def test_each_model_has_a_version_and_a_name_of_its_own(repository, model_config):
    names = sorted(path.name for path in repository.iterdir())
    assert names == ["adtower", "adtower_query_encoder"]
    for name in names:
        config = read(model_config, repository / name)
        assert (config.name, config.backend) == (name, "onnxruntime")
        assert config.max_batch_size == 1024
        assert config.HasField("dynamic_batching")
        assert (repository / name / "1" / "model.onnx").is_file()


def test_the_graph_runs_on_exactly_what_is_declared(repository, model_config, front):
    config = read(model_config, repository / "adtower")
    scorer = Scorer.load(front.bundle)
    rows = front.impressions[:50].drop("query")
    examples = scorer.pipeline.transform(rows)
    feed = graph_feed(FeatureSplit.of(scorer.manifest.signature), examples, scorer.vectors)
    session = onnxruntime.InferenceSession(repository / "adtower" / "1" / "model.onnx")
    (output,) = config.output
    p_click_N = session.run([output.name], as_declared(config, feed))[0]
    np.testing.assert_allclose(p_click_N, scorer.score(rows), rtol=0, atol=1e-7)
    # The graph returns (N,); Triton shows it as (N, 1).
    assert (list(output.dims), list(output.reshape.shape)) == ([1], [])
    assert output.HasField("reshape")
    assert p_click_N.ndim == 1


def test_the_query_encoder_runs_on_exactly_what_is_declared(repository, model_config, front):
    config = read(model_config, repository / "adtower_query_encoder")
    tokens = [front.model.tokenizer.encode("red tea").ids] * 3
    feed = as_declared(config, {"ids": np.array(tokens, np.int64)})
    session = onnxruntime.InferenceSession(
        repository / "adtower_query_encoder" / "1" / "model.onnx"
    )
    (vector_QD,) = session.run([config.output[0].name], feed)
    assert list(config.output[0].dims) == [vector_QD.shape[1]]
    np.testing.assert_allclose(vector_QD[0], front.model.embed_queries(["red tea"])[0], atol=1e-5)


def test_weights_beside_a_graph_come_along(front, tmp_path, monkeypatch):
    def beside(graph):
        return [graph.parent / "manifest.sha256"] if graph.parent == front.bundle else []

    monkeypatch.setattr("ranking.triton._beside", beside)
    written = write_triton(front.bundle, tmp_path / "models")
    assert (written / "adtower" / "1" / "manifest.sha256").is_file()


def test_what_triton_would_score_wrongly_is_refused(shop, tmp_path):
    train, validation = shop.examples.take(slice(0, 480)), shop.examples.take(slice(480, 600))
    trees = LightGBMRanker(LightGBMConfig(rounds=3, min_leaf_rows=5))
    trees.fit(train, validation, None, seed=0)
    bundle = export_bundle(
        trees, shop.pipeline, None, None, shop.impressions[480:], tmp_path / "trees"
    )
    with pytest.raises(ValueError, match="the bundle's models are lightgbm"):
        write_triton(bundle, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_options_that_cannot_work_are_refused(front, tmp_path):
    with pytest.raises(ValueError, match="name 'a/b' must be of letters"):
        write_triton(front.bundle, tmp_path / "models", name="a/b")
    with pytest.raises(ValueError, match="max_batch_size=0 must be at least 1"):
        write_triton(front.bundle, tmp_path / "models", max_batch_size=0)
    write_triton(front.bundle, tmp_path / "models", name="ctr-2", max_batch_size=8)
    with pytest.raises(ValueError, match="exists already"):
        write_triton(front.bundle, tmp_path / "models")
    assert "max_batch_size: 8" in (tmp_path / "models" / "ctr-2" / "config.pbtxt").read_text()
