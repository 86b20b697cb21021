"""Temporary folders: the next process removes those that killed ones have left, and no others."""

import sys

from tests.helpers.processes import RunningCommand
from utils.filesystem import LOCK_FILE
from utils.temporary_folder import temporary_folder

HOLD = """
import sys, time
from pathlib import Path
from utils.temporary_folder import temporary_folder

with temporary_folder(Path(sys.argv[1]), ".export-") as folder:
    (folder / "half").write_text("of a file")
    print("ready", flush=True)
    time.sleep(100)
"""


def test_it_is_removed_with_its_content(tmp_path):
    with temporary_folder(tmp_path, ".export-") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").touch()
        assert [*tmp_path.iterdir()] == [folder] and folder.name.startswith(".export-")
    assert not [*tmp_path.iterdir()]


def test_that_of_a_killed_process_is_removed_and_that_of_a_live_one_kept(tmp_path):
    other = RunningCommand(sys.executable, "-c", HOLD, tmp_path)
    try:
        assert other.until("ready")
        (held,) = tmp_path.iterdir()
        with temporary_folder(tmp_path, ".export-") as folder:
            assert {*tmp_path.iterdir()} == {held, folder}
        assert (held / "half").read_text() == "of a file"
    finally:
        other.process.kill()
        other.end()
    assert held.is_dir()
    with temporary_folder(tmp_path, ".export-") as folder:
        assert [*tmp_path.iterdir()] == [folder]


def test_what_no_process_made_for_this_is_kept(tmp_path):
    """A folder of another name, a link, and one whose lock was never taken, as on file systems without locks."""
    for name, note in ((".export-mine", "process 1\n"), (".other-abcdefgh", "process 1\n"), (".export-abcdefgh", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / LOCK_FILE).write_text(note)
    (tmp_path / ".export-ijklmnop").symlink_to(tmp_path / ".other-abcdefgh")
    (tmp_path / ".export-file0000").touch()
    before = {*tmp_path.iterdir()}
    with temporary_folder(tmp_path, ".export-") as folder:
        assert {*tmp_path.iterdir()} == before | {folder}
    assert {*tmp_path.iterdir()} == before
