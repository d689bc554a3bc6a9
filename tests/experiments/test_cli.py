"""The command line: every verb explains itself, and bad input ends in words, not in rubble."""

import json
import math
import shutil
import sys

import polars as pl
import pytest

from experiments import cli
from experiments.marketplace.world import make_world
from features.dataset import Dataset

VERBS = (
    *("demo", "run", "data", "embed", "train", "evaluate", "compare", "simulate", "export"),
    *(
        "verify",
        "score",
        "serve",
        "skew",
        "mlflow",
        "triton",
        "report",
        "bench",
        "doctor",
        "reproduce",
        "join",
        "agreement",
        "register",
    ),
)
DATA_VERBS = ("make", "check", "describe", "simulate", "import")
TRACK_VERBS = ("replay",)
IMPORTS = ("homedepot", "fashion", "clicks")


@pytest.fixture(scope="session")
def cli_world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("cli") / "world", products=120, requests=800, seed=0)


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


@pytest.fixture
def broken(cli_world, tmp_path):
    """A copy of the world with one table changed by a function."""

    def spoil(table, change):
        folder = tmp_path / "broken"
        shutil.copytree(cli_world, folder)
        path = folder / f"{table}.parquet"
        change(pl.read_parquet(path)).write_parquet(path)
        return folder

    return spoil


@pytest.mark.parametrize(
    "verb",
    [
        *VERBS,
        *(f"data {verb}" for verb in DATA_VERBS),
        *(f"data import {name}" for name in IMPORTS),
        *(f"track {verb}" for verb in TRACK_VERBS),
    ],
)
def test_every_verb_explains_itself(adtower, verb):
    status, out, _ = adtower(*verb.split(), "--help")
    assert status == 0
    assert out.startswith(f"usage: adtower {verb} [-h]")
    description = out.split("\n\n")[1]
    assert len(description.split()) > 4
    assert description.strip().endswith((".", "?"))


def test_the_overview_names_every_verb_with_a_sentence(adtower):
    status, out, _ = adtower("--help")
    assert status == 0
    for verb in VERBS:
        line = next(line for line in out.splitlines() if f"• {verb} " in line)
        assert len(line.split()) > 6, verb


@pytest.mark.parametrize("verb", ["run", "train", "compare"])
def test_any_setting_of_a_run_can_be_overridden(adtower, verb):
    _, out, _ = adtower(verb, "--help")
    for option in ("--variants", "--seeds", "--tower.embedding-dim", "--stage1.steps",
                   "--stage2.class-ratio", "--ab.requests"):  # fmt: skip
        assert option in out


def test_an_unknown_option_and_an_impossible_value_end_with_status_2(adtower, cli_world, tmp_path):
    out = tmp_path / "run"
    status, _, err = adtower("run", "--data", cli_world, "--out", out, "--towr.lr", "1")
    assert (status, "--towr.lr" in err) == (2, True)
    status, _, err = adtower("run", "--data", cli_world, "--out", out, "--ab.requests", "5")
    assert (status, "greater than or equal to 100" in err) == (2, True)
    assert not out.exists()


def _without(column):
    return lambda frame: frame.drop(column)


def _with(**columns):
    return lambda frame: frame.with_columns(**columns)


def _at_row(row, **values):
    def change(frame):
        here = pl.int_range(pl.len()) == row
        return frame.with_columns(
            pl.when(here).then(pl.lit(value)).otherwise(name).cast(frame[name].dtype).alias(name)
            for name, value in values.items()
        )

    return change


SPOILED = {
    "missing column": ("impressions", _without("clicked"), ("impressions", "clicked")),
    "wrong type": (
        "impressions",
        _with(time=pl.lit("yesterday")),
        ("impressions.time", "String"),
    ),
    "label 3": ("relevance", _at_row(17, label=3), ("relevance.label, row 17", "3")),
    "dangling id": (
        "impressions",
        _at_row(23, product_id="nobody"),
        ("impressions.product_id, row 23", "nobody"),
    ),
    "undecodable image": (
        "products",
        _at_row(31, image=b"no image at all"),
        ("products.image, row 31", "p00031"),
    ),
    "empty table": ("impressions", lambda frame: frame.head(0), ("impressions", "no rows")),
    "one-class clicks": ("impressions", _with(clicked=pl.lit(0, pl.Int8)), ("click", "0")),
}
OF_THE_CATALOGUE = ("label 3", "undecodable image")


@pytest.mark.parametrize("fault", SPOILED)
def test_a_run_on_bad_data_is_refused_by_name_and_writes_nothing(adtower, broken, tmp_path, fault):
    table, change, named = SPOILED[fault]
    data, before = broken(table, change), sorted(tmp_path.rglob("*"))
    status, _, err = adtower("run", "--data", data, "--out", tmp_path / "run")
    assert status == 2, err
    assert err.startswith("adtower: ")
    for words in named:
        assert words in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("fault", OF_THE_CATALOGUE)
def test_embedding_a_bad_catalogue_is_refused_and_writes_nothing(adtower, broken, tmp_path, fault):
    table, change, named = SPOILED[fault]
    data, before = broken(table, change), sorted(tmp_path.rglob("*"))
    status, _, err = adtower("embed", "--data", data, "--out", tmp_path / "run")
    assert status == 2, err
    for words in named:
        assert words in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("fault", SPOILED)
def test_the_check_names_the_same_fault_and_ends_with_status_1(adtower, broken, tmp_path, fault):
    table, change, named = SPOILED[fault]
    data = broken(table, change)
    status, out, err = adtower("data", "check", data, "--json", tmp_path / "check.json")
    assert status == 1, err
    for words in named:
        assert words in out
    assert json.loads((tmp_path / "check.json").read_text())["errors"] >= 1


@pytest.mark.parametrize("verb", ["run", "train", "compare", "embed"])
def test_a_missing_dataset_is_named(adtower, tmp_path, verb):
    status, _, err = adtower(verb, "--data", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert status == 2
    assert f"{tmp_path / 'nowhere'}/dataset.toml does not exist" in err
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_the_spec_names_and_nobody_wrote_is_named(adtower, broken, tmp_path):
    data = broken("queries", lambda frame: frame)
    (data / "queries.parquet").unlink()
    status, _, err = adtower("run", "--data", data, "--out", tmp_path / "run")
    assert status == 2
    assert "table queries is missing" in err
    assert not (tmp_path / "run").exists()


def test_a_table_that_a_variant_needs_is_named_with_the_variant(adtower, broken, tmp_path):
    data = broken("queries", lambda frame: frame)
    spec = data / "dataset.toml"
    spec.write_text(spec.read_text().replace('relevance = "relevance.parquet"\n', ""))
    status, _, err = adtower(
        "train", "--data", data, "--out", tmp_path / "run", "--variants", "dashclip"
    )
    assert status == 2
    assert "has no relevance" in err
    assert "dashclip" in err
    assert not (tmp_path / "run").exists()


def test_square_brackets_of_a_message_are_printed(adtower, broken, tmp_path):
    # As rich's markup, "[tables]" is the name of a style and prints as nothing.
    data = broken("queries", lambda frame: frame)
    spec = data / "dataset.toml"
    spec.write_text(spec.read_text().replace('queries = "queries.parquet"\n', ""))
    status, _, err = adtower("embed", "--data", data, "--out", tmp_path / "run")
    assert status == 2
    assert "name it under [tables] in dataset.toml" in err


def test_settings_that_exclude_each_other_are_said_without_a_frame(adtower):
    status, _, said = adtower("plan", "--tables", "user_id=50e6", "--ranks-per-machine", 2)
    assert status == 2
    assert said == "adtower: ranks_per_machine=2 is more than ranks=1\n"


def test_features_are_built_and_trained_on(adtower, cli_world, tmp_path):
    data, features = ("--data", cli_world), tmp_path / "features"
    assert adtower("features", "build", *data, "--out", features, "--workers", "local:1")[0] == 0
    options = ("--variants", "lightgbm", "--no-track", "--json", tmp_path / "m.json")
    out = tmp_path / "run"
    status, said, _ = adtower("train", *data, "--features", features, "--out", out, *options)
    assert status == 0 and "lightgbm" in said
    figures = json.loads((tmp_path / "m.json").read_text())
    assert 0.4 < figures["lightgbm.validation_auc"] < 1


def test_square_brackets_of_the_data_are_printed(adtower, broken):
    data = broken("impressions", _at_row(5, product_id="[red]nobody[/]"))
    status, out, _ = adtower("data", "check", data)
    assert (status, "'[red]nobody[/]'" in out) == (1, True)


def test_a_finished_run_is_refused_and_left_alone(adtower, cli_world, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text('{"state": "finished", "identity": {}}')
    status, _, err = adtower("run", "--data", cli_world, "--out", out)
    assert status == 2
    assert f"{out} holds a finished run; nothing was written" in err
    assert [path.name for path in out.iterdir()] == ["run.json"]


def test_a_folder_of_something_else_is_refused_and_left_alone(adtower, cli_world, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    status, _, err = adtower("run", "--data", cli_world, "--out", tmp_path, "--overwrite")
    assert status == 2
    assert "is not a run of adtower" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "command",
    [
        "evaluate {0}", "simulate {0}", "export {0} {0}/bundle", "report {0}",
        "score {0} {0}/rows.parquet", "data check {0}", "data describe {0}", "data simulate {0}",
        "data import homedepot {0} {0}/out", "data import fashion {0} {0}/out",
        "data import clicks {0} {0}/out", "reproduce homedepot --source {0} --out {0}/run",
    ],
)  # fmt: skip
def test_a_folder_that_does_not_exist_is_named(adtower, tmp_path, command):
    nowhere = tmp_path / "nowhere"
    status, _, err = adtower(*command.format(nowhere).split())
    assert status == 2, err
    assert str(nowhere) in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_ends_in_words(adtower, cli_world, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = adtower("data", "describe", cli_world, "--json", tmp_path / "file" / "x.json")
    assert status == 2
    assert err.startswith("adtower: ")
    assert str(tmp_path / "file") in err


@pytest.mark.parametrize("verb", ["data describe {0}", "data check {0}", "doctor"])
def test_json_is_one_flat_object_of_finite_numbers(adtower, cli_world, tmp_path, verb):
    path = tmp_path / "new folder" / "figures.json"
    status, _, _ = adtower(*verb.format(cli_world).split(), "--json", path)
    assert status == 0
    figures = json.loads(path.read_text())
    assert figures
    assert all(isinstance(v, float) and math.isfinite(v) for v in figures.values())


def test_describe_prints_and_writes_the_same_figures(adtower, cli_world, tmp_path):
    status, out, _ = adtower("data", "describe", cli_world, "--json", tmp_path / "figures.json")
    assert status == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    impressions = pl.read_parquet(cli_world / "impressions.parquet")
    assert figures["impressions.rows"] == impressions.height
    assert figures["impressions.ctr"] == impressions["clicked"].mean()
    assert all(name in out for name in figures)


def test_a_sound_world_has_no_violations(adtower, cli_world, tmp_path):
    status, out, _ = adtower("data", "check", cli_world, "--json", tmp_path / "check.json")
    assert (status, out.strip()) == (0, "no violations")
    assert json.loads((tmp_path / "check.json").read_text())["violations"] == 0


def test_a_warning_is_told_but_does_not_fail_the_check(adtower, broken):
    data = broken("impressions", lambda frame: frame.reverse())
    status, out, _ = adtower("data", "check", data)
    assert status == 0
    assert "warning: impressions" in out
    assert "0 errors, 1 warnings" in out


def test_make_writes_the_world_that_python_makes(adtower, cli_world, tmp_path):
    out = tmp_path / "made"
    status, _, _ = adtower("data", "make", out, "--products", 120, "--requests", 800, "--seed", 0)
    assert status == 0
    assert Dataset.open(out).fingerprint() == Dataset.open(cli_world).fingerprint()
    status, _, err = adtower("data", "make", out, "--products", 120)
    assert (status, "exists already; nothing was written" in err) == (2, True)


def test_a_catalogue_without_a_log_gets_a_simulated_one(adtower, cli_world, tmp_path):
    data = tmp_path / "catalogue"
    data.mkdir()
    for table in ("products", "queries", "relevance"):
        shutil.copy(cli_world / f"{table}.parquet", data)
    (data / "dataset.toml").write_text(
        'name = "mine"\n[tables]\nproducts = "products.parquet"\n'
        'queries = "queries.parquet"\nrelevance = "relevance.parquet"\n'
    )
    status, _, _ = adtower("data", "simulate", data, "--requests", 500)
    assert status == 0
    dataset = Dataset.open(data)
    assert dataset.spec.simulated
    assert dataset.table("impressions")["request_id"].n_unique() == 500
    assert adtower("data", "check", data)[0] == 0


def test_clicks_are_imported_by_the_columns_named(adtower, tmp_path):
    rows = pl.DataFrame(
        {
            "who": ["a", "a", "b", "b"],
            "page": ["1", "1", "2", "2"],
            "words": ["x", "x", "y", "y"],
            "item": ["u", "v", "u", "v"],
            "slot": [1, 2, 1, 2],
            "hit": [1, 0, 0, 1],
        }
    )
    rows.write_parquet(tmp_path / "log.parquet")
    status, _, err = adtower(
        *("data", "import", "clicks", tmp_path / "log.parquet", tmp_path / "out", "--columns"),
        *("user_id", "who", "request_id", "page", "query_id", "words"),
        *("product_id", "item", "position", "slot", "clicked", "hit"),
    )
    assert status == 0, err
    made = Dataset.open(tmp_path / "out").table("impressions")
    assert made["clicked"].to_list() == [1, 0, 0, 1]
    assert made["user_id"].to_list() == ["a", "a", "b", "b"]


def test_an_interruption_says_how_to_go_on(adtower, monkeypatch, cli_world):
    def cut_off(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr("features.dataset.Dataset.open", cut_off)
    status, _, err = adtower("data", "describe", cli_world)
    assert status == 130
    assert "the same command resumes the run" in err
