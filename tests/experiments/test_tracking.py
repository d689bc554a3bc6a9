import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
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


class Lost:
    def __getattr__(self, name):
        raise ConnectionError("gone")


def test_a_store_lost_on_the_way_costs_one_warning_and_catches_up(uri, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.0)
    with Tracker(uri, run_name="x", run_folder=tmp_path) as tracker:
        tracker._store.client = Lost()
        with pytest.warns(TrackingUnavailable, match="ConnectionError: gone.*track replay"):
            tracker.log_metrics({"auc": 0.7})
        # The next word opens the store again, and what waited goes first.
        with tracker.variant("dashclip") as variant:
            variant.log_curve("loss", {1: 0.5, 2: 0.4})
        assert tracker.reachable
        run_id, child_id = tracker.run_id_, variant.run_id
    assert client(uri).get_run(run_id).data.metrics == {"auc": 0.7}
    assert len(client(uri).get_metric_history(child_id, "loss")) == 2
    assert tracking.replay(tmp_path) == 0


def test_what_an_unreachable_store_missed_is_replayed_once(tmp_path):
    blocked, run_folder = tmp_path / "store", tmp_path / "run"
    blocked.write_text("a file where the store's folder should be")
    report = tmp_path / "report.html"
    report.write_text("<p>hello</p>")
    late = default_uri(blocked)
    with (
        pytest.warns(TrackingUnavailable, match=f"MLflow at {late} cannot be used"),
        Tracker(late, run_name="x", params={"seed": 3}, run_folder=run_folder) as tracker,
    ):
        tracker.log_metrics({"auc": 0.7})
        tracker.log_artifacts([report])
        with tracker.variant("dashclip") as variant:
            variant.log_curve("loss", {1: 0.5, 2: 0.4})
    with pytest.raises(ValueError, match="7 of 7 records still wait"):
        tracking.replay(run_folder)
    blocked.unlink()
    assert tracking.replay(run_folder) == 7
    assert tracking.replay(run_folder) == 0
    store = client(late)
    experiment = store.get_experiment_by_name(tracking.EXPERIMENT)
    child, run = store.search_runs([experiment.experiment_id], order_by=["attributes.run_name"])
    assert (run.info.run_name, run.info.status, run.data.params["seed"]) == ("x", "FINISHED", "3")
    assert [a.path for a in store.list_artifacts(run.info.run_id)] == ["report.html"]
    # A second telling of the same records doubles nothing.
    state = json.loads((run_folder / "tracking" / "state.json").read_text())
    (run_folder / "tracking" / "state.json").write_text(json.dumps({**state, "sent": 0}))
    assert tracking.replay(run_folder) == 7
    assert len(store.get_metric_history(child.info.run_id, "loss")) == 2
    assert len(store.search_runs([experiment.experiment_id])) == 2


def test_a_required_store_that_does_not_answer_is_refused_by_its_uri(tmp_path):
    # Nobody listens on the discard port.
    nobody = "http://127.0.0.1:9"
    with (
        pytest.raises(ValueError, match=f"MLflow at {nobody} cannot be used .* is required"),
        Tracker(nobody, run_name="x", run_folder=tmp_path, required=True),
    ):
        raise AssertionError("the run went on")


def test_a_run_without_a_journal_cannot_be_replayed(tmp_path):
    with pytest.raises(ValueError, match=r"holds no journal of tracking .*--no-track"):
        tracking.replay(tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
from experiments.tracking import Tracker
with Tracker(sys.argv[1], run_name="cut", run_folder=Path(sys.argv[2])) as tracker:
    tracker.log_curve("loss", {1: 0.5})
    tracker.begin_variant("dashclip").log_metrics({"auc": 0.7})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_is_reaped_by_the_next_and_taken_up_by_its_own_command(uri, tmp_path):
    folder = tmp_path / "cut"
    command = [sys.executable, "-c", KILLED, uri, str(folder)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
    ids = json.loads((folder / "tracking" / "state.json").read_text())["runs"]
    assert set(ids) == {"", "dashclip"}
    store = client(uri)
    assert {store.get_run(i).info.status for i in ids.values()} == {"RUNNING"}
    with Tracker(uri, run_name="another") as tracker:
        another = tracker.run_id_
        assert {store.get_run(i).info.status for i in ids.values()} == {"KILLED"}
        # Its own process lives.
        assert store.get_run(another).info.status == "RUNNING"
    # Half a line, as a process leaves it that is killed while it writes.
    with (folder / "tracking" / "journal.jsonl").open("a") as journal:
        journal.write('{"record": "metr')
    with Tracker(uri, run_name="cut", run_folder=folder) as tracker:
        assert tracker.run_id_ == ids[""]
        assert store.get_run(ids[""]).info.status == "RUNNING"
        tracker.log_curve("loss", {2: 0.4})
        tracker.begin_variant("dashclip").log_metrics({"log_loss": 0.1})
    assert [m.step for m in store.get_metric_history(ids[""], "loss")] == [1, 2]
    child = store.get_run(ids["dashclip"])
    assert child.data.metrics == {"auc": 0.7, "log_loss": 0.1}
    assert {store.get_run(i).info.status for i in ids.values()} == {"FINISHED"}
    # The half line was cut off, or the next one would have been written behind it.
    assert tracking.replay(folder) == 0


@pytest.mark.slow
def test_sixteen_processes_on_a_fresh_store_lose_nothing(tmp_path):
    code = """
import sys
from pathlib import Path
from experiments.tracking import Tracker
uri, name, folder = sys.argv[1:]
with Tracker(uri, run_name=name, run_folder=Path(folder)) as tracker:
    for step in range(20):
        tracker.log_metrics({"loss": 1 / (step + 1)}, step=step)
    for variant in ("production", "dashclip"):
        with tracker.variant(variant) as child:
            child.log_curve("validation", {step: 0.5 for step in range(50)})
sys.exit(0 if tracker.reachable else 1)
"""
    fresh = default_uri(tmp_path / "runs")
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, fresh, str(i), str(tmp_path / f"run{i}")],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(16)
    ]
    said = [process.communicate(timeout=900)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 16, said
    store = client(fresh)
    experiment = store.get_experiment_by_name(tracking.EXPERIMENT)
    runs = store.search_runs([experiment.experiment_id], max_results=1000)
    assert len(runs) == 48
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        parent = "mlflow.parentRunId" not in run.data.tags
        history = store.get_metric_history(run.info.run_id, "loss" if parent else "validation")
        assert len(history) == (20 if parent else 50)


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
        "from experiments.tracking_store import import_mlflow\n"
        "assert 'mlflow' not in sys.modules\n"
        "tracking.Tracker('sqlite:///x.db', run_name='x')\n"
        "assert 'mlflow' not in sys.modules\n"
        "import_mlflow()\n"
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


def _serve(folder, port):
    """Start a tracking server and wait until it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", default_uri(folder)]
    command += ["--artifacts-destination", str(folder / "files")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("a") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return server
        except OSError:
            time.sleep(0.2)
    raise AssertionError((folder / "server.log").read_text())


def _stop(server):
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_server_that_dies_and_comes_back_has_missed_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server, folder = _serve(tmp_path, port), tmp_path / "run"
    address = f"http://127.0.0.1:{port}"
    try:
        with Tracker(address, run_name="x", run_folder=folder, required=True) as tracker:
            tracker.log_curve("loss", {1: 0.5})
            _stop(server)
            tracker.required = False
            with pytest.warns(TrackingUnavailable, match=address):
                tracker.log_curve("loss", {2: 0.4})
            tracker.begin_variant("dashclip").log_metrics({"auc": 0.7})
            server = _serve(tmp_path, port)
            tracker.log_curve("loss", {3: 0.3})
            run_id = tracker.run_id_
        store = client(address)
        assert [m.value for m in store.get_metric_history(run_id, "loss")] == [0.5, 0.4, 0.3]
        child = store.get_run(json.loads((folder / "tracking" / "state.json").read_text())
                              ["runs"]["dashclip"])  # fmt: skip
        assert (child.info.status, child.data.metrics) == ("FINISHED", {"auc": 0.7})
    finally:
        _stop(server)
