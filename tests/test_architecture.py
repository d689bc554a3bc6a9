"""The four packages stand in a line, and no import points back."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINE = ("features", "embeddings", "ranking", "experiments")
WITHOUT_TORCH = (
    "features.pipeline",
    "features.check",
    "embeddings.store",
    "ranking.metrics",
    "ranking.intervals",
    "ranking.bundle",
    "ranking.score",
    "experiments.cli",
)


def imported_packages(path: Path) -> set[str]:
    """Top-level names imported anywhere in a file, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add((node.module or "").split(".")[0])
    return names


def points_back(package: str, names: set[str]) -> set[str]:
    """The packages among ``names`` that stand after ``package`` in the line."""
    return names & set(LINE[LINE.index(package) + 1 :])


@pytest.mark.parametrize("package", LINE)
def test_no_import_points_back(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 3, f"{package} looks empty: is the test looking in the right place?"
    for path in files:
        assert not points_back(package, imported_packages(path)), path


def test_a_backward_import_would_be_found(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from experiments.cli import main\n    return main\n")
    assert points_back("features", imported_packages(bad)) == {"experiments"}


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_scoring_data_and_the_command_line_do_not_load_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("module", ["ranking.certificate", "ranking.batch_score"])
def test_verifying_and_scoring_load_nothing_that_checks_requests_or_datasets(module):
    unwanted = {"pydantic", "scipy", "tokenizers", "tyro", "rich", "fsspec"}
    code = (
        f"import sys, {module}\n"
        f"loaded = {unwanted!r} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_pickle_and_no_unsafe_loading():
    banned = {"pickle", "cloudpickle", "dill", "joblib"}
    for package in LINE:
        for path in (ROOT / package).rglob("*.py"):
            assert not banned & imported_packages(path), path
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    assert called not in {"torch.load", "eval", "exec", "yaml.load"}, (
                        f"{path}:{node.lineno} calls {called}"
                    )
