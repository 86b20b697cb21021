"""Two machines: network namespaces of this one, each with its own addresses, joined by a cable."""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from tests.helpers.commands import run_command
from tests.helpers.paths import ROOT
from tests.helpers.processes import RunningCommand, child_pids, run_arguments
from tests.helpers.published_files import assert_same_weights, read_weights_files

NAMES = [f"pocketnet{os.getpid()}-{i}" for i in range(2)]
ADDRESSES = ["10.213.77.1", "10.213.77.2"]


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def machines():
    """The names of two network namespaces that reach each other and nothing else."""
    if not shutil.which("ip"):
        pytest.skip("needs ip (iproute2)")
    commands = [["netns", "add", name] for name in NAMES]
    commands.append(["link", "add", "link0", "netns", NAMES[0], "type", "veth", "peer", "link1", "netns", NAMES[1]])
    for i, (name, address) in enumerate(zip(NAMES, ADDRESSES, strict=True)):
        on = ["-n", name]
        commands.append([*on, "addr", "add", f"{address}/24", "dev", f"link{i}"])
        commands += [[*on, "link", "set", device, "up"] for device in (f"link{i}", "lo")]
    try:
        for command in commands:
            done = ip(*command)
            if done.returncode:
                pytest.skip(f"network namespaces are not allowed here: ip {' '.join(command)}: {done.stderr.strip()}")
        yield NAMES
    finally:
        for name in NAMES:
            ip("netns", "del", name)


def on_both(machines, *command: str, on_second: tuple[str, ...] = (), **environment: str) -> list[RunningCommand]:
    """The command on both machines, as docs/multi_node.md has it, with further arguments on the second."""
    meet = {"NNODES": "2", "NPROC": "2", "MASTER_ADDR": ADDRESSES[0], **environment}
    return [
        RunningCommand(
            "ip", "netns", "exec", name, *command, *(on_second if i else ()),
            NODE_RANK=str(i), GLOO_SOCKET_IFNAME=f"link{i}", **meet,
        )
        for i, name in enumerate(machines)
    ]  # fmt: skip


def test_two_machines_of_two_processes_train_as_one_of_four(machines, tiny_data, tmp_path):
    few = ["num_epoch=3", "lr_steps=2"]
    runs = on_both(machines, "./train.sh", *run_arguments(tiny_data, tmp_path / "two"), *few)
    assert [run.end() for run in runs] == [0, 0], runs[0].output + runs[1].output
    assert "Done: 6 steps" in runs[0].output and "Done" not in runs[1].output
    one = run_command(
        ROOT, "./train.sh", *run_arguments(tiny_data, tmp_path / "one"), *few, NPROC="4", OMP_NUM_THREADS="1"
    )
    assert one.returncode == 0, one.stderr
    assert_same_weights(read_weights_files(tmp_path / "one"), read_weights_files(tmp_path / "two"))


def test_what_no_new_start_mends_ends_both_machines(machines, damaged_data, tmp_path):
    few = ["num_epoch=30", "log_step=1"]
    runs = on_both(machines, "./train.sh", *run_arguments(damaged_data, tmp_path / "two"), *few, MAX_RESTARTS="3")
    assert [run.end() for run in runs] == [2, 2], runs[0].output + runs[1].output
    log_capture = runs[0].output + runs[1].output
    assert log_capture.count("not a readable image") == 1 and "Resumes at step" not in log_capture


def test_bad_input_that_one_machine_finds_before_the_processes_meet_ends_both(machines, tiny_data, tmp_path):
    arguments = run_arguments(tiny_data, tmp_path / "two")
    student = (f"student_pth={tmp_path / 'two'}",)
    runs = on_both(machines, "./train.sh", *arguments, on_second=student, MAX_RESTARTS="3")
    assert [run.end() for run in runs] == [2, 2], runs[0].output + runs[1].output
    assert runs[1].output.count("error: config student_pth: ") in (1, 2) and "\nerror: " not in runs[0].output
    assert not (tmp_path / "two" / "checkpoint.pth").exists()


def test_a_process_that_dies_on_one_machine_is_started_again_with_all(machines, tiny_data, tmp_path):
    """Elastic: both machines start their processes again, from the last checkpoint."""
    few = ["num_epoch=30", "lr_steps=9"]  # 60 steps
    runs = on_both(machines, "./train.sh", *run_arguments(tiny_data, tmp_path / "two"), *few, MAX_RESTARTS="3")
    while not (tmp_path / "two" / "checkpoint.pth").is_file():
        assert all(run.process.poll() is None for run in runs), runs[0].end() and runs[0].output
        time.sleep(0.1)
    os.kill(child_pids(runs[1].process.pid)[-1], signal.SIGKILL)
    assert [run.end() for run in runs] == [0, 0], runs[0].output + runs[1].output
    log_capture = runs[0].output + runs[1].output
    assert re.search(r"Resumes at step \d+", log_capture) and "Done: 60 steps" in log_capture
    assert "60backbone.pth" in read_weights_files(tmp_path / "two")
