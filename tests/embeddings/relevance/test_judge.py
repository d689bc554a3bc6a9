"""The judge learns, labels, comes back from disk and from a kill as it was, and refuses."""

import hashlib
import json

import numpy as np
import polars as pl
import pytest
import torch
from transformers import BertModel, CLIPTextConfig, CLIPTextModel

from embeddings import checkpoint
from embeddings.pretrained import read_text_shape
from embeddings.relevance import judge_training
from embeddings.relevance.audit import audit_labels
from embeddings.relevance.judge import Judge, train_judge
from embeddings.relevance.judge_calibration import Calibration, best_cuts, calibrate
from embeddings.relevance.judge_data import human_pairs
from embeddings.relevance.judge_network import JudgeNetwork, pair_tokens, start_network_
from embeddings.relevance.judge_training import judge_loss, length_batches
from embeddings.text import load_tokenizer
from embeddings.weights import find_text_weights


def test_the_judge_tells_classes_of_unseen_queries_apart(judge, products, queries, split):
    labels = judge[0].label(products, queries, split[1])
    metrics = audit_labels(split[1], labels, annotator="judge", resamples=0).metrics
    assert metrics["auc_2v0"] > 0.9
    assert metrics["kappa_quadratic"] > 0.5


def test_labels_have_the_columns_of_a_relevance_table(judge, products, queries, split):
    labels = judge[0].label(products, queries, split[1])
    columns = ["query_id", "product_id", "label", "source", "p0", "p1", "p2", "rating"]
    assert labels.columns == columns
    assert labels.select("query_id", "product_id").equals(split[1].select("query_id", "product_id"))
    p_NK = labels.select("p0", "p1", "p2").to_numpy()
    np.testing.assert_allclose(p_NK.sum(1), 1, atol=1e-5)
    assert labels["rating"].is_between(1, 3).all()


def test_what_has_no_text_is_not_labelled(judge, products, queries):
    products = products.with_columns(
        title=pl.when(pl.col("product_id") == "p1").then(None).otherwise("title")
    )
    queries = queries.with_columns(
        query=pl.when(pl.col("query_id") == "q2").then(pl.lit("  ")).otherwise("query")
    )
    pairs = pl.DataFrame({"query_id": ["q0", "q0", "q2"], "product_id": ["p0", "p1", "p0"]})
    labels = judge[0].label(products, queries, pairs)
    for name in ("label", "p0", "rating"):
        assert labels[name].is_null().to_list() == [False, True, True], name


def test_a_saved_judge_labels_alike(judge, products, queries, split):
    trained, out = judge
    loaded = Judge.load(out)
    assert loaded.fingerprint == trained.fingerprint
    pairs = split[1].head(40)
    assert loaded.label(products, queries, pairs).equals(trained.label(products, queries, pairs))


def test_a_changed_file_is_refused(judge, tmp_path, products, queries, split):
    folder = judge[0].save_(tmp_path / "copy")
    content = bytearray((folder / checkpoint.WEIGHTS).read_bytes())
    content[-5] ^= 1
    (folder / checkpoint.WEIGHTS).write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        Judge.load(folder)


def test_another_kind_of_model_is_not_opened_as_a_judge(tmp_path):
    checkpoint.write_(tmp_path / "m", {"a": torch.zeros(1)}, "{}", {})
    with pytest.raises(ValueError, match="adtower-judge-1"):
        Judge.load(tmp_path / "m")


def test_a_finished_judge_is_not_trained_again(judge, products, queries, split, judge_config):
    def fail(*_):
        raise AssertionError("a step was taken")

    again = train_judge(
        products, queries, split[0], judge_config, seed=0, out=judge[1], progress=fail
    )
    assert again.fingerprint == judge[0].fingerprint
    with pytest.raises(ValueError, match="another run \\(different: seed\\)"):
        train_judge(products, queries, split[0], judge_config, seed=1, out=judge[1])


def test_a_killed_training_goes_on_to_the_same_bits(
    judge, products, queries, split, judge_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(judge_training, "SAVE_SECONDS", 0.0)

    def killed(_stage, step, _steps, _metrics):
        if step == 7:
            raise KeyboardInterrupt

    arguments = (products, queries, split[0], judge_config)
    with pytest.raises(KeyboardInterrupt):
        train_judge(*arguments, seed=0, out=tmp_path / "j", progress=killed)
    taken = []
    resumed = train_judge(
        *arguments, seed=0, out=tmp_path / "j", progress=lambda _, step, *__: taken.append(step)
    )
    assert taken[0] == 7
    assert resumed.fingerprint == judge[0].fingerprint
    assert resumed.record.history == judge[0].record.history
    assert not list(tmp_path.glob(".*")), "the training state is gone once the judge is saved"


def test_pairs_are_query_then_product_in_one_sequence(tiny_weights):
    tokenizer = load_tokenizer(tiny_weights)
    queries, products = ["red cup", "blue"], ["blue old box", "tin"]
    tokens = pair_tokens(
        tokenizer, queries, products, np.array([0, 1]), np.array([1, 0]),
        max_query_tokens=8, max_product_tokens=8,
    )  # fmt: skip
    id_BL, attend_BL, of_product_BL = tokens.padded(torch.tensor([0, 1]))
    for row, (query, product) in enumerate([("red cup", "tin"), ("blue", "blue old box")]):
        q, p = tokenizer.encode(query).ids, tokenizer.encode(product).ids[1:]
        assert id_BL[row][attend_BL[row]].tolist() == q + p
        assert id_BL[row][of_product_BL[row]].tolist() == p


def test_the_encoder_reads_a_pair_as_transformers_bert_does(tiny_weights):
    weights = find_text_weights(str(tiny_weights))
    network = JudgeNetwork(read_text_shape(tiny_weights), columns=2, hidden=4).eval()
    start_network_(network, weights, torch.Generator().manual_seed(0))
    theirs = BertModel.from_pretrained(tiny_weights, attn_implementation="eager").eval()
    tokens = pair_tokens(
        load_tokenizer(tiny_weights), ["red cup", "blue"], ["old tin", "pan"],
        np.array([0, 1]), np.array([0, 1]), max_query_tokens=8, max_product_tokens=8,
    )  # fmt: skip
    id_BL, attend_BL, of_product_BL = tokens.padded(torch.tensor([0, 1]))
    with torch.no_grad():
        state_BX = network.states(id_BL, attend_BL, of_product_BL)
        expected_BLD = theirs(
            id_BL, attention_mask=attend_BL.long(), token_type_ids=of_product_BL.long()
        ).last_hidden_state
    for row in range(2):
        query_D = expected_BLD[row][attend_BL[row] & ~of_product_BL[row]].mean(0)
        product_D = expected_BLD[row][of_product_BL[row]].mean(0)
        expected_X = torch.cat([expected_BLD[row, 0], query_D, product_D])
        torch.testing.assert_close(state_BX[row], expected_X, atol=2e-5, rtol=1e-4)


def test_an_epoch_holds_each_pair_once_and_little_padding():
    length_N = torch.randint(5, 60, (1000,), generator=torch.Generator().manual_seed(0))
    batches = length_batches(length_N, 10, torch.Generator().manual_seed(1))
    assert torch.cat(batches).sort().values.tolist() == list(range(1000))
    padded = sum(int(length_N[row_B].max()) * len(row_B) for row_B in batches)
    assert padded < 1.1 * int(length_N.sum())


def test_the_loss_by_hand_leaves_pairs_without_a_rating_out_of_its_second_part():
    logit_BK, target_BK = torch.zeros(2, 3), torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]])
    rating_B = torch.tensor([1.0, torch.nan])
    loss = judge_loss(logit_BK, torch.zeros(2), target_BK, rating_B, 2.0)
    assert float(loss) == pytest.approx(np.log(3) + 2 * np.log(2))
    unrated = judge_loss(logit_BK, torch.zeros(2), target_BK, rating_B * torch.nan, 2.0)
    assert float(unrated) == pytest.approx(np.log(3))


def test_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    logit_NK = rng.normal(size=(20_000, 3))
    p_NK = np.exp(logit_NK) / np.exp(logit_NK).sum(1, keepdims=True)
    drawn_N = (p_NK.cumsum(1) < rng.random((len(p_NK), 1))).sum(1)
    found = calibrate(3 * logit_NK, np.eye(3)[drawn_N])
    assert found.temperature == pytest.approx(3, rel=0.05)
    np.testing.assert_allclose(found.probabilities(3 * logit_NK), p_NK, atol=0.02)
    few = slice(0, 29)
    assert calibrate(3 * logit_NK[few], np.eye(3)[drawn_N][few]) == Calibration()


def test_a_judge_is_calibrated_by_queries_it_did_not_learn_from(judge, queries, split):
    text_of = dict(queries.select("query_id", "query").iter_rows())
    tenths = [
        int(hashlib.md5(text_of[key].encode()).hexdigest(), 16) % 10 for key in split[0]["query_id"]
    ]
    assert judge[0].record.calibration.pairs == tenths.count(2) > 0
    assert not {0, 1} & set(tenths)
    # Each of two epochs takes the other pairs once, by sixteen.
    assert len(judge[0].record.history["loss"]) == 2 * ((len(tenths) - tenths.count(2)) // 16)


def test_cuts_are_found_where_the_classes_part():
    score_N = np.linspace(0, 2, 400)
    label_N = np.digitize(score_N, [0.9, 1.7])
    low, high = best_cuts(score_N, label_N)
    assert low == pytest.approx(0.9, abs=0.05) and high == pytest.approx(1.7, abs=0.05)


def test_people_who_differ_give_a_soft_target():
    rows = [("q", "a", 2, 3.0), ("q", "a", 1, 2.0), ("q", "b", 0, 1.0)]
    found = human_pairs(
        pl.DataFrame(rows, schema=["query_id", "product_id", "label", "rating"], orient="row")
    )
    assert found["target"].to_list() == [[0, 0.5, 0.5], [1, 0, 0]]
    assert found["rating"].to_list() == [2.5, 1.0]


def test_labels_of_machines_are_not_learned_from(human):
    machine = human.with_columns(source=pl.lit("llm"))
    assert human_pairs(pl.concat([human, machine])).equals(human_pairs(human))
    with pytest.raises(ValueError, match="none of source 'human'"):
        human_pairs(machine)


def test_what_cannot_be_learned_from_is_refused(products, queries, split, judge_config):
    train = split[0]
    with pytest.raises(ValueError, match="human labels are 2"):
        train_judge(products, queries, train.filter(pl.col("label") == 2), judge_config, seed=0)
    with pytest.raises(ValueError, match="label 3; allowed are 0, 1, 2"):
        train_judge(products, queries, train.with_columns(label=pl.lit(3)), judge_config, seed=0)
    with pytest.raises(ValueError, match="product_id 'p0', which the products table does not"):
        train_judge(products.tail(40), queries, train, judge_config, seed=0)


def test_a_folder_of_something_else_and_pairs_without_text_are_refused_before_training(
    products, queries, split, judge_config, tmp_path
):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no judge"):
        train_judge(products, queries, split[0], judge_config, seed=0, out=tmp_path)
    blank = products.with_columns(title=pl.lit(None, pl.String))
    with pytest.raises(ValueError, match="have no text on one side"):
        train_judge(blank, queries, split[0], judge_config, seed=0)


def test_pairs_with_unknown_ids_are_refused(judge, products, queries):
    pairs = pl.DataFrame({"query_id": ["q0", "nobody"], "product_id": ["p0", "p0"]})
    with pytest.raises(ValueError, match="pair 1 names query_id 'nobody'"):
        judge[0].label(products, queries, pairs)
    with pytest.raises(ValueError, match="no row"):
        judge[0].label(products, queries, pairs.clear())


def test_a_checkpoint_of_another_architecture_is_refused(
    products, queries, split, judge_config, tiny_weights, tmp_path
):
    clip = CLIPTextConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=20, eos_token_id=3, bos_token_id=2,
    )  # fmt: skip
    CLIPTextModel(clip).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tiny_weights / "tokenizer.json").read_bytes())
    wrong = judge_config.model_copy(update={"weights": str(tmp_path)})
    with pytest.raises(ValueError, match="only model_type='bert'"):
        train_judge(products, queries, split[0], wrong, seed=0)
    long = judge_config.model_copy(update={"max_product_tokens": 64})
    with pytest.raises(ValueError, match="up to 71 tokens, but the encoder has 40 positions"):
        train_judge(products, queries, split[0], long, seed=0)
    kind = json.loads((tmp_path / "config.json").read_text())["model_type"]
    assert kind == "clip_text_model"
