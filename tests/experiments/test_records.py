import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest

from experiments import records
from experiments.records import (
    Environment,
    collect_environment,
    read_json,
    read_metrics,
    write_bytes,
    write_json,
    write_metrics,
)


def test_json_comes_back_equal(tmp_path):
    value = {"b": [1, 2.5, None], "a": {"ü": True}}
    write_json(tmp_path / "new" / "x.json", value)
    assert read_json(tmp_path / "new" / "x.json") == value
    assert list(read_json(tmp_path / "new" / "x.json")) == ["b", "a"]


def test_a_write_that_is_cut_off_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})

    def fail(self, target):
        raise OSError("power cut")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="power cut"):
        write_bytes(path, b"new")
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_the_new_content_is_never_seen_in_parts(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    seen = []
    sync = records.os.fsync

    def look(descriptor):
        sync(descriptor)
        seen.append(path.read_text())

    monkeypatch.setattr(records.os, "fsync", look)
    write_json(path, {"new": 2})
    assert [json.loads(text) for text in seen] == [{"old": 1}]


def test_nan_is_refused_with_its_place(tmp_path):
    with pytest.raises(ValueError, match=r"rows\[1\]\.auc = nan"):
        write_json(tmp_path / "x.json", {"rows": [{"auc": 0.5}, {"auc": math.nan}]})
    assert not list(tmp_path.iterdir())


def test_what_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x\.json cannot be written as JSON"):
        write_json(tmp_path / "x.json", {"when": object()})


def test_metrics_are_sorted_plain_numbers(tmp_path):
    path = tmp_path / "metrics.json"
    write_metrics(path, {"b.auc": np.float32(0.5), "a.clicks": 3})
    assert list(read_json(path).items()) == [("a.clicks", 3.0), ("b.auc", 0.5)]
    assert read_metrics(path) == {"a.clicks": 3.0, "b.auc": 0.5}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "0.5", [1]])
def test_every_unfit_metric_is_named(tmp_path, bad):
    with pytest.raises(ValueError, match=r"x\.auc = .*, y\.auc = nan"):
        write_metrics(tmp_path / "m.json", {"good": 1.0, "x.auc": bad, "y.auc": math.nan})
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"auc": 0.')
    with pytest.raises(ValueError, match=r"metrics\.json is not JSON.*cut off"):
        read_metrics(path)
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="holds a list, not one object"):
        read_metrics(path)


@pytest.mark.parametrize(("name", "value"), [("CC", "/nowhere/cc"), ("ADTOWER_KERNELS", "off")])
def test_the_environment_says_where_no_kernels_were_compiled(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert collect_environment().compiled_kernels is False


def test_a_record_older_than_the_kernels_is_read():
    older = collect_environment().model_dump()
    del older["compiled_kernels"]
    assert Environment.model_validate(older).compiled_kernels is None


def test_the_environment_says_what_runs_here(tmp_path):
    environment = collect_environment()
    assert environment.cores >= 1 and environment.threads >= 1
    assert environment.versions["numpy"] == np.__version__
    write_json(tmp_path / "environment.json", environment)
    assert Environment.model_validate(read_json(tmp_path / "environment.json")) == environment


def test_code_outside_a_repository_has_no_git_state(tmp_path):
    assert records._git_state(tmp_path) is None


def test_an_installed_copy_inside_another_repository_has_no_git_state(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    git("init")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "-m", "theirs")
    assert records._git_state(tmp_path) is None
