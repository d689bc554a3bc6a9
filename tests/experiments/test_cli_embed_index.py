"""The words after ``adtower embed`` lead where they should."""

import json
import sys

import numpy as np
import pytest

from embeddings.approximate_index import ApproximateIndex
from embeddings.compact_store import CompactStore
from embeddings.store import VectorStore
from experiments import __main__ as entry
from experiments import cli, cli_embed
from experiments.cli_embed_index import EMBED_INDEX_COMMANDS
from experiments.index_catalogue import IndexConfig


@pytest.fixture
def went(monkeypatch):
    """Which command line the last call of ``entry.main`` ran."""
    taken = []
    monkeypatch.setattr(cli, "main", lambda: taken.append("all"))
    monkeypatch.setattr(cli_embed, "main", lambda: taken.append("embed"))
    return taken


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["embed", "index", "--help"], "embed"),
        (["embed", "--data", "index"], "all"),
        (["embed"], "all"),
        (["index"], "all"),
        ([], "all"),
    ],
)
def test_embed_trains_unless_a_verb_follows(monkeypatch, went, words, where):
    monkeypatch.setattr(sys, "argv", ["adtower", *words])
    entry.main()
    assert went == [where]


def test_every_verb_is_known_before_torch_is_loaded():
    assert set(EMBED_INDEX_COMMANDS) <= set(entry.EMBED_COMMANDS)
    assert set(entry.EMBED_COMMANDS) == set(cli_embed.embed_app._subcommands)


def test_the_options_of_index_are_its_settings(capsys):
    with pytest.raises(SystemExit):
        cli_embed.app.cli(args=["embed", "index", "--help"], prog="adtower")
    page = capsys.readouterr().out
    for name in IndexConfig.model_fields:
        assert f"--{name.replace('_', '-')}" in page


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["adtower", "embed", *map(str, words)])
    entry.main()


def test_a_store_is_made_smaller_and_indexed_from_the_command_line(monkeypatch, capsys, tmp_path):
    pytest.importorskip("usearch")
    vector_VD = np.random.default_rng(0).normal(size=(200, 16))
    vector_VD /= np.linalg.norm(vector_VD, axis=1, keepdims=True)
    ids = [f"p{i}" for i in range(200)]
    store = VectorStore.write_(
        tmp_path / "s", ids, vector_VD, kind="product/text", encoder_fingerprint="e"
    )
    figures = tmp_path / "f.json"
    call(monkeypatch, "compact", tmp_path / "s", tmp_path / "c", "--form", "float16",
         "--json", figures)  # fmt: skip
    made = CompactStore.open(tmp_path / "c", store.fingerprint)
    assert json.loads(figures.read_text())["retention"] == made.manifest.gate["retention"]
    call(monkeypatch, "approximate", tmp_path / "s", tmp_path / "i", "--json", figures)
    index = ApproximateIndex.open(tmp_path / "i", store)
    assert json.loads(figures.read_text())["recall"] == index.manifest.recall["recall"]
    with pytest.raises(SystemExit):
        call(monkeypatch, "compact", tmp_path / "s", tmp_path / "d", "--form", "int8", "--dims", 2)
    assert "below the gate of 0.9" in " ".join(capsys.readouterr().err.split())


def test_a_mistake_ends_with_a_message_and_status_2(monkeypatch, capsys, tmp_path):
    words = ["embed", "index", "--model", str(tmp_path), "--data", "x", "--out", "y"]
    monkeypatch.setattr(sys, "argv", ["adtower", *words])
    with pytest.raises(SystemExit) as left:
        entry.main()
    assert left.value.code == 2
    assert "neither a model nor a run" in capsys.readouterr().err
