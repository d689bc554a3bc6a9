"""Progress goes to standard error, one line a stage where there is no terminal, and never lies."""

import io
import sys

import pytest

from experiments.progress import Silent, Terminal


class Screen(io.StringIO):
    """Standard error as a terminal that keeps what was shown."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr("experiments.progress.time.monotonic", lambda: now[0])
    return now


def test_a_finished_stage_is_one_line_on_standard_error(capsys, clock):
    terminal = Terminal()
    clock[0] += 2
    with terminal.stage("features") as report:
        clock[0] += 3
        report(1, 2, "half")
        report(2, 2, "log loss 0.3")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "    5.0 s  features (3.0 s)  log loss 0.3\n"


def test_square_brackets_are_shown(capsys):
    with Terminal().stage("vectors [dim]") as report:
        report(1, 1, "[bold] 1")
    assert "vectors [dim] (0.0 s)  [bold] 1" in capsys.readouterr().err


def test_steps_end_in_one_line_a_stage(capsys, clock):
    terminal = Terminal()
    for stage in ("stage 1", "stage 2"):
        for step in (1, 2, 3):
            clock[0] += 1
            terminal.steps(stage, step, 3, {"itc": step / 3})
    lines = capsys.readouterr().err.splitlines()
    # The clock of a stage starts at its first report.
    assert lines == ["    3.0 s  stage 1 (2.0 s)  itc 1", "    6.0 s  stage 2 (2.0 s)  itc 1"]


def test_a_stage_that_fails_is_not_reported_as_done(capsys):
    terminal = Terminal()
    with pytest.raises(ValueError, match="no"), terminal.stage("training"):
        raise ValueError("no")
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar_with_steps_and_the_next_stage_too_after_a_failure(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    with pytest.raises(ValueError, match="no"), terminal.stage("first"):
        raise ValueError("no")
    with terminal.stage("second [bold]") as report:
        report(3, 4, "nearly [dim]")
    shown = screen.getvalue()
    assert "first" in shown
    assert "3/4" in shown
    # Once in the bar, and once in the line that remains.
    assert shown.count("second [bold]") >= 2
    assert shown.count("nearly [dim]") >= 2
    assert "left" in shown


def test_steps_inside_a_stage_do_not_fight_it_for_the_screen(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with terminal.stage("outer") as report:
        terminal.steps("inner", 1, 1, {"loss": 0.5})
        report(1, 2, "outer goes on")
    assert "outer goes on" in screen.getvalue()


def test_silence_takes_every_report():
    with Silent().stage("any") as report:
        report(1, 2, "text")
    Silent().steps("any", 1, 2, {"loss": 1.0})
