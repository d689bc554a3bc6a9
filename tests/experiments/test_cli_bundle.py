"""The commands over a bundle alone, as they are typed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request

import polars as pl
import pytest

from experiments import __main__, cli_bundle
from experiments.marketplace.world import make_world
from features.dataset import Dataset
from features.pipeline import FeaturePipeline
from ranking.baselines import LogisticRegression
from ranking.export import export_bundle
from ranking.score import Scorer


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A bundle of a logistic regression, and rows it was not trained on."""
    folder = tmp_path_factory.mktemp("bundles")
    world = make_world(folder / "world", products=120, requests=800, seed=0)
    dataset = Dataset.open(world)
    split = dataset.split()
    pipeline = FeaturePipeline(dataset.spec).fit(dataset, split.train)
    train, validation = pipeline.transform(split.train), pipeline.transform(split.validation)
    model = LogisticRegression().fit(train, validation, None, seed=0)
    export_bundle(model, pipeline, None, None, split.validation, folder / "bundle")
    split.test.write_parquet(folder / "rows.parquet")
    return folder


@pytest.fixture
def adtower(monkeypatch, capsys):
    """Run a command line in this process: its exit status, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["adtower", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        status = 0
        try:
            cli_bundle.main()
        except SystemExit as end:
            status = int(end.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@contextlib.contextmanager
def served(*arguments):
    """A server started as it is typed, and where it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "serve", *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving logistic_regression "), process.communicate()[1]
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def test_the_entry_point_knows_every_command_over_a_bundle():
    assert tuple(cli_bundle.BUNDLE_COMMANDS) == __main__.BUNDLE_COMMANDS


def test_commands_over_a_bundle_load_nothing_that_trains(shop):
    code = (
        "import sys\n"
        "from experiments.__main__ import main\n"
        f"sys.argv = ['adtower', 'score', {str(shop / 'bundle')!r}, {str(shop / 'rows.parquet')!r},"
        f" '--out', {str(shop / 'out.parquet')!r}]\n"
        "main()\n"
        "loaded = {'torch', 'transformers', 'mlflow', 'fastapi', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_score_writes_what_the_scorer_says(adtower, shop, tmp_path):
    rows, out = shop / "rows.parquet", tmp_path / "scores.parquet"
    figures = tmp_path / "figures.json"
    status, printed, _ = adtower("score", shop / "bundle", rows, "--out", out, "--json", figures)
    expected_N = Scorer.load(shop / "bundle").score(pl.read_parquet(rows))
    assert status == 0
    assert pl.read_parquet(out)["p_click"].to_numpy() == pytest.approx(expected_N, abs=1e-7)
    assert json.loads(figures.read_text())["mean_p_click"] == pytest.approx(expected_N.mean())
    assert f"{len(expected_N)} rows scored" in printed


def test_what_a_server_logged_is_replayed(adtower, shop, tmp_path):
    log = tmp_path / "served.jsonl"
    row = pl.read_parquet(shop / "rows.parquet").row(0, named=True)
    request = {"user_id": row["user_id"], "query_id": row["query_id"],
               "time": row["time"].isoformat(), "candidates": [row["product_id"], "x"]}  # fmt: skip
    with served(shop / "bundle", "--log", log) as (process, url):
        body = json.dumps(request).encode()
        with urllib.request.urlopen(f"{url}/score", body) as answer:
            p_click = json.loads(answer.read())["p_click"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    status, printed, _ = adtower("skew", shop / "bundle", log)
    assert (status, "1 requests, 2 candidates" in printed, "no skew" in printed) == (0, True, True)
    line = json.loads(log.read_text())
    assert line["p_click"] == p_click
    line["features"]["time.hour"] += 1
    log.write_text(json.dumps(line) + "\n")
    figures = tmp_path / "figures.json"
    status, printed, _ = adtower("skew", shop / "bundle", log, "--json", figures)
    assert status == 1
    assert "time.hour" in printed
    assert json.loads(figures.read_text())["time.hour.share"] == 1.0


def test_models_for_other_servers_are_written(adtower, shop, tmp_path):
    status, printed, _ = adtower("triton", shop / "bundle", tmp_path / "triton", "--name", "ctr")
    assert (status, "model repository:" in printed) == (0, True)
    assert (tmp_path / "triton" / "ctr" / "config.pbtxt").is_file()
    status, _, err = adtower("mlflow", shop / "bundle", tmp_path / "triton")
    assert (status, "exists already" in err) == (2, True)


@pytest.mark.parametrize("verb", ["score {0} {0}/x", "serve {0}", "skew {0} {0}/x",
                                  "mlflow {0} {0}/x", "triton {0} {0}/x"])  # fmt: skip
def test_a_bundle_that_does_not_exist_is_named(adtower, tmp_path, verb):
    nowhere = tmp_path / "nowhere"
    status, _, err = adtower(*verb.format(nowhere).split())
    assert (status, str(nowhere) in err) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_serving_says_what_to_install(adtower, shop, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "ranking.serve_process", raising=False)
    status, _, err = adtower("serve", shop / "bundle")
    assert status == 2
    assert "pip install 'adtower[serve]'" in err
