"""What goes wrong in long runs, each tried for real on commands as a person starts them."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.commands import run_command
from tests.helpers.paths import ROOT
from tests.helpers.processes import RunningCommand, checkpoint_step, child_pids, find_child, run_arguments
from tests.helpers.published_files import assert_same_weights, read_weights_files
from utils.checkpoints.run_file import read_checkpoint
from utils.checkpoints.weights import remove_stale_tempfiles

# ---------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_end_it_leaves_a_checkpoint_of_the_last_step(tiny_data, tmp_path, number, code):
    run = RunningCommand(
        sys.executable, "-u", "train.py", *run_arguments(tiny_data, tmp_path), "num_epoch=40", "save_step=1000"
    )
    assert run.until("Global Step: 13 "), run.output
    run.process.send_signal(number)
    assert run.end() == code, run.output
    last = int(re.findall(r"Global Step: (\d+)", run.output)[-1])
    assert f"Stopped by {number.name} after step {last}: the same command resumes" in run.output
    assert checkpoint_step(tmp_path) == last


def test_a_signal_to_all_of_its_processes_is_one_to_the_run(tiny_data, tmp_path):
    """As systemd and some schedulers send it: the loader workers get it too."""
    command = [sys.executable, "-u", "train.py", *run_arguments(tiny_data, tmp_path), "workers=2"]
    run = RunningCommand("setsid", *command, "num_epoch=40", "save_step=1000")
    assert run.until("Global Step: 8 "), run.output
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.end() == 143, run.output
    last = int(re.findall(r"Global Step: (\d+)", run.output)[-1])
    assert f"Stopped by SIGTERM after step {last}" in run.output and checkpoint_step(tmp_path) == last
    with pytest.raises(ProcessLookupError):
        os.killpg(run.process.pid, 0)  # nobody is left


def test_a_run_to_which_nobody_listens_any_more_still_leaves_its_checkpoint(tiny_data, tmp_path):
    """Ctrl-C in `./train.sh 2>&1 | tee FILE` ends tee at once."""
    run = RunningCommand(
        sys.executable, "train.py", *run_arguments(tiny_data, tmp_path), "num_epoch=40", "save_step=1000"
    )
    assert run.until("Global Step: 8 "), run.output
    run.process.stdout.close()
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(100) == 130
    log_capture = (tmp_path / "training.log").read_text()
    assert checkpoint_step(tmp_path) == int(re.findall(r"Stopped by SIGINT after step (\d+)", log_capture)[0])


def test_two_processes_stop_at_the_same_step(tiny_data, tmp_path):
    """The signal reaches the second alone."""
    run = RunningCommand("./train.sh", *run_arguments(tiny_data, tmp_path), "num_epoch=40", "save_step=1000", NPROC="2")
    assert run.until("Global Step: 8 "), run.output
    _, second = child_pids(run.process.pid)
    os.kill(second, signal.SIGTERM)
    assert run.end() == 143, run.output
    assert re.search(r"Stopped by SIGTERM after step (\d+)", run.output), run.output
    assert checkpoint_step(tmp_path) == int(re.findall(r"after step (\d+)", run.output)[0])


@pytest.mark.parametrize("wish", ["stop", "bad image"])
def test_what_no_new_start_mends_is_not_started_again(tiny_data, damaged_data, tmp_path, wish):
    data = tiny_data if wish == "stop" else damaged_data
    run = RunningCommand(
        "./train.sh", *run_arguments(data, tmp_path / "out"), "num_epoch=40", NPROC="2", MAX_RESTARTS="5"
    )
    if wish == "stop":
        assert run.until("Global Step: 4 "), run.output
        os.kill(child_pids(run.process.pid)[1], signal.SIGTERM)
    assert run.end() == {"stop": 143, "bad image": 2}[wish], run.output
    assert run.output.count("Stopped by SIGTERM" if wish == "stop" else "not a readable image") == 1
    assert "Resumes at step" not in run.output


def test_bad_input_is_one_error_before_the_rendezvous(tiny_data, tmp_path):
    places = [f"rec={tiny_data}", f"output={tmp_path}", f"log_dir={tmp_path}"]
    done = run_command(ROOT, "NAS/search.sh", *places, "precision=fp16", NPROC="2", MAX_RESTARTS="5")
    assert done.returncode == 2
    assert done.stderr.count("error: config precision: the search runs in fp32 or bf16") in (1, 2), done.stderr


def together(data, folder, *changes) -> list[RunningCommand]:
    """Two processes of a training, started without torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meet = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-u", "train.py", *run_arguments(data, folder), *changes]
    return [RunningCommand(*command, RANK=str(rank), LOCAL_RANK=str(rank), **meet) for rank in range(2)]


def test_a_process_that_hangs_is_reported(tiny_data, tmp_path):
    first, second = together(tiny_data, tmp_path, "num_epoch=90", "timeout=10")
    assert first.until("Global Step: 6 "), first.output
    second.process.send_signal(signal.SIGSTOP)
    code = first.end()
    second.process.kill()
    second.end()
    assert code == 2, first.output
    assert "error: another process has not answered for 10 s (config timeout)" in first.output


def test_the_death_of_another_process_is_reported(tiny_data, tmp_path):
    first, second = together(tiny_data, tmp_path, "num_epoch=90")
    assert first.until("Global Step: 6 "), first.output
    second.process.kill()
    assert first.end() == 2 and "error: another process ended in the middle of a step" in first.output, first.output
    second.end()


def test_a_loader_worker_that_dies_is_reported(tiny_data, tmp_path):
    run = RunningCommand(sys.executable, "-u", "train.py", *run_arguments(tiny_data, tmp_path), "num_epoch=90")
    assert run.until("Global Step: 6 "), run.output
    find_child(run.process.pid, "train.py").kill()  # its only loader worker
    assert run.end() == 2, run.output
    assert re.search(r"\nerror: a loader worker ended \(Killed\); .*the same command resumes", run.output), run.output


def test_a_loader_worker_that_hangs_is_reported(tiny_data, tmp_path):
    run = RunningCommand(
        sys.executable, "-u", "train.py", *run_arguments(tiny_data, tmp_path), "num_epoch=90", "timeout=10"
    )
    assert run.until("Global Step: 6 "), run.output
    find_child(run.process.pid, "train.py").suspend()  # its only loader worker
    assert run.end() == 2, run.output
    assert "\nerror: no images have come for 10 s (config timeout): a loader worker hangs" in run.output


def test_two_runs_in_a_folder_are_one_too_many(tiny_data, tmp_path):
    run = RunningCommand(sys.executable, "-u", "train.py", *run_arguments(tiny_data, tmp_path), "num_epoch=90")
    assert run.until("Global Step: 6 "), run.output
    other = run_command(ROOT, sys.executable, "train.py", *run_arguments(tiny_data, tmp_path), "num_epoch=90")
    assert other.returncode == 2
    assert f"error: another run is using {tmp_path} (process {run.process.pid} on " in other.stderr
    run.process.kill()  # and lets it go, though its loader worker lives on for a moment
    run.process.wait()
    other = run_command(ROOT, sys.executable, "train.py", *run_arguments(tiny_data, tmp_path), "num_epoch=4")
    assert other.returncode == 0, other.stderr
    run.end()


# ------------------------------------------------------------------------------------------------------ disks and files


@pytest.fixture
def small_disk(tmp_path):
    """A disk of half a megabyte, on which a checkpoint and the published files do not fit."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_stops_nothing_and_loses_nothing(tiny_data, tmp_path, small_disk):
    (small_disk / "ballast").write_bytes(bytes(400_000))
    run = RunningCommand(sys.executable, "-u", "train.py", *run_arguments(tiny_data, small_disk), "num_epoch=8")
    assert run.until("could not be written .*training continues, the next save tries again"), run.output
    assert run.until("Global Step: 16 "), run.output
    for path in small_disk.glob("*.pth"):  # whatever stands under its name is complete
        torch.load(path, weights_only=True)
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    assert run.end() == 0 and "Traceback" not in run.output, run.output
    uncut = run_command(ROOT, sys.executable, "train.py", *run_arguments(tiny_data, tmp_path / "uncut"), "num_epoch=8")
    assert uncut.returncode == 0, uncut.stderr
    assert_same_weights(read_weights_files(tmp_path / "uncut"), read_weights_files(small_disk))


def test_a_disk_that_stays_full_is_an_error_in_the_end(tiny_data, small_disk):
    (small_disk / "ballast").write_bytes(bytes(512 << 10))  # to the last byte: logs have no room either
    done = run_command(ROOT, sys.executable, "train.py", *run_arguments(tiny_data, small_disk), "num_epoch=2")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert re.search(
        r"error: .*20backbone.pth.* could not be written; free some disk space and start the run again", done.stderr
    )
    assert not list(small_disk.glob(".*tmp"))
    assert done.stderr.count("training.log: could not be written (No space left on device); the run continues") == 1


def copy_data(tiny_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def test_a_data_file_truncated_during_a_run_is_an_error(tiny_data, tmp_path):
    data = copy_data(tiny_data, tmp_path)
    run = RunningCommand(sys.executable, "-u", "train.py", *run_arguments(data, tmp_path / "out"), "num_epoch=90")
    assert run.until("Global Step: 6 "), run.output
    os.truncate(data / "train.rec", 1000)
    assert run.end() == 2, run.output
    assert re.search(r"error: .*train.rec: shrank from \d+ to 1000 bytes while in use; copy it again", run.output)


def test_a_data_file_rewritten_during_a_run_is_an_error(tiny_data, tmp_path):
    """In place, by a cp of other data of the same size."""
    data = copy_data(tiny_data, tmp_path)
    run = RunningCommand(sys.executable, "-u", "train.py", *run_arguments(data, tmp_path / "out"), "num_epoch=90")
    assert run.until("Global Step: 6 "), run.output
    with (data / "train.rec").open("r+b") as file:
        file.write(bytes((tiny_data / "train.rec").stat().st_size))
    assert run.end() == 2, run.output
    assert re.search(r"error: .*train.rec: was written to while in use; copy it again", run.output), run.output


def test_a_data_file_replaced_under_a_run_does_not_change_it(tiny_data, tmp_path):
    """What the run has opened is the file that was."""
    data = copy_data(tiny_data, tmp_path)
    run = RunningCommand(sys.executable, "-u", "train.py", *run_arguments(data, tmp_path / "out"), "num_epoch=3")
    assert run.until("Global Step: 3 "), run.output
    (tmp_path / "other").write_bytes(bytes(5_000_000))
    (tmp_path / "other").replace(data / "train.rec")
    assert run.end() == 0, run.output
    uncut = run_command(ROOT, sys.executable, "train.py", *run_arguments(tiny_data, tmp_path / "uncut"), "num_epoch=3")
    assert uncut.returncode == 0
    assert_same_weights(read_weights_files(tmp_path / "uncut"), read_weights_files(tmp_path / "out"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_an_error_or_left_out(damaged_data, tmp_path, workers):
    command = [
        sys.executable,
        "train.py",
        *run_arguments(damaged_data, tmp_path / "out"),
        f"workers={workers}",
        "num_epoch=2",
    ]
    failed = run_command(ROOT, *command)
    assert failed.returncode == 2
    assert re.fullmatch(r"error: .*train.rec: record \d+ at byte \d+: not a readable image, .*\n", failed.stderr)
    done = run_command(ROOT, *command, "on_bad_image=skip", "--resume", "0")
    assert done.returncode == 0, done.stderr
    left_out = re.findall(r"record (\d+) at byte \d+: not a readable image, .*: skipped \((\d) so far\)", done.stdout)
    assert sorted(key for key, _ in left_out) == ["22", "22", "5", "5"]
    assert [count for _, count in left_out] == ["1", "2", "3", "4"]


def test_a_loss_that_is_not_finite_ends_the_run_with_its_images(tiny_data, tmp_path):
    """A learning rate out of all measure."""
    command = [
        sys.executable,
        "train.py",
        *run_arguments(tiny_data, tmp_path),
        "lr=1e30",
        "weight_decay=0",
        "clip_norm=0",
    ]
    failed = run_command(ROOT, *command, "max_bad_steps=3", "num_epoch=9")
    assert failed.returncode == 2
    pattern = (
        r"error: loss or gradient is not finite in 3 steps in a row, (\d+) to (\d+) \(learning rate [\d.e+]+\); .*\n"
    )
    found = re.fullmatch(pattern, failed.stderr)
    assert found, failed.stderr
    saved = json.loads((tmp_path / "bad_steps.json").read_text())
    assert list(saved["keys"]) == [str(step) for step in range(int(found[1]), int(found[2]) + 1)]
    assert all(len(keys) == 4 and all(1 <= key <= 40 for key in keys) for keys in saved["keys"].values())


WRITER = """
import sys
from pathlib import Path
import torch
from utils.checkpoints.run_file import FORMAT_VERSION, REQUIRED_KEYS, write_checkpoint
folder, first = Path(sys.argv[1]), int(sys.argv[2])
for step in range(first, first + 1000):
    progress = {"step": step, "ends": [], "seen": 0}
    state = dict.fromkeys(REQUIRED_KEYS) | {"version": FORMAT_VERSION, "position": progress}
    write_checkpoint(folder, 2, state | {"weights": torch.full((1 << 20,), float(step))})
    if step == first:
        print("written", flush=True)
"""


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before_intact(tmp_path):
    """A process that does nothing but write 4 MB checkpoints, killed again and again."""
    rng = random.Random(1)
    step = hits = 0
    for kills in range(1, 31):
        run = RunningCommand(sys.executable, "-c", WRITER, tmp_path, step + 1, PYTHONPATH=str(ROOT))
        assert run.until("written"), run.output
        time.sleep(rng.random() / 5)
        run.process.kill()
        run.end()
        hits += bool(list(tmp_path.glob(".*.tmp")))
        remove_stale_tempfiles(tmp_path)
        assert not list(tmp_path.glob(".*.tmp"))
        for path in tmp_path.glob("*.pth"):  # none is broken, the last one or another
            content = torch.load(path, weights_only=True)
            assert torch.equal(content["weights"], torch.full((1 << 20,), float(content["position"]["step"])))
        found = read_checkpoint(tmp_path)
        assert found and found["position"]["step"] > step
        step = found["position"]["step"]
        if hits and kills >= 5:
            break
    assert hits  # kills in the middle of a write
