"""Restarts: bad input and requested stops end a run for good, on all machines; other failures do not."""

import os
import sys

import pytest

from tests.helpers.training import spawn_ranks
from utils.distributed.collectives import run_on_all, run_on_main
from utils.distributed.process_group import LAUNCHER_FOLDER_ENV
from utils.distributed.restart import exit_if_ended, read_exit_code, restartable
from utils.errors import RetryableError, UserError


@pytest.fixture
def launcher(tmp_path, monkeypatch):
    """The folder of a launcher on one machine."""
    monkeypatch.setenv(LAUNCHER_FOLDER_ENV, str(tmp_path))
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    return tmp_path


def _fail(world, folder, kind, of_all):
    """Each rank has its own launcher, as on several machines."""

    def check():
        raise kind("a worker hangs")

    def main():
        (run_on_all if of_all else run_on_main)(world, check)

    launcher = folder / str(world.rank)
    launcher.mkdir()
    os.environ[LAUNCHER_FOLDER_ENV] = str(launcher)
    with pytest.raises((SystemExit, RetryableError)):
        restartable(main)()
    assert read_exit_code(launcher) == (0 if kind is RetryableError else 2)


@pytest.mark.parametrize("of_all", [True, False])
@pytest.mark.parametrize("kind", [RetryableError, UserError])
def test_bad_input_ends_a_run_for_good_on_all_ranks(tmp_path, kind, of_all):
    spawn_ranks(_fail, tmp_path, kind, of_all)


def test_a_restarted_process_of_an_ended_run_does_nothing(launcher, capsys):
    def main():
        calls.append("main")
        raise UserError("lr: should be a number")

    calls: list[str] = []
    for code in (2, 0, 0):
        with pytest.raises(SystemExit) as ended:
            restartable(main)()
        assert ended.value.code == code
    assert calls == ["main"] and capsys.readouterr().err == "error: lr: should be a number\n"
    assert read_exit_code(launcher) == 2


def test_a_requested_stop_ends_a_run_for_good_and_a_completed_run_records_nothing(launcher):
    restartable(lambda: None)()
    with pytest.raises(SystemExit):
        restartable(lambda: sys.exit(0))()
    assert read_exit_code(launcher) == 0 and not list(launcher.iterdir())
    with pytest.raises(SystemExit):
        restartable(lambda: sys.exit(143))()
    assert read_exit_code(launcher) == 143


def _learn(world, folder):
    launcher = folder / str(world.rank)
    launcher.mkdir()
    os.environ[LAUNCHER_FOLDER_ENV] = str(launcher)
    exit_if_ended(world)
    if world.rank == 1:
        with pytest.raises(SystemExit):
            restartable(lambda: sys.exit(143))()
    with pytest.raises(SystemExit) as ended:
        exit_if_ended(world)
    assert ended.value.code == 0 and read_exit_code(launcher) == 143


def test_a_machine_learns_that_another_has_ended_the_run(tmp_path):
    spawn_ranks(_learn, tmp_path)


def test_without_a_launcher_errors_end_the_process_as_usual(tmp_path, monkeypatch):
    monkeypatch.delenv(LAUNCHER_FOLDER_ENV, raising=False)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            restartable(lambda: sys.exit(143))()
        assert ended.value.code == 143
    assert not list(tmp_path.iterdir())
