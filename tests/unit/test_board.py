"""TensorBoard's curves on a disk that is really full, read back with TensorBoard's own reader."""

import os
import subprocess
import tracemalloc

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config.base import Config
from utils.logs.run_log import RunLog, tensorboard_folder
from utils.logs.tensorboard import TensorBoardWriter

FULL = "No space left on device"
WARNING = f"TensorBoard: {{}} is not writable ({FULL}); training continues, points may be missing"


@pytest.fixture
def disk(tmp_path):
    """File system of 256 KB, filled by a ballast file."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield Disk(folder)
    subprocess.run(["umount", "-l", folder], check=True)


class Disk:
    def __init__(self, folder):
        self.logs, self.ballast = folder / "logs" / "out", folder / "ballast"

    def fill(self):
        with self.ballast.open("ab", buffering=0) as file, pytest.raises(OSError, match=FULL):
            while True:
                file.write(bytes(4096))

    def free(self):
        self.ballast.unlink()


def add(board, *steps):
    for step in steps:
        board.add({"train/Loss": step / 8, "train/lr": 0.5}, step)


def curve(logs, tag="train/Loss"):
    """The points of a curve: step and value."""
    return [(point.step, point.value) for point in EventAccumulator(str(logs)).Reload().Scalars(tag)]


def points(*steps):
    return [(step, step / 8) for step in steps]


def warnings(log_capture):
    return [record.getMessage() for record in log_capture.records if record.levelname == "WARNING"]


def test_no_point_is_lost_to_a_disk_that_was_full_twice(disk, log_capture):
    """Long enough each time that the file's last block is full too, and a record is cut."""
    board = TensorBoardWriter(disk.logs, 0, True)
    add(board, *range(50))
    for begin in (50, 250):
        disk.fill()
        add(board, *range(begin, begin + 150))
        assert curve(disk.logs) == points(*range(len(curve(disk.logs)))) != points(*range(begin + 150))
        disk.free()
        add(board, *range(begin + 150, begin + 200))
    board.close()
    assert curve(disk.logs) == points(*range(450))
    assert curve(disk.logs, "train/lr") == [(step, 0.5) for step in range(450)]
    assert warnings(log_capture) == [WARNING.format(disk.logs)] * 2


def test_a_disk_that_is_full_for_long_loses_points_and_no_later_ones(disk):
    """More points than the buffer of the file holds."""
    board = TensorBoardWriter(disk.logs, 0, True)
    add(board, *range(50))
    disk.fill()
    add(board, *range(50, 1000))
    disk.free()
    add(board, *range(1000, 1050))
    board.close()
    steps = [step for step, _ in curve(disk.logs)]
    kept = len(steps) - 50
    assert steps == [*range(kept), *range(1000, 1050)] and 400 < kept < 900


def test_a_reader_that_follows_the_file_sees_each_point_once(disk):
    board = TensorBoardWriter(disk.logs, 0, True)
    add(board, *range(10))
    reader = EventAccumulator(str(disk.logs)).Reload()
    disk.fill()
    add(board, *range(10, 150))
    reader.Reload()
    disk.free()
    add(board, 150)
    assert [point.step for point in reader.Reload().Scalars("train/Loss")] == list(range(151))


def test_a_disk_full_at_the_beginning(disk, log_capture):
    disk.fill()
    board = TensorBoardWriter(disk.logs, 0, True)
    add(board, 1, 2)
    assert not any(path.stat().st_size for path in disk.logs.glob("*"))
    disk.free()
    board.close()
    assert curve(disk.logs) == points(1, 2)
    assert len(warnings(log_capture)) == 1


def test_a_full_disk_is_warned_of_once(disk, log_capture):
    board = TensorBoardWriter(disk.logs, 0, True)
    add(board, *range(10))
    disk.fill()
    add(board, *range(10, 210))
    board.close()
    kept = len(curve(disk.logs)) + len(curve(disk.logs, "train/lr"))
    assert 20 <= kept < 420
    assert warnings(log_capture) == [WARNING.format(disk.logs)]


def test_the_points_of_a_run_that_was_cut_off_give_way_even_if_the_disk_was_full(disk):
    add(TensorBoardWriter(disk.logs, 0, True), *range(1, 21))
    disk.fill()
    board = TensorBoardWriter(disk.logs, 11, True)
    disk.free()
    add(board, 11, 12)
    assert curve(disk.logs) == points(*range(1, 13))


def test_no_file_is_left_open(disk):
    opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    board = TensorBoardWriter(disk.logs, 0, True)
    disk.fill()
    add(board, *range(150))
    board.close()
    assert len(os.listdir("/proc/self/fd")) == opened  # noqa: PTH208


def test_points_that_wait_take_little_memory(tmp_path, log_capture):
    (tmp_path / "logs").write_text("a file where the folder should be")
    board = TensorBoardWriter(tmp_path / "logs", 0, True)
    tracemalloc.start()
    add(board, *range(1000))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 200 * 2000
    assert len(warnings(log_capture)) == 1


def test_a_folder_that_was_removed_comes_back(tmp_path):
    board = TensorBoardWriter(tmp_path / "logs" / "out", 0, True)
    (file,) = (tmp_path / "logs" / "out").iterdir()
    file.unlink()
    file.parent.rmdir()
    add(board, 1)
    assert curve(tmp_path / "logs" / "out") == points(1)


def test_only_the_main_process_writes(tmp_path, log_capture):
    board = TensorBoardWriter(tmp_path / "logs", 0, False)
    add(board, 1)
    board.close()
    assert not (tmp_path / "logs").exists() and not log_capture.records


def test_a_full_disk_does_not_change_how_a_run_ends(disk, log_capture):
    config = Config(log_dir=str(disk.logs.parent), output="output/out")
    disk.fill()
    with pytest.raises(SystemExit) as ended, RunLog(config, 0, 4000, 8, True) as run_log:
        for step in range(100):
            run_log.report(step, 0, {"Loss": step / 8}, 0.1)
            run_log.log_accuracies(step, {"lfw": 0.5})
        raise SystemExit(143)
    assert ended.value.code == 143
    assert warnings(log_capture) == [WARNING.format(tensorboard_folder(config))]
