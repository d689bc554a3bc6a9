"""The bundle as an MLflow model: the same scores, and nothing pickled."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml

from ranking.mlflow_model import save_mlflow_model
from ranking.score import Scorer

# MLflow warns of its own type hints when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")


@pytest.fixture(scope="module")
def model(front, tmp_path_factory):
    return save_mlflow_model(front.bundle, tmp_path_factory.mktemp("mlflow") / "model")


def pandas_rows(front, rows=40):
    names = ("product_id", "time", "user_id", "query_id", "device", "bid")
    frame = front.impressions[:rows].select(names).to_pandas()
    return frame.assign(time=frame["time"].dt.tz_localize(None))


def test_mlflow_scores_as_the_bundle_does(model, front):
    loaded = mlflow.pyfunc.load_model(str(model))
    found = loaded.predict(pandas_rows(front))
    expected_N = Scorer.load(front.bundle).score(front.impressions[:40].drop("query"))
    np.testing.assert_allclose(found["p_click"], expected_N, rtol=0, atol=1e-7)


def test_visitors_pages_and_texts_need_no_ids(model, front):
    loaded = mlflow.pyfunc.load_model(str(model))
    rows = pandas_rows(front, 5).drop(columns=["user_id", "query_id"])
    without = loaded.predict(rows)["p_click"]
    with_text = loaded.predict(rows.assign(query="red tea"))["p_click"]
    assert np.abs(with_text - without).max() > 1e-4


def test_a_missing_number_is_missing_and_a_missing_column_is_refused(model, front):
    loaded = mlflow.pyfunc.load_model(str(model))
    rows = pandas_rows(front, 4).assign(bid=[1.0, None, 2.0, None])
    assert loaded.predict(rows)["p_click"].between(0, 1).all()
    with pytest.raises(mlflow.exceptions.MlflowException, match="device"):
        loaded.predict(rows.drop(columns="device"))


def test_the_model_is_code_and_a_bundle_and_no_pickle(model):
    names = [path.name for path in model.rglob("*")]
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".joblib"))]
    recorded = yaml.safe_load((model / "MLmodel").read_text())
    assert (
        recorded["flavors"]["python_function"]["loader_module"]
        == "mlflow.pyfunc.loaders.code_model"
    )
    assert "python_model" not in recorded["flavors"]["python_function"]
    requirements = (model / "requirements.txt").read_text()
    assert "onnxruntime==" in requirements
    assert "torch" not in requirements


def test_signature_and_example_agree(model, front):
    loaded = mlflow.pyfunc.load_model(str(model))
    assert loaded.metadata.signature.inputs.input_names() == [
        "product_id", "time", "user_id", "query_id", "query", "device", "bid",
    ]  # fmt: skip
    example = json.loads((model / "serving_input_example.json").read_text())["dataframe_split"]
    rows = pd.DataFrame(example["data"], columns=example["columns"])
    rows["time"] = pd.to_datetime(rows["time"])
    found = loaded.predict(rows)
    expected_N = Scorer.load(front.bundle).score(front.impressions[480:483].drop("query"))
    np.testing.assert_allclose(found["p_click"], expected_N, rtol=0, atol=1e-7)


def test_the_model_runs_where_adtower_is_not_installed(model, tmp_path):
    # From another folder and without site's editable finder, only the copied code is found.
    code = (
        "import sys\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "import mlflow, pandas as pd\n"
        f"model = mlflow.pyfunc.load_model({str(model)!r})\n"
        "rows = pd.DataFrame({'product_id': ['p1'], 'time': pd.to_datetime(['2024-03-05']),\n"
        "                     'device': ['tv'], 'bid': [1.0]})\n"
        "assert 0 < model.predict(rows)['p_click'][0] < 1\n"
        "import ranking\n"
        f"assert ranking.__file__.startswith({str(model)!r}), ranking.__file__\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_an_existing_folder_is_not_overwritten(front, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        save_mlflow_model(front.bundle, tmp_path / "model")


@pytest.mark.slow
def test_mlflow_models_serve_answers(model, front, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "-h",
               "127.0.0.1", "-p", str(port), "--env-manager", "local"]  # fmt: skip
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_TRACKING_URI":
                   f"sqlite:///{tmp_path}/mlflow.db", "PATH":
                   f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # fmt: skip
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    try:
        rows = pandas_rows(front, 5)
        payload = {"dataframe_split": json.loads(rows.to_json(orient="split", date_format="iso"))}
        del payload["dataframe_split"]["index"]
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps(payload).encode(),
            {"Content-Type": "application/json"},
        )
        end = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(request) as answer:
                    found = json.loads(answer.read())
                break
            except urllib.error.HTTPError:
                raise
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < end, "the server did not start"
                time.sleep(0.5)
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
    expected_N = Scorer.load(front.bundle).score(front.impressions[:5].drop("query"))
    p_click = [row["p_click"] for row in found["predictions"]]
    np.testing.assert_allclose(p_click, expected_N, rtol=0, atol=1e-7)
