"""A retryable error ends all processes so that torchrun restarts them; any other error ends the run."""

import pytest

from tests.helpers.training import spawn_ranks
from utils.distributed.collectives import run_on_all, run_on_main
from utils.distributed.exit_status import EXIT_STATUS_FILE, record_exit_status
from utils.errors import RetryableError, RetryableExit, UserError


def _fail(world, folder, kind, of_all):
    def check():
        raise kind("a worker hangs")

    expected = kind if world.is_main else RetryableExit if kind is RetryableError else SystemExit
    with pytest.raises(SystemExit if kind is UserError else expected), record_exit_status(folder, world):
        (run_on_all if of_all else run_on_main)(world, check)


@pytest.mark.parametrize("of_all", [True, False])
@pytest.mark.parametrize(("kind", "noted"), [(RetryableError, False), (UserError, True)])
def test_a_note_ends_a_run_for_good(tmp_path, monkeypatch, kind, noted, of_all):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ours")
    spawn_ranks(_fail, tmp_path, kind, of_all)
    assert (tmp_path / EXIT_STATUS_FILE).is_file() == noted
