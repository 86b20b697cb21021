"""On one machine nothing of a command's several processes listens beyond the loopback."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from tests.helpers.commands import DEMO, copy_run
from tests.helpers.paths import ROOT
from tests.helpers.processes import RunningCommand, child_pids, run_arguments, signal_all
from tests.helpers.sockets import is_loopback, listening_addresses


def listened(run: RunningCommand) -> set[str]:
    """The addresses at which its processes listen until it ends."""
    found: set[str] = set()
    while run.process.poll() is None:
        found |= listening_addresses(run.process.pid)
        time.sleep(0.03)
    return found


def assert_loopback_alone(addresses: set[str]) -> None:
    assert addresses and all(map(is_loopback, addresses)), addresses


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_addresses_of_a_process_are_found(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family):
        assert listening_addresses(os.getpid()) == {address}
    assert is_loopback(address) == (address in ("127.0.0.1", "::1"))


def test_a_process_that_has_ended_listens_nowhere():
    process = subprocess.Popen(["true"])
    process.wait()
    assert listening_addresses(process.pid) == set()


# What a person may have set for runs on several machines does not open a port on one.
@pytest.mark.parametrize("environment", [{}, {"MASTER_PORT": "29777", "GLOO_SOCKET_IFNAME": "eth0"}])
def test_two_training_processes(tiny_data, tmp_path, environment):
    run = RunningCommand("./train.sh", *run_arguments(tiny_data, tmp_path), "num_epoch=2", NPROC="2", **environment)
    assert_loopback_alone(listened(run))
    assert run.end() == 0, run.output


def test_two_training_processes_that_are_started_again(tiny_data, tmp_path):
    run = RunningCommand("./train.sh", *run_arguments(tiny_data, tmp_path), "num_epoch=12", NPROC="2", MAX_RESTARTS="1")
    while not (tmp_path / "checkpoint.pth").is_file():
        assert run.process.poll() is None, run.end() and run.output
        assert all(map(is_loopback, listening_addresses(run.process.pid)))
        time.sleep(0.03)
    os.kill(child_pids(run.process.pid)[-1], signal.SIGKILL)
    assert_loopback_alone(listened(run))
    assert run.end() == 0 and "Resumes at step" in run.output, run.output


def test_two_processes_of_eval_whose_terminal_is_closed(demo, tmp_path):
    """Under nohup, that ends none of them."""
    out = copy_run(demo / "output" / "demo", tmp_path / "out")
    command = [sys.executable, "eval/eval.py", *DEMO, f"output={out}"]
    run = RunningCommand("env", f"--chdir={demo}", "nohup", *command, NPROC="2")
    found: set[str] = set()
    while len(child_pids(run.process.pid)) < 2 or not found:
        assert run.process.poll() is None, run.end() and run.output
        found |= listening_addresses(run.process.pid)
        time.sleep(0.03)
    signal_all(run.process.pid, signal.SIGHUP)
    assert_loopback_alone(found | listened(run))
    assert run.end() == 0 and run.output.count("Accuracy-Flip") == 3, run.output


def test_two_processes_of_the_search(tiny_data, tmp_path):
    small = [*run_arguments(tiny_data, tmp_path), "n_nodes=2", "channel=2", "search_eval=0", "max_steps=2"]
    run = RunningCommand("NAS/search.sh", *small, NPROC="2")
    assert_loopback_alone(listened(run))
    assert run.end() == 0, run.output


def test_rendezvous_files_are_accessible_to_this_user_only(tiny_data, tmp_path):
    """The launcher unpickles what one of them holds."""
    (tmp_path / "tmp").mkdir(mode=0o777)
    places = run_arguments(tiny_data, tmp_path / "out")
    run = RunningCommand("./train.sh", *places, "num_epoch=9", NPROC="2", TMPDIR=str(tmp_path / "tmp"))
    assert run.until("Global Step: 4 "), run.output
    (rendezvous,) = (tmp_path / "tmp").rglob("rendezvous")
    assert stat.S_IMODE(rendezvous.parent.stat().st_mode) == 0o700
    assert run.end() == 0, run.output
    assert not rendezvous.parent.exists()


def test_no_other_way_of_starting_processes_is_left():
    """Every command that starts several does it by utils.distributed.launch."""
    sources = [path for path in ROOT.glob("**/*.py") if ".venv" not in path.parts and "tests" not in path.parts]
    starters = [path.name for path in sources if "torch.distributed import run" in path.read_text()]
    assert starters == ["launch.py"]
