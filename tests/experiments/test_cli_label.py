"""``adtower label``: from chosen pairs to audited labels, and what it says when it cannot."""

import itertools
import json
import sys

import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from embeddings.relevance.audit import Audit
from embeddings.relevance_split import is_test_query
from experiments import cli
from features.dataset import write_dataset
from features.schema import DatasetSpec, FeatureNames

COLOURS = ("red", "green", "blue", "white")
THINGS = ("cup", "box", "jar", "bag", "tin", "pot")
PNG = b"\x89PNG\r\n"


@pytest.fixture
def adtower(monkeypatch, capsys):
    """Run a command line in this process: its exit status, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["adtower", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A random BERT of one layer."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *COLOURS, *THINGS]
    tokenizer = Tokenizer(
        models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=24, initializer_range=0.3,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def catalogue():
    """Things in colours; people labelled two thirds of all pairs of query and product."""
    titles = [f"{c} {t}" for t in THINGS for c in COLOURS]
    texts = [f"{t} {c}" for t in THINGS for c in COLOURS] + [*COLOURS, *THINGS]
    products = pl.DataFrame({"product_id": [f"p{i}" for i in range(len(titles))], "title": titles})
    queries = pl.DataFrame({"query_id": [f"q{i}" for i in range(len(texts))], "query": texts})
    rows = []
    for (q, text), (p, title) in itertools.product(enumerate(texts), enumerate(titles)):
        shared = len(set(text.split()) & set(title.split()))
        if (q + p) % 3:
            label = 2 if shared == len(text.split()) else shared
            rows.append((f"q{q}", f"p{p}", label, "human", label + 1.0))
    schema = ["query_id", "product_id", "label", "source", "rating"]
    return products, queries, pl.DataFrame(rows, schema=schema, orient="row")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    products, queries, relevance = catalogue()
    spec = DatasetSpec(name="toy", features=FeatureNames(sparse=("query_id", "product_id")))
    folder = tmp_path_factory.mktemp("toy") / "data"
    return write_dataset(folder, spec, products=products, queries=queries, relevance=relevance)


SMALL = ("--max-query-tokens", 8, "--max-product-tokens", 8, "--batch", 16, "--epochs", 2)


def test_pairs_are_mined_judged_and_audited(adtower, data, weights, tmp_path):
    pairs, out = tmp_path / "pairs.parquet", tmp_path / "judge"
    status, printed, _ = adtower("label", "mine", "--data", data, "--budget", 25, "--out", pairs)
    assert status == 0 and "25 pairs to label" in printed
    mined = pl.read_parquet(pairs)
    labelled = pl.read_parquet(data / "relevance.parquet")
    assert not len(mined.join(labelled, on=["query_id", "product_id"], how="inner"))
    assert {"rank_bm25", "rank_off_the_shelf", "disagreement", "band"} <= set(mined.columns)
    text_of = dict(pl.read_parquet(data / "queries.parquet").iter_rows())
    assert not any(is_test_query(text_of[query_id]) for query_id in mined["query_id"])

    judge = ("label", "judge", "--data", data, "--out", out, "--weights", weights, *SMALL)
    status, printed, _ = adtower(*judge, "--pairs", pairs, "--json", tmp_path / "j.json")
    assert status == 0 and "25 pairs labelled" in printed and "off_the_shelf differ" in printed
    table = pl.read_parquet(out / "relevance.parquet")
    assert len(table) == 25 and set(table["source"]) == {"judge"}
    audit = Audit.model_validate_json((out / "audit.json").read_text())
    assert audit.disagreement is not None and audit.disagreement.other == "off_the_shelf"
    assert (out / "audit.png").read_bytes().startswith(PNG)
    figures = json.loads((tmp_path / "j.json").read_text())
    assert figures["labelled"] == 25 and figures["auc_2v0"] == audit.metrics["auc_2v0"]

    status, printed, _ = adtower(
        "label", "audit", out / "held_out.parquet", "--data", data, "--out", tmp_path / "again",
        "--other", out / "held_out.parquet",
    )  # fmt: skip
    assert status == 0 and "on 0 of" in printed
    again = Audit.model_validate_json((tmp_path / "again" / "audit.json").read_text())
    assert again.metrics == audit.metrics and again.intervals == audit.intervals


def test_a_table_without_held_out_labels_is_refused_before_training(
    adtower, data, weights, tmp_path
):
    products, queries, relevance = catalogue()
    text_of = dict(queries.iter_rows())
    kept = [not is_test_query(text_of[query_id]) for query_id in relevance["query_id"]]
    for name, table, message in (
        ("no-test", relevance.filter(pl.Series(kept)), "of a held-out query"),
        ("no-human", relevance.with_columns(source=pl.lit("rule")), "0 pairs of source 'human'"),
    ):
        spec = DatasetSpec(name="toy", features=FeatureNames(sparse=("query_id",)))
        folder = write_dataset(
            tmp_path / name, spec, products=products, queries=queries, relevance=table
        )
        status, _, error = adtower(
            "label", "judge", "--data", folder, "--out", tmp_path / "out", "--weights", weights
        )
        assert status == 2 and message in error, name
    assert not (tmp_path / "out").exists()


def test_mining_without_a_budget_and_auditing_what_is_no_table_of_labels_end_in_words(
    adtower, data, tmp_path
):
    out = tmp_path / "pairs.parquet"
    status, _, error = adtower("label", "mine", "--data", data, "--budget", 0, "--out", out)
    assert status == 2 and "budget=0 must be at least 1" in error and not out.exists()
    status, _, error = adtower("label", "audit", data / "queries.parquet", "--data", data)
    assert status == 2 and "lacks label, product_id" in error
