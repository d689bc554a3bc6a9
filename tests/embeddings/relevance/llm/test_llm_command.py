"""``adtower label llm``: outputs, resuming after kill -9, budget, dry run."""

import hashlib
import json
import signal
import sqlite3
import subprocess
import sys
import time

import polars as pl
import pytest
import tyro

from embeddings.relevance.rubric import SHOP_RUBRIC
from experiments.cli_label_llm import label_llm
from features.check import check_dataset
from features.dataset import Dataset, write_dataset, write_into_dataset
from features.schema import DatasetSpec

KEY = "secret-of-the-test"


@pytest.fixture
def folder(tmp_path, shop):
    """A dataset of 120 pairs; people labelled every third of them, one in ten of those wrongly."""
    world = shop(120)
    human = world.pairs.with_row_index("row").filter(pl.col("row") % 3 == 0).rows()
    labels = [
        (q, p, (world.label_by_pair[q, p] + (i % 10 == 0)) % 3, "human")
        for i, (_, q, p) in enumerate(human)
    ]
    write_dataset(
        tmp_path / "data",
        DatasetSpec(name="paints"),
        queries=world.queries,
        products=world.products,
        relevance=pl.DataFrame(
            labels, schema=["query_id", "product_id", "label", "source"], orient="row"
        ),
    )
    world.pairs.write_parquet(tmp_path / "pairs.parquet")
    return tmp_path


WITHOUT_TORCH = (
    "-c",
    "import tyro\nfrom experiments.cli_label_llm import label_llm\ntyro.cli(label_llm)",
)
"""The verb by itself; the whole command line takes seconds to start."""


def arguments(folder, server, *more):
    return [
        str(folder / "data"), "--out", str(folder / "labels"), "--pairs",
        str(folder / "pairs.parquet"), "--json", str(folder / "figures.json"), "--model", "paint",
        "--base-url", server.base_url, "--api-key-env", "TEST_API_KEY", "--backoff-s", "0.01",
        "--prompt-price", "1", "--completion-price", "2", "--concurrency", "4", *more,
    ]  # fmt: skip


@pytest.fixture
def call(capsys):
    """Run the verb in this process: its exit status and what it printed."""

    def run(folder, server, *more):
        status = 0
        try:
            tyro.cli(label_llm, args=arguments(folder, server, *more))
        except SystemExit as end:
            status = int(end.code or 0)
        return status, capsys.readouterr().out

    return run


def stored(folder):
    """Answers in the cache, which another process may be writing to."""
    path = folder / "labels" / "answers.sqlite"
    if not path.is_file():
        return 0
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as cache:
        try:
            (count,) = cache.execute(
                "SELECT count(*) FROM calls WHERE outcome='answered'"
            ).fetchone()
        except sqlite3.OperationalError:
            count = 0
    cache.close()
    return count


def kill_and_repeat(folder, server, world, command, repeat, *, after):
    """Kill a command with -9 once so many answers are stored, repeat it, and look at the bill."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 300
    while stored(folder) < after and time.monotonic() < deadline_s:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    while server.under_way:
        time.sleep(0.01)
    kept, pairs = stored(folder), len(world.label_by_pair)
    assert after <= kept < 0.9 * pairs
    assert not (folder / "labels" / "manifest.json").exists()
    asked_before = len(server.requests)

    repeat()
    manifest = json.loads((folder / "labels" / "manifest.json").read_text())
    relevance = pl.read_parquet(folder / "labels" / "relevance.parquet")
    queue = pl.read_parquet(folder / "labels" / "queue.parquet")
    assert manifest["complete"]
    assert relevance.height + queue.height == pairs
    for query_id, product_id, label in relevance.select("query_id", "product_id", "label").rows():
        assert label == world.label_by_pair[query_id, product_id]
    # An answer that was stored is not asked again. Only those that were under way when the process
    # died, at most one for each of the four callers, can have been paid in vain.
    assert len(server.usable) == relevance.height
    in_vain = len(server.paid) - manifest["calls_of_all_runs"]["answered"]["calls"]
    assert 0 <= in_vain <= 4
    twice = sum(times - 1 for times in server.usable.values())
    assert twice <= in_vain
    return {
        "stored when killed": kept,
        "requests before": asked_before,
        "requests after": len(server.requests) - asked_before,
        "answers paid": len(server.paid),
        "lost under way": in_vain,
        "sound answers paid twice": twice,
    }


def test_killed_midway_and_repeated_it_pays_only_for_the_rest(
    folder, chat_server, shop, faults, call
):
    server = chat_server(fault_of=faults(0.2, ("busy", "down", "cut", "2")), answer_s=0.02)
    command = [sys.executable, *WITHOUT_TORCH, *arguments(folder, server)]
    kill_and_repeat(folder, server, shop(120), command, lambda: call(folder, server), after=40)


@pytest.mark.slow
def test_two_thousand_pairs_killed_midway(folder, chat_server, shop, faults):
    world = shop(2000)
    data = Dataset.open(folder / "data")
    write_into_dataset(folder / "data", data.spec, queries=world.queries, products=world.products)
    world.pairs.write_parquet(folder / "pairs.parquet")
    server = chat_server(fault_of=faults(0.2, ("busy", "down", "cut", "2", "24 oz")))
    command = [sys.executable, "-m", "experiments", "label", "llm", *arguments(folder, server)]

    def repeat():
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    print("\n", kill_and_repeat(folder, server, world, command, repeat, after=1000))


def test_the_outputs_fit_the_contract_and_are_audited_by_human_labels(folder, chat_server, call):
    server = chat_server()
    status, printed = call(folder, server)
    assert status == 0
    assert "120 pairs labelled" in printed
    assert "0 pairs for people (none)" in printed
    assert "beside people: 40 pairs of 20 queries" in " ".join(printed.split())
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["audit.accuracy"] == pytest.approx(0.9)
    assert 0.5 < figures["audit.kappa_quadratic"] < 0.99
    audit = json.loads((folder / "labels" / "audit.json").read_text())
    assert audit["pairs"] == 40
    relevance = pl.read_parquet(folder / "labels" / "relevance.parquet")
    assert set(relevance["source"]) == {"llm"}
    assert relevance["p0"].is_not_null().all()
    manifest = json.loads((folder / "labels" / "manifest.json").read_text())
    assert set(relevance["rubric_version"]) == {manifest["rubric_version"]}
    assert set(relevance["annotator"]) == {f"paint@shop-facets-{manifest['rubric_version']}"}
    for name, digest in manifest["sha256"].items():
        content = (folder / "labels" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
    # Nothing written holds the key, and the human labels were not sent.
    for path in folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    assert "human" not in json.dumps(server.requests)
    data = Dataset.open(folder / "data")
    write_into_dataset(folder / "data", data.spec, relevance=relevance)
    errors = [v for v in check_dataset(Dataset.open(folder / "data")) if v.severity == "error"]
    assert errors == []


def test_another_rubric_asks_again_and_signs_its_labels(folder, chat_server, call):
    server = chat_server()
    assert call(folder, server)[0] == 0
    first = pl.read_parquet(folder / "labels" / "relevance.parquet")
    strict = json.loads(SHOP_RUBRIC.model_dump_json())
    strict["facets"][1]["values"][1]["most"] = 0
    (folder / "strict.json").write_text(json.dumps(strict))
    assert call(folder, server, "--rubric", str(folder / "strict.json"))[0] == 0
    second = pl.read_parquet(folder / "labels" / "relevance.parquet")
    assert len(server.requests) == 240
    assert set(first["rubric_version"]).isdisjoint(second["rubric_version"])
    # A product that lacks some of what is asked was moderately relevant, and is so no more.
    assert (first["label"] == 1).any()
    assert second["label"].to_list() == [0 if label == 1 else label for label in first["label"]]


def test_without_a_table_of_pairs_those_with_labels_are_asked(folder, chat_server, call):
    (folder / "pairs.parquet").unlink()
    server = chat_server()
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        call(folder, server)
    tyro.cli(
        label_llm,
        args=[argument for argument in arguments(folder, server)
              if argument not in ("--pairs", str(folder / "pairs.parquet"))],
    )  # fmt: skip
    assert len(server.requests) == 40


def test_a_dry_run_calls_nobody_and_makes_nothing(folder, chat_server, call):
    server = chat_server()
    status, printed = call(folder, server, "--dry-run")
    assert status == 0
    assert "120 distinct questions: 0 settled before" in printed
    assert "at most" in printed
    assert server.requests == []
    assert not (folder / "labels").exists()


def test_a_budget_ends_the_command_with_status_1_and_what_is_known(folder, chat_server, call):
    server = chat_server()
    status, printed = call(folder, server, "--budget", "0.03")
    assert status == 1
    assert "pairs left: the budget is reached" in printed
    manifest = json.loads((folder / "labels" / "manifest.json").read_text())
    pairs = manifest["pairs"]
    assert not manifest["complete"]
    assert pairs["labelled"] > 0
    assert pairs["labelled"] + pairs["pending"] == 120
    assert manifest["cost_of_all_runs"] <= 0.03
    before = len(server.requests)
    assert call(folder, server, "--budget", "3")[0] == 0
    assert len(server.requests) - before == pairs["pending"]


def test_a_missing_key_is_named_before_anything_is_sent(folder, chat_server, call, monkeypatch):
    server = chat_server()
    monkeypatch.delenv("TEST_API_KEY")
    with pytest.raises(ValueError, match="variable TEST_API_KEY is not set"):
        call(folder, server)
    assert server.requests == []
