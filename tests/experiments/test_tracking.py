import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from experiments import tracking
from experiments.tracking import Tracker, TrackingUnavailable, default_uri

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One store for the whole file: creating its tables takes seconds."""
    return default_uri(tmp_path_factory.mktemp("runs"))


def client(uri):
    import mlflow

    return mlflow.MlflowClient(tracking_uri=uri)


@pytest.fixture(autouse=True)
def _library_deprecations():
    # SQLAlchemy warns MLflow's own code; the tests open the store directly too.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def test_a_run_comes_back_with_its_variants(uri, tmp_path):
    report = tmp_path / "report.html"
    report.write_text("<p>hello</p>")
    settings = {"seed": 3, "tower": {"lr": 0.001}}
    tags = {"data_fingerprint": "abc", "vectors": ""}
    with Tracker(uri, run_name="demo", params=settings, tags=tags) as tracker:
        run_id = tracker.run_id_
        tracker.log_metrics({"dashclip.auc": 0.7123, "embedding.dashclip.recall@10": 0.5})
        tracker.log_artifacts([report])
        with tracker.variant("dashclip", params={"vectors": "dashclip"}) as variant:
            variant_id = variant.run_id
            variant.log_curve("validation_log_loss", {1: 0.5, 2: 0.25})
            variant.log_metrics({"auc": 0.7123})
    store = client(uri)
    run, child = store.get_run(run_id), store.get_run(variant_id)
    assert (run.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert run.data.params == {"seed": "3", "tower.lr": "0.001"}
    assert run.data.metrics == {"dashclip.auc": 0.7123, "embedding.dashclip.recall_at_10": 0.5}
    assert run.data.tags["data_fingerprint"] == "abc" and "vectors" not in run.data.tags
    assert child.data.tags["mlflow.parentRunId"] == run_id
    history = store.get_metric_history(variant_id, "validation_log_loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.25)]
    assert [a.path for a in store.list_artifacts(run_id)] == ["report.html"]


def test_more_metrics_than_one_call_takes_all_arrive(uri):
    with Tracker(uri, run_name="many", params={f"p{i}": i for i in range(150)}) as tracker:
        run_id = tracker.run_id_
        tracker.log_curve("loss", {step: 1.0 / (step + 1) for step in range(1500)})
    assert len(client(uri).get_metric_history(run_id, "loss")) == 1500
    assert len(client(uri).get_run(run_id).data.params) == 150


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_by_name_and_nothing_of_it_is_stored(uri, bad):
    with Tracker(uri, run_name="bad") as tracker:
        run_id = tracker.run_id_
        with pytest.raises(ValueError, match=r"dashclip\.auc = (nan|inf)"):
            tracker.log_metrics({"good": 1.0, "dashclip.auc": bad})
        with pytest.raises(ValueError, match=r"loss at step 7 = (nan|inf)"):
            tracker.log_curve("loss", {1: 0.5, 7: bad})
    assert client(uri).get_run(run_id).data.metrics == {}


def test_an_exception_leaves_run_and_variant_failed(uri):
    with pytest.raises(RuntimeError, match="diverged"), Tracker(uri, run_name="x") as tracker:
        run_id = tracker.run_id_
        with tracker.variant("dashclip") as variant:
            variant_id = variant.run_id
            raise RuntimeError("diverged")
    assert {client(uri).get_run(i).info.status for i in (run_id, variant_id)} == {"FAILED"}


def test_without_a_store_the_run_goes_on_with_one_warning(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    report = tmp_path / "report.html"
    report.write_text("")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Tracker(default_uri(tmp_path / "file"), run_name="x") as tracker:
            assert not tracker.reachable and tracker.run_id_ is None
            tracker.log_metrics({"auc": 0.7})
            tracker.log_artifacts([report])
            with tracker.variant("dashclip") as variant:
                variant.log_curve("loss", {1: 0.5})
            # What is wrong with the figures is still wrong.
            with pytest.raises(ValueError, match="auc = nan"):
                tracker.log_metrics({"auc": math.nan})
    assert len([w for w in caught if w.category is TrackingUnavailable]) == 1


def test_a_store_lost_on_the_way_costs_one_warning(uri):
    class Lost:
        def __getattr__(self, name):
            raise ConnectionError("gone")

    with Tracker(uri, run_name="x") as tracker:
        tracker._client = Lost()
        with pytest.warns(TrackingUnavailable, match="ConnectionError: gone"):
            tracker.log_metrics({"auc": 0.7})
        tracker.log_metrics({"auc": 0.8})
        with tracker.variant("dashclip") as variant:
            variant.log_metrics({"auc": 0.7})


def test_two_processes_may_open_a_fresh_store_at_once(tmp_path):
    code = (
        "import sys; from experiments.tracking import Tracker\n"
        "with Tracker(sys.argv[1], run_name=sys.argv[2]) as t: t.log_metrics({'auc': 0.5})\n"
        "sys.exit(0 if t.reachable else 1)"
    )
    fresh = default_uri(tmp_path / "runs")
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, fresh, str(i)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    store = client(fresh)
    experiment = store.get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment is not None
    runs = store.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"0", "1"}
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_mlflow_is_imported_only_when_used_and_never_calls_home_or_unpickles():
    code = (
        "import os, sys; from experiments import tracking\n"
        "assert 'mlflow' not in sys.modules\n"
        "tracking.Tracker('sqlite:///x.db', run_name='x')\n"
        "assert 'mlflow' not in sys.modules\n"
        "tracking._import_mlflow()\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled\n"
        "from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION as p\n"
        "assert is_telemetry_disabled() and p.get() is False\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_an_empty_uri_and_a_missing_artifact_are_refused(uri, tmp_path):
    with pytest.raises(ValueError, match="URI is empty"):
        Tracker("", run_name="x")
    with (
        Tracker(uri, run_name="x") as tracker,
        pytest.raises(FileNotFoundError, match=r"none\.html"),
    ):
        tracker.log_artifacts([tmp_path / "none.html"])
