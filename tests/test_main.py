"""How idle threads wait is settled before torch is loaded."""

from importlib.metadata import version

import pytest

from experiments.__main__ import main, refused_on_ranks
from experiments.idle_threads import SPINS, as_the_user_had, others_run, settle_waiting_


@pytest.mark.parametrize(
    ("busy", "settled"),
    [(True, {"OMP_WAIT_POLICY": "PASSIVE"}), (False, {"GOMP_SPINCOUNT": SPINS})],
)
def test_idle_threads_sleep_at_once_where_others_compute(busy, settled):
    environment: dict[str, str] = {}
    settle_waiting_(environment, busy)
    assert environment.items() >= settled.items()
    assert not environment.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} - settled.keys()
    assert as_the_user_had({"HOME": "/root", **environment}) == {"HOME": "/root"}


@pytest.mark.parametrize("own", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_the_user_has_settled_stays(own):
    environment = dict(own)
    settle_waiting_(environment, busy=False)
    assert environment == own
    assert as_the_user_had(environment) == own


@pytest.mark.parametrize(
    ("line", "busy"),
    [("0.00 0.01 0.05 1/120 77\n", False), ("0.00 0.01 0.05 3/120 77\n", True), ("?", True)],
)
def test_a_machine_is_busy_where_more_than_this_process_runs(tmp_path, line, busy):
    path = tmp_path / "loadavg"
    path.write_text(line)
    assert others_run(path) is busy


def test_what_is_over_in_a_moment_does_not_make_a_machine_busy(monkeypatch):
    class Loads:
        """Busy for the first looks, then quiet; or busy all along."""

        def __init__(self, busy_looks):
            self.left = busy_looks

        def read_text(self):
            self.left -= 1
            return f"0 0 0 {3 if self.left >= 0 else 1}/120 77"

    monkeypatch.setattr("experiments.idle_threads.time.sleep", lambda seconds: None)
    assert others_run(Loads(5))
    assert not others_run(Loads(5), patience_s=1.0)
    assert others_run(Loads(100), patience_s=1.0)


def test_a_machine_that_does_not_tell_counts_as_busy(tmp_path):
    assert others_run(tmp_path / "none")


def test_the_version_is_told(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["adtower", "--version"])
    main()
    assert capsys.readouterr().out == f"adtower {version('adtower')}\n"


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("train --data d", None),
        ("compare --out r", None),
        ("embed --data d", None),
        ("embed index --data d", None),
        ("embed-index --data d", None),
        ("tune --help", None),
        ("", None),
        ("demo", "demo was started 2 times"),
        ("embed export r out", "embed export was started 2 times"),
        ("evaluate run", "evaluate was started 2 times"),
    ],
)
def test_ranks_are_refused_what_each_would_do_for_itself(words, refused):
    assert refused_on_ranks(words.split(), 1) is None
    said = refused_on_ranks(words.split(), 2)
    assert said is None if refused is None else said.startswith(refused)


def test_one_rank_says_why_and_all_end(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["adtower", "evaluate", "run"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
    assert capsys.readouterr().err.count("Give this command without torchrun") == 1
