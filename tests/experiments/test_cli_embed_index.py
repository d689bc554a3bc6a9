"""The words after ``adtower embed`` lead where they should."""

import sys

import pytest

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


def test_a_mistake_ends_with_a_message_and_status_2(monkeypatch, capsys, tmp_path):
    words = ["embed", "index", "--model", str(tmp_path), "--data", "x", "--out", "y"]
    monkeypatch.setattr(sys, "argv", ["adtower", *words])
    with pytest.raises(SystemExit) as left:
        entry.main()
    assert left.value.code == 2
    assert "neither a model nor a run" in capsys.readouterr().err
