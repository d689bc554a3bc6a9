"""Graphs score as the models they were written from, row by row and as one request."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from features.embedding_join import gather_vectors
from features.examples import Examples
from ranking.baselines import LogisticRegression, LogisticRegressionConfig
from ranking.calibration import Isotonic, Platt, Temperature
from ranking.certificate import beyond, misordered
from ranking.contract import InputSignature
from ranking.export import slack_of
from ranking.feeds import FeatureSplit, graph_feed
from ranking.golden import band_of
from ranking.lowering import write_logistic_, write_network_
from ranking.network import build_network
from ranking.predictor import open_session
from ranking.quantise import ByteTable, with_rounded_tables
from ranking.semantic_ids import ResidualCodebook
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig

TOLERANCE = 1e-6
NETWORKS = {
    "production": {"use_vectors": False},
    "tower": {},
    "single_tower": {"single_tower": True},
    "no_derived": {"derived": False, "presence": False},
    "full_rank": {"cross_rank": None, "cross_layers": 3},
    "no_crosses": {"cross_layers": 0, "production_mlp": ()},
    "no_head": {"head": (), "use_vectors": False},
    "semantic_ids": {"use_vectors": False, "semantic_levels": 2, "semantic_codes": 5},
    "gate": {"use_vectors": False, "frequency_gate": "products.category"},
    "gate_of_request": {"frequency_gate": "query_id", "semantic_levels": 1, "semantic_codes": 4},
    "position": {"position_slots": 4, "entire_space": True},
}
CALIBRATORS = {
    "raw": None,
    "platt": Platt(slope=0.7, intercept=-0.3),
    "temperature": Temperature(temperature=1.6),
    "isotonic": Isotonic(
        predicted_K=np.array([0.05, 0.2, 0.20001, 0.6]), calibrated_K=np.array([0, 0.1, 0.3, 0.9])
    ),
}


@pytest.fixture(scope="module")
def tower(small_log):
    config = TowerConfig(batch_size=128, max_epochs=1, projected_dim=8)
    return TowerRanker(config).fit(small_log.train, small_log.validation, small_log.vectors, seed=0)


@pytest.fixture(scope="module")
def ten_thousand(small_log):
    """Rows with every column drawn by itself, and the edges: strangers, no history, extremes."""
    rng = np.random.default_rng(1)
    test, rows = small_log.test, 10_000
    drawn = {
        name: getattr(test, name)[rng.integers(len(test), size=rows)]
        for name in ("product_N", "query_N", "history_NL", "user_N", "request_N", "time_us_N")
    }
    sparse_NF = np.stack([rng.integers(size, size=rows) for size in test.vocabulary_sizes], axis=1)
    dense_NC = rng.normal(0, 3, size=(rows, len(test.dense_names)))
    edges = slice(0, 400)
    sparse_NF[edges][::2], dense_NC[edges] = 0, rng.choice([-10, 0, 10], size=(400, 2))
    drawn["product_N"][edges][1::3] = -1
    drawn["query_N"][edges][1::5] = -1
    drawn["history_NL"][edges][::2] = -1
    return Examples(
        **drawn,
        sparse_names=test.sparse_names,
        sparse_NF=sparse_NF.astype(np.int32),
        vocabulary_sizes=test.vocabulary_sizes,
        dense_names=test.dense_names,
        dense_NC=dense_NC.astype(np.float32),
        label_N=None,
    )


def untrained(options, examples, vectors):
    """A network with weights large enough for differences to show."""
    model = TowerRanker(TowerConfig(batch_size=64, max_epochs=1, projected_dim=8, **options))
    torch.manual_seed(0)
    model.signature_ = InputSignature.of(examples, vectors if model.uses_vectors else None)
    model.codebook_, model.history_rows_ = None, None
    if levels := model.config.semantic_levels:
        codes = model.config.semantic_codes
        model.codebook_ = ResidualCodebook.fit(vectors, levels=levels, codes=codes, seed=0)
    model.network_, tables = build_network(model.config, model.signature_)
    with torch.no_grad():
        if model.network_.production.gate is not None:
            model.network_.production.gate.z_V.normal_()
            model.network_.production.gate.content.weight.normal_()
        if model.network_.position is not None:
            model.network_.position.logit.weight.fill_(0.7)
        for weight in tables.weights():
            weight.normal_(0, 1)
        model.network_.logit.weight.mul_(3)
        if model.network_.vectors is not None:
            mean_2, deviation_2 = torch.tensor([0.1, -0.2]), torch.tensor([0.3, 0.4])
            model.network_.vectors.set_cosine_statistics(mean_2, deviation_2)
    model.network_.eval()
    return model


def run(path, signature, examples, vectors):
    vectors = vectors if signature.vectors_dim is not None else None
    feed = graph_feed(FeatureSplit.of(signature), examples, vectors)
    return np.asarray(open_session(path).run(["p_click"], feed)[0], np.float64)


def assert_same(found_N, model_p_N, calibrator):
    """Within 1e-6 (before the steps of an isotonic function), and in the same order."""
    slack = slack_of(calibrator, TOLERANCE)
    _, low_N, high_N = band_of(model_p_N, calibrator and calibrator.calibrate, slack)
    assert beyond(found_N, low_N, high_N).max() <= TOLERANCE
    assert misordered(found_N, low_N, high_N, TOLERANCE) == 0


@pytest.mark.parametrize("calibration", CALIBRATORS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_scores_ten_thousand_rows_as_the_network(
    name, calibration, ten_thousand, small_log, tmp_path
):
    model = untrained(NETWORKS[name], ten_thousand, small_log.vectors)
    calibrator = CALIBRATORS[calibration]
    path = tmp_path / "model.onnx"
    write_network_(
        model.network_,
        model.signature_,
        path,
        calibrator=calibrator,
        codebook=model.codebook_,
    )
    found_N = run(path, model.signature_, ten_thousand, small_log.vectors)
    p_N = model.predict_proba(ten_thousand, small_log.vectors)
    assert np.std(p_N) > 0.05
    assert_same(found_N, p_N, calibrator)


@pytest.mark.parametrize("calibration", CALIBRATORS)
@pytest.mark.parametrize("with_vectors", [True, False])
def test_a_graph_scores_as_the_logistic_regression(
    with_vectors, calibration, ten_thousand, small_log, tmp_path
):
    vectors = small_log.vectors if with_vectors else None
    model = LogisticRegression(LogisticRegressionConfig(c_values=(0.1,)))
    model.fit(small_log.train, small_log.validation, vectors, seed=0)
    write_logistic_(model, tmp_path / "model.onnx", calibrator=CALIBRATORS[calibration])
    found_N = run(tmp_path / "model.onnx", model.signature_, ten_thousand, vectors)
    assert_same(found_N, model.predict_proba(ten_thousand, vectors), CALIBRATORS[calibration])


@pytest.mark.parametrize("name", NETWORKS)
def test_one_request_scores_as_its_candidates_one_by_one(name, ten_thousand, small_log, tmp_path):
    model = untrained(NETWORKS[name], ten_thousand, small_log.vectors)
    some = ten_thousand.take(slice(400, 460))
    sparse_NF = some.sparse_NF.copy()
    sparse_NF[:, :2] = sparse_NF[0, :2]
    request = replace(
        some,
        sparse_NF=sparse_NF,
        query_N=np.full_like(some.query_N, some.query_N[0]),
        history_NL=np.tile(some.history_NL[0], (60, 1)),
    )
    path = tmp_path / "model.onnx"
    write_network_(model.network_, model.signature_, path, codebook=model.codebook_)
    vectors = small_log.vectors if model.uses_vectors else None
    feed = graph_feed(FeatureSplit.of(model.signature_), request, vectors)
    assert feed["request_sparse"].shape == (1, 2)
    assert feed["candidate_sparse"].shape == (60, 1)
    found_N = run(tmp_path / "model.onnx", model.signature_, request, vectors)
    assert_same(found_N, model.predict_proba(request, small_log.vectors), None)


@pytest.mark.parametrize("name", ["sparse_NF", "dense_NC", "query_N", "history_NL"])
def test_rows_that_differ_in_one_thing_of_the_request_are_no_request(name, ten_thousand, small_log):
    request = ten_thousand.take(np.zeros(3, np.int64))
    signature = replace(InputSignature.of(request, small_log.vectors), dense_names=("time.a", "b"))
    split = FeatureSplit.of(signature)
    assert split.one_request(request, with_vectors=True)
    changed = getattr(request, name).copy()
    changed[1] += 1
    assert not split.one_request(replace(request, **{name: changed}), with_vectors=True)


def test_a_feed_holds_the_vectors_that_training_saw(ten_thousand, small_log):
    signature = InputSignature.of(ten_thousand, small_log.vectors)
    feed = graph_feed(FeatureSplit.of(signature), ten_thousand, small_log.vectors)
    rows = gather_vectors(small_log.vectors, ten_thousand)
    np.testing.assert_array_equal(feed["product"], rows.product_ND)
    np.testing.assert_array_equal(feed["query"], rows.query_ND)
    np.testing.assert_array_equal(feed["history"], rows.history_ND)
    present_N3 = np.hstack([feed["product_present"], feed["request_present"]])
    np.testing.assert_array_equal(present_N3, rows.present_N3)


def test_names_say_what_belongs_to_the_request():
    names = ("user_id", "products.brand", "time.hour", "queries.length", "device", "query_id")
    dense = ("queries.age.missing", "products.price", "query_age")
    signature = InputSignature(
        sparse_names=names, vocabulary_sizes=(2,) * 6, dense_names=dense,
        vectors_fingerprint=None, vectors_dim=None,
    )  # fmt: skip
    split = FeatureSplit.of(signature)
    assert [names[f] for f in split.candidate_sparse] == ["products.brand", "device"]
    assert [dense[c] for c in split.request_dense] == ["queries.age.missing"]
    alone = replace(signature, sparse_names=("user_id",), vocabulary_sizes=(2,), dense_names=())
    assert list(FeatureSplit.of(alone).candidate_sparse) == [0]


def test_all_tables_are_one_weight_without_a_loop(tower, tmp_path):
    write_network_(tower.network_, tower.signature_, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    operators = {node.op_type for node in graph.node}
    assert not operators & {"Loop", "Scan", "If", "SequenceAt", "Expand", "Tile"}
    tables = [t for t in graph.initializer if t.name.startswith("tables")]
    assert [list(t.dims) for t in tables] == [[sum(tower.signature_.vocabulary_sizes), 16]]
    assert all(t.dims[0] < 10_000 for t in graph.initializer)


def test_large_weights_lie_beside_the_graph(tower, small_log, tmp_path, monkeypatch):
    write_network_(tower.network_, tower.signature_, tmp_path / "inline.onnx")
    monkeypatch.setattr("ranking.graph.EXTERNAL_BYTES", 1024)
    write_network_(tower.network_, tower.signature_, tmp_path / "beside.onnx")
    assert (tmp_path / "beside.bin").stat().st_size > 3 * (tmp_path / "beside.onnx").stat().st_size
    assert not (tmp_path / "inline.bin").exists()
    inline_N, beside_N = (
        run(tmp_path / name, tower.signature_, small_log.test, small_log.vectors)
        for name in ("inline.onnx", "beside.onnx")
    )
    np.testing.assert_array_equal(beside_N, inline_N)


def test_writing_leaves_the_model_whole_and_is_deterministic(tower, small_log, tmp_path):
    before_N = tower.predict_proba(small_log.test, small_log.vectors)
    for name in ("a.onnx", "b.onnx"):
        write_network_(tower.network_, tower.signature_, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    after_N = tower.predict_proba(small_log.test, small_log.vectors)
    np.testing.assert_array_equal(after_N, before_N)


def test_bytes_of_a_table_by_hand():
    table = ByteTable.of(np.array([[1.27, -0.5], [0.0, 0.0], [-254.0, 3.1]]))
    np.testing.assert_array_equal(table.byte_VE, [[127, -50], [0, 0], [-127, 2]])
    np.testing.assert_allclose(table.values(), [[1.27, -0.5], [0, 0], [-254, 4]], rtol=1e-6)


def test_int8_graphs_score_as_the_rounded_model(tower, ten_thousand, small_log, tmp_path):
    rounded = with_rounded_tables(tower)
    path = tmp_path / "model.onnx"
    write_network_(rounded.network_, tower.signature_, path, int8_tables=True)
    types = {t.name.rsplit("_", 1)[0]: t.data_type for t in onnx.load(path).graph.initializer}
    assert types["tables_int8"] == onnx.TensorProto.INT8
    found_N = run(path, tower.signature_, ten_thousand, small_log.vectors)
    p_N = rounded.predict_proba(ten_thousand, small_log.vectors)
    assert_same(found_N, p_N, None)
    assert 0 < np.abs(p_N - tower.predict_proba(ten_thousand, small_log.vectors)).max() < 0.01


def test_attention_over_the_history_is_refused_by_name(ten_thousand, small_log, tmp_path):
    model = untrained({"attention": "vectors"}, ten_thousand, small_log.vectors)
    with pytest.raises(ValueError, match="attention over the history cannot be exported"):
        write_network_(model.network_, model.signature_, tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


def test_a_calibrator_that_no_graph_can_hold_is_refused(tower, tmp_path):
    class Square:
        def calibrate(self, p_click_N):
            return np.square(p_click_N)

        def to_dict(self):
            return {}

    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match="a Square cannot go inside a graph"):
        write_network_(tower.network_, tower.signature_, path, calibrator=Square())
