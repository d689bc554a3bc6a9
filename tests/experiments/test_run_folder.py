"""A run folder begins, resumes or refuses, and never shows half a file."""

import pytest

from experiments.run_folder import STATE, RunFolder

IDENTITY = {"settings": {"seed": 0, "tower": {"lr": 0.1}}, "data": "abc"}


def test_a_finished_run_is_refused_and_left_alone(tmp_path):
    folder = RunFolder.begin_(tmp_path / "run", IDENTITY)
    folder.once("part", lambda at: at.write_text("kept"))
    folder.finish_()
    with pytest.raises(ValueError, match="holds a finished run; nothing was written"):
        RunFolder.begin_(tmp_path / "run", IDENTITY)
    assert (tmp_path / "run" / "part").read_text() == "kept"


def test_overwrite_starts_from_nothing(tmp_path):
    folder = RunFolder.begin_(tmp_path / "run", IDENTITY)
    folder.once("part", lambda at: at.write_text("old"))
    folder.finish_()
    RunFolder.begin_(tmp_path / "run", IDENTITY, overwrite=True)
    assert not (tmp_path / "run" / "part").exists()


def test_overwrite_replaces_an_interrupted_run_of_other_settings_only(tmp_path):
    RunFolder.begin_(tmp_path / "run", IDENTITY).once("part", lambda at: at.write_text("kept"))
    assert RunFolder.begin_(tmp_path / "run", IDENTITY, overwrite=True).resumed
    assert (tmp_path / "run" / "part").exists()
    other = {**IDENTITY, "data": "other"}
    assert not RunFolder.begin_(tmp_path / "run", other, overwrite=True).resumed
    assert not (tmp_path / "run" / "part").exists()


def test_an_interrupted_run_of_the_same_settings_goes_on(tmp_path):
    made = []

    def make(at):
        made.append(at)
        at.write_text("x")

    RunFolder.begin_(tmp_path / "run", IDENTITY).once("part", make)
    again = RunFolder.begin_(tmp_path / "run", IDENTITY)
    again.once("part", make)
    assert again.resumed
    assert len(made) == 1


def test_an_interrupted_run_of_other_settings_is_refused_by_name(tmp_path):
    RunFolder.begin_(tmp_path / "run", IDENTITY)
    other = {"settings": {"seed": 1, "tower": {"lr": 0.2}}, "data": "abc"}
    with pytest.raises(ValueError, match=r"differs in settings\.seed, settings\.tower\.lr;"):
        RunFolder.begin_(tmp_path / "run", other)


def test_a_folder_that_is_no_run_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not a run of adtower"):
        RunFolder.begin_(tmp_path, IDENTITY, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_part_that_was_cut_off_does_not_exist(tmp_path):
    folder = RunFolder.begin_(tmp_path / "run", IDENTITY)

    def cut_off(at):
        at.mkdir()
        (at / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.once("model", cut_off)
    assert not (folder.path / "model").exists()

    def whole(at):
        at.mkdir()
        (at / "whole").write_text("whole")

    folder.once("model", whole)
    assert sorted(p.name for p in (folder.path / "model").iterdir()) == ["whole"]


def test_a_run_made_from_changed_data_is_not_reopened(tmp_path):
    RunFolder.begin_(tmp_path / "run", IDENTITY).finish_()
    with pytest.raises(ValueError, match="was made from something else: data differ"):
        RunFolder.reopen(tmp_path / "run", {**IDENTITY, "data": "changed"})
    assert (tmp_path / "run" / STATE).is_file()
