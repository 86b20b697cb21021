"""Signals other than Ctrl-C and SIGTERM: a terminal that closes, nohup, what schedulers send ahead of the end."""

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.processes import RunningCommand, checkpoint_step, run_arguments, signal_all
from tests.helpers.training import CPU
from utils.distributed.shutdown import GracefulShutdown, Requests
from utils.distributed.signals import CHECKPOINT_SIGNALS, handle_signals, is_ignored

LONG = ["num_epoch=60", "save_step=1000"]
SAVED = r"Checkpoint requested after step (\d+): it is being written, training continues"


@pytest.fixture(autouse=True)
def hangup_as_in_a_terminal():
    """Acts as by default, for the runs that inherit it, though the tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def resume_point(ways: str, data: Path, folder: Path, *changes: str, before: tuple[str, ...] = ()) -> RunningCommand:
    """A training in one process, or in two that torchrun starts."""
    if ways == "one process":
        return RunningCommand(*before, sys.executable, "-u", "train.py", *run_arguments(data, folder), *LONG, *changes)
    return RunningCommand(*before, "./train.sh", *run_arguments(data, folder), *LONG, *changes, NPROC="2")


def last_step(log_capture: str) -> int:
    return int(re.findall(r"Global Step: (\d+)", log_capture)[-1])


@pytest.mark.parametrize("ways", ["one process", "two processes"])
def test_hangup_ends_a_run_with_a_checkpoint(tiny_data, tmp_path, ways):
    """Sent to the process that the person started, which is the launcher where there are several."""
    run = resume_point(ways, tiny_data, tmp_path)
    assert run.until("Global Step: 8 "), run.output
    run.process.send_signal(signal.SIGHUP)
    assert run.end() == 129, run.output
    assert checkpoint_step(tmp_path) == last_step(run.output)
    assert f"Stopped by SIGHUP after step {last_step(run.output)}" in run.output


@pytest.mark.parametrize("ways", ["one process", "two processes"])
def test_hangup_to_every_process_of_a_run_under_nohup_changes_nothing(tiny_data, tmp_path, ways):
    run = resume_point(ways, tiny_data, tmp_path, "num_epoch=4", "workers=2", before=("nohup",))
    assert run.until("Global Step: 6 "), run.output
    signal_all(run.process.pid, signal.SIGHUP)
    assert run.end() == 0, run.output
    assert "Done" in run.output and "SIGHUP" not in run.output


@pytest.mark.parametrize("ways", ["one process", "two processes"])
def test_a_terminal_that_is_closed_costs_nothing(tiny_data, tmp_path, ways):
    """For real: a terminal of its own, whose other end goes. The run can then write to it no more."""
    ours, theirs = pty.openpty()
    command = ["./train.sh", *run_arguments(tiny_data, tmp_path), *LONG, f"output={tmp_path}"]
    environment = {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    number = "1" if ways == "one process" else "2"
    run = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environment | {"NPROC": number},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    log_capture = b""
    while b"Global Step: 8 " not in log_capture:
        log_capture += os.read(ours, 1 << 16)
    os.close(ours)
    assert run.wait(100) == 129
    text = (tmp_path / "training.log").read_text()
    assert "Stopped by SIGHUP" in text and "Traceback" not in text
    assert checkpoint_step(tmp_path) == last_step(text)


@pytest.mark.parametrize(("ways", "number"), [("one process", signal.SIGUSR1), ("two processes", signal.SIGUSR2)])
def test_a_checkpoint_request_writes_one_and_the_run_continues(tiny_data, tmp_path, ways, number):
    run = resume_point(ways, tiny_data, tmp_path, "num_epoch=9", "keep=99")
    assert run.until("Global Step: 6 "), run.output
    run.process.send_signal(number)
    assert run.until(SAVED), run.output
    step = int(re.findall(SAVED, run.output)[0])
    assert run.end() == 0, run.output
    assert run.output.count("Checkpoint requested") == 1
    assert (tmp_path / f"checkpoint.{step}.pth").is_file()


def test_a_request_to_every_process_of_a_run_ends_none(tiny_data, tmp_path):
    """As Slurm sends it: to the launcher, the training processes and the loader workers."""
    run = resume_point("two processes", tiny_data, tmp_path, "num_epoch=9", "workers=2", "keep=99")
    assert run.until("Global Step: 6 "), run.output
    signal_all(run.process.pid, signal.SIGUSR1)
    assert run.end() == 0, run.output
    steps = re.findall(SAVED, run.output)
    assert steps and all((tmp_path / f"checkpoint.{step}.pth").is_file() for step in steps), run.output


@pytest.fixture
def requests_at_imports(tmp_path) -> Path:
    """A folder for PYTHONPATH, by which every process sends itself both signals when it imports torch."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text("""
import os, signal, sys

class Send:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            for number in (signal.SIGUSR1, signal.SIGUSR2):
                os.kill(os.getpid(), number)

sys.meta_path.insert(0, Send())
""")
    return tmp_path / "path"


@pytest.mark.parametrize("script", ["train.py", "train_kd.py", "NAS/search.py"])
def test_a_request_during_the_imports_ends_nothing(requests_at_imports, script):
    run = RunningCommand(sys.executable, script, "--help", PYTHONPATH=str(requests_at_imports))
    assert run.end() == 0 and "usage: " in run.output, run.output


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_request_before_the_first_step_ends_nothing(tiny_data, tmp_path, requests_at_imports, processes):
    """Neither train.sh in its checks, nor the interpreter that follows; a later one leaves a checkpoint."""
    python = tmp_path / "python"
    python.write_text(f"""#!/usr/bin/env bash
if grep -q launch.sh /proc/$PPID/cmdline; then kill -USR1 $PPID; touch {tmp_path}/sent; fi
kill -USR2 $$
exec {sys.executable} -u "$@"
""")
    python.chmod(0o755)
    environment = {"PYTHON": str(python), "PYTHONPATH": str(requests_at_imports)}
    if processes == "2":
        environment["NPROC"] = "2"  # else train.sh asks Python how many, as it asks for the config of two
    run = RunningCommand("./train.sh", *run_arguments(tiny_data, tmp_path), "num_epoch=9", **environment)
    assert run.until("Global Step: 6 "), run.output
    assert (tmp_path / "sent").exists()
    run.process.send_signal(signal.SIGUSR1)
    assert run.until(SAVED), run.output
    assert run.end() == 0, run.output


def test_what_is_ignored_at_the_start_stays_ignored(tiny_data, tmp_path):
    """By a shell that says: trap '' INT HUP USR1 USR2 TERM."""
    quiet = ("bash", "-c", "trap '' INT HUP USR1 USR2 TERM; exec \"$@\"", "quiet")
    run = RunningCommand(*quiet, "./train.sh", *run_arguments(tiny_data, tmp_path), "num_epoch=3", NPROC="2")
    assert run.until("Global Step: 4 "), run.output
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        signal_all(run.process.pid, number)
    assert run.end() == 0, run.output
    assert (
        "Done" in run.output
        and "Checkpoint requested" not in run.output
        and "stopping after this step" not in run.output
    )


def test_a_hangup_in_a_stop_is_noted_unless_it_is_ignored():
    with GracefulShutdown(CPU, 10) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.agreed_requests() == Requests(stop_signal=signal.SIGHUP, checkpoint=True)
        assert stop.agreed_requests(log_line=True) == Requests(stop_signal=signal.SIGHUP, log_line=True)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulShutdown(CPU, 10) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.agreed_requests() == Requests() and is_ignored(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_is_ignored_gets_no_handler():
    came = []
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with handle_signals(CHECKPOINT_SIGNALS, lambda number, frame: came.append(number)):
            for number in CHECKPOINT_SIGNALS:
                os.kill(os.getpid(), number)
        assert came == [signal.SIGUSR2] and is_ignored(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
