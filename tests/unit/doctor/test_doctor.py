"""Doctor: every failure provoked; nothing reported for a sound run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from config import load_config
from tests.helpers.commands import DEMO, copy_run, run_command
from tests.helpers.doctor_helpers import (
    Usage,
    check_states,
    make_config,
    make_plan,
    one_process_on_a_cpu,  # noqa: F401  (for every test here)
    run_checks,
    single,
    single_failure,
)
from tests.helpers.faces import write_data
from tests.helpers.paths import ROOT
from tests.helpers.processes import find_child
from utils.datasets.face_dataset import FaceDataset
from utils.doctor import command as doctor
from utils.doctor import data as checks_of_data
from utils.doctor.command import SUBJECTS, count_processes
from utils.doctor.plan import DISTILLATION
from utils.doctor.table import FAIL, PASS, WARN, Check, collect_checks
from utils.errors import UserError


@pytest.fixture
def data(tmp_path) -> Path:
    """A data set that a test may damage."""
    return write_data(tmp_path / "data")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------------------------------------------------- the command


def test_a_healthy_run_passes_and_writes_nothing(demo, tmp_path):
    folders = [f"output={tmp_path / 'out'}", f"log_dir={tmp_path / 'logs'}"]
    done = run_command(demo, sys.executable, "-m", "utils.doctor", *DEMO, *folders, "num_epoch=2")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = done.stdout.splitlines()
    assert "pass  data       48 images of 6 identities in data/faces_demo" in lines
    assert "pass  steps      12, 6 an epoch; 1 process with 8 images each" in lines
    speed, memory = (line for line in lines if line.startswith("pass  dry run    "))
    assert re.search(r" [\d,.]+ img/s by 1 process: [\d.]+ hours \([\d.]+ minutes\) for the run, without ", speed)
    assert re.search(r" peak memory [\d.]+ [MG]iB in each process", memory)
    assert lines[-1].endswith(" pass, 0 warn, 0 fail") and "fix:" not in done.stdout
    assert {line[6:15].rstrip() for line in lines[:-1]} == set(SUBJECTS) - {"precision"}
    assert list(contents(tmp_path)) == []


def test_a_warning_is_no_failure_and_a_failure_is_exit_code_1(demo):
    warned = run_command(demo, sys.executable, "-m", "utils.doctor", *DEMO, "num_epoch=2")
    assert warned.returncode == 0
    assert "warn  steps      the run in output/demo is finished" in warned.stdout
    failed = run_command(demo, sys.executable, "utils/doctor", *DEMO, "output=output/ill", "--multi-step")
    assert failed.returncode == 1
    assert "\nfail  task       config teacher_pth: is empty\n                 fix: name the folder" in failed.stdout
    assert "\npass  sets " in failed.stdout and failed.stdout.endswith(", 1 fail\n")


def test_the_kind_of_run_that_is_checked(demo, tmp_path):
    """Plain training though the config names a teacher, as every shipped one does; or what --kd or the folder says."""
    teacher = ["teacher_network=PocketNet", "teacher_pth=output/demo", "teacher_global_step=12", f"output={tmp_path}"]
    command = [sys.executable, "-m", "utils.doctor"]

    def ask_doctor(*arguments):
        done = run_command(demo, *command, *arguments)
        kind = [line.split("checked for ")[1] for line in done.stdout.splitlines() if "checked for" in line]
        return done.returncode, kind[0].split(" (")[0], done.stdout

    code, kind, _ = ask_doctor(*DEMO, f"output={tmp_path}", "teacher_pth=nowhere", "teacher_network=unheard-of")
    assert (code, kind) == (0, "plain training")
    code, kind, stdout = ask_doctor(*DEMO, f"output={tmp_path}", "teacher_pth=nowhere", "--kd")
    assert (code, kind) == (1, "distillation") and "fail  task" in stdout
    refused = run_command(demo, *command, *DEMO, "teacher_network=unheard-of", "--kd")
    assert refused.returncode == 2 and "config teacher_network: 'unheard-of' is not a known network" in refused.stderr
    trained = run_command(demo, sys.executable, "train_kd.py", *DEMO, *teacher, "max_steps=2", f"log_dir={tmp_path}")
    assert trained.returncode == 0, trained.stderr
    before = contents(tmp_path)
    code, kind, stdout = ask_doctor(f"output={tmp_path}", "max_steps=5")  # by the config.json of the run
    assert (code, kind) == (0, "distillation") and "resumes from step 2" in stdout and "img/s" in stdout
    assert contents(tmp_path) == before


def test_a_resumed_run_loads_its_checkpoint_and_changes_nothing(demo, tmp_path):
    out = tmp_path / "out"
    copy_run(demo / "output" / "demo", out)
    before = contents(tmp_path)
    command = [sys.executable, "-m", "utils.doctor", "--config", out, "num_epoch=3", f"log_dir={out}"]
    done = run_command(demo, *command)
    assert done.returncode == 0, done.stdout
    assert "resumes from step 12, in epoch 2" in done.stdout and " to go, without evaluation" in done.stdout
    failed = run_command(demo, *command, "channel=8")
    assert failed.returncode == 1 and f"fail  dry run    {out}/checkpoint.pth (backbone): stem.0" in failed.stdout
    assert contents(tmp_path) == before


def test_two_processes_train_together(demo, tmp_path):
    folders = [f"output={tmp_path}", f"log_dir={tmp_path}"]
    command = [sys.executable, "-m", "utils.doctor", *DEMO, *folders, "header=sharded"]
    done = run_command(demo, *command, NPROC="2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass  steps      9, 3 an epoch; 2 processes with 8 images each" in done.stdout
    assert " img/s by 2 processes: " in done.stdout and list(contents(tmp_path)) == []
    failed = run_command(demo, *command, "batch_size=30", NPROC="2")
    assert failed.returncode == 1 and failed.stdout.endswith(", 1 warn, 1 fail\n")
    assert "30 images on 2 processes are more than the data set's 48\n                 fix: lower" in failed.stdout


def test_the_search_is_checked(demo, tmp_path):
    small = ["channel=4", "n_layers=4", "embedding_size=16", "batch_size=4", "workers=0", "n_nodes=2", "search_eval=4"]
    where = ["rec=data/faces_demo", f"output={tmp_path}", f"log_dir={tmp_path}"]
    command = [sys.executable, "-m", "utils.doctor", "--search", *small, *where]
    done = run_command(demo, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checked for architecture search (NAS/search.sh)" in done.stdout and " img/s by 1 process" in done.stdout
    assert list(contents(tmp_path)) == []
    single_step = run_command(demo, *command, "max_steps=1")  # the first step is the end of the run
    assert single_step.returncode == 0 and list(contents(tmp_path)) == [], single_step.stdout
    failed = run_command(demo, *command, "precision=fp16")
    assert (
        failed.returncode == 1 and "fail  config     config precision: the search runs in fp32 or bf16" in failed.stdout
    )


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_a_lack_of_memory_is_a_failed_dry_run(demo, tmp_path):
    sizes = ["channel=256", "batch_size=48", "workers=0", f"output={tmp_path}", f"log_dir={tmp_path}"]
    command = f'ulimit -v 6000000; exec "$PYTHON" -m utils.doctor {" ".join([*DEMO, *sizes])}'
    done = run_command(demo, "bash", "-c", command, new_interpreter=True, OMP_NUM_THREADS="1")  # which has the limit
    assert done.returncode == 1, done.stdout + done.stderr
    assert "\npass  task " in done.stdout and "\npass  sets " in done.stdout
    assert re.search(
        "\nfail  dry run    out of memory .*\n                 fix: lower batch_size, workers,", done.stdout
    )
    assert "\nwarn  disk       not checked: disk\n" in done.stdout and list(contents(tmp_path)) == []


def test_a_process_that_the_system_ends_is_a_failed_dry_run(demo, tmp_path):
    """Killed in the middle of the dry run, as the system does when memory runs out."""
    sizes = ["channel=64", "batch_size=48", "workers=0", f"output={tmp_path}", f"log_dir={tmp_path}"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "utils.doctor", *DEMO, *sizes]
    with subprocess.Popen(command, cwd=demo, env=environment, stdout=subprocess.PIPE, text=True) as running:
        while not running.stdout.readline().startswith("pass  task "):
            assert running.poll() is None
        find_child(running.pid, "spawn_main").kill()
        rest = running.stdout.read()
    assert running.returncode == 1 and list(contents(tmp_path)) == []
    assert rest == (
        "fail  dry run    process 0 was ended by SIGKILL, as when memory runs out\n"
        "                 fix: lower batch_size, workers, or the number of processes (NPROC)\n"
    )


def test_sizes_that_fit_no_memory_are_a_line(demo, tmp_path):
    place = [f"output={tmp_path}", f"log_dir={tmp_path}", "channel=65536"]
    done = run_command(demo, sys.executable, "train.py", *DEMO, *place)
    assert done.returncode == 2, done.stdout
    assert re.fullmatch(r"error: out of memory .*; lower batch_size, .*\n", done.stderr), done.stderr
    checked = run_command(demo, sys.executable, "-m", "utils.doctor", *DEMO, *place)
    assert checked.returncode == 1 and checked.stderr == ""
    assert re.search("\nfail  task       out of memory .*\n                 fix: lower batch_size, ", checked.stdout)


def test_a_wrong_config_is_exit_code_2(demo):
    for fields, environment in ((["lr=-1"], {}), ([], {"NPROC": "none"})):
        done = run_command(demo, sys.executable, "-m", "utils.doctor", *DEMO, *fields, **environment)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stdout == ""


def test_one_failure_hides_no_other(tmp_path, data):
    (data / "train.rec").unlink()
    (data / "tiny.bin").write_bytes(b"no pickle")
    (tmp_path / "file").write_text("")
    config = make_config(tmp_path, data, "eval_step=1", f"log_dir={tmp_path / 'file'}")
    checks = list(doctor.run_checks(make_plan(config)))
    assert {check.subject for check in checks if check.state == FAIL} == {"output", "data", "sets"}
    unknown = single([check for check in checks if "not checked" in check.found])
    assert unknown == Check("steps", WARN, "not checked: steps, task, dry run, disk", "fix data first")
    assert all(check.fix for check in checks if check.state != PASS)


@pytest.mark.parametrize(
    ("kinds", "fields", "unused", "fix"),
    [
        ([], ["w=3", "n_nodes=2"], "n_nodes, w: set, but not used by ./train.sh", "./train_kd.sh trains with"),
        ([DISTILLATION], ["w=3", "n_nodes=2"], "n_nodes: set, but not used by ./train_kd.sh", "remove them from the"),
    ],
)
def test_settings_without_effect_are_a_warning(tmp_path, tiny_data, kinds, fields, unused, fix):
    plan = make_plan(make_config(tmp_path, tiny_data, *fields), *kinds)
    check = single_failure(collect_checks("config", SUBJECTS["config"](plan)))
    assert check.state == WARN and check.found == f"Config: {unused}" and check.fix.startswith(fix)


# --------------------------------------------------------------------------------------------------------- the schedule


def test_the_schedule_is_reported():
    plan = make_plan(load_config(ROOT / "config" / "config_PocketNetS128.py"))
    network, schedule, _ = SUBJECTS["config"](plan)
    size = "channel 16, n_layers 18, stem_multiplier 4, genotype softmax_casia"
    assert network.found == f"PocketNetS, {size}, embedding 128, fp32"
    rates = "0.025 from 0, 0.0025 from 7, 0.00025 from 13, 2.5e-05 from 19, 2.5e-06 from 24"
    assert schedule.found == f"26 epochs; learning rate by epoch {rates}"
    plan.config.lr_func = lambda epoch: 1 - epoch / 26
    _, schedule, _ = SUBJECTS["config"](plan)
    assert schedule.found == "26 epochs; learning rate by epoch 0.025 to 0.000962"


# ----------------------------------------------------------------------------------------------------------------- data


def test_a_truncated_record_file(tmp_path, data):
    content = (data / "train.rec").read_bytes()
    (data / "train.rec").write_bytes(content[: len(content) // 2])
    check = single_failure(run_checks(make_config(tmp_path, data), "data"))
    assert check.state == FAIL and "train.idx, line" in check.found and "copy both again" in check.fix


def test_a_label_that_is_no_class(tmp_path, data):
    (data / "property").write_text("3,112,112")
    check = single_failure(run_checks(make_config(tmp_path, data), "data"))
    assert check.state == FAIL and "label 3 is not one of the 3 classes" in check.found
    assert check.fix == "set num_classes=4 if the data is right"


def test_sizes_of_the_config_that_are_not_those_of_the_files(tmp_path, data):
    checks = run_checks(make_config(tmp_path, data, "num_image=41"), "data")
    assert check_states(checks) == [PASS, WARN]
    assert checks[0].found == f"40 images of 4 identities in {data}"
    assert checks[1].fix.startswith("change num_image in ")
    check = single_failure(run_checks(make_config(tmp_path, data, "num_classes=9"), "data"))
    assert check.state == FAIL and check.found == f"config num_classes: 9, but {data} holds 4 identities"
    assert check.fix.startswith("type num_classes=0 ")


@pytest.mark.parametrize(("what", "state"), [("error", FAIL), ("skip", WARN)])
def test_an_image_that_cannot_be_decoded(tmp_path, data, what, state):
    reader = FaceDataset(data).reader
    record = reader.read(7)
    at = (data / "train.rec").read_bytes().index(record) + 24  # behind the image's header
    with (data / "train.rec").open("r+b") as file:
        file.seek(at)
        file.write(bytes(len(record) - 24))
    check = single(run_checks(make_config(tmp_path, data, f"on_bad_image={what}"), "data", "images"))
    assert check.state == state and check.fix
    assert check.found.startswith(f"1 of 40 cannot be read: {data / 'train.rec'}: record 7 ")


def test_reading_images_ends_in_time(tmp_path, data, monkeypatch):
    monkeypatch.setattr(checks_of_data, "SECONDS", 0.0)
    check = single(run_checks(make_config(tmp_path, data), "data", "images"))
    assert check.state == PASS and check.found.startswith("1 read and decoded")


# --------------------------------------------------------------------------------------------------------- verification


@pytest.mark.parametrize(("eval_step", "state"), [(5, FAIL), (0, WARN)])
def test_verification_sets_that_are_missing_or_damaged(tmp_path, data, eval_step, state):
    config = make_config(tmp_path, data, f"eval_step={eval_step}")
    assert single(run_checks(config, "sets")) == Check("sets", PASS, "tiny: 20 pairs of 40 images")
    (data / "cut.bin").write_bytes((data / "tiny.bin").read_bytes()[:-1000])
    config.val_targets = ["cut", "tiny", "lfw"]
    checks = run_checks(config, "sets")
    assert check_states(checks) == [WARN, state, PASS] and all(check.fix for check in checks[:2])
    assert checks[0].found == f"no lfw.bin in {data}: left out" and "cut.bin: not a verification set" in checks[1].found
    os.mkfifo(data / "pipe.bin")
    config.val_targets = ["pipe", "tiny"]
    check = run_checks(config, "sets")[0]
    assert check.state == state and "pipe.bin: is not a regular file (a pipe)" in check.found
    config.val_targets = ["lfw"]
    check = single_failure(run_checks(config, "sets"))
    assert check.state == state and "none of lfw.bin" in check.found


# ---------------------------------------------------------------------------------------------------- steps and workers


def test_a_batch_that_is_larger_than_the_data(tmp_path, tiny_data, monkeypatch):
    config = make_config(tmp_path, tiny_data, "batch_size=16")
    assert run_checks(config, "data", "steps")[0].found == "6, 2 an epoch; 1 process with 16 images each"
    monkeypatch.setenv("NPROC", "2")
    assert run_checks(config, "data", "steps")[0].found == "3, 1 an epoch; 2 processes with 16 images each"
    monkeypatch.setenv("NNODES", "2")
    check = single_failure(run_checks(config, "data", "steps"))
    assert check.state == FAIL and "16 images on 4 processes" in check.found and check.fix == "lower batch_size"
    config.batch_size = 1
    checks = list(doctor.run_checks(make_plan(config)))
    config_failed, others = (check for check in checks if check.state != PASS)
    assert config_failed.subject == "config" and "batch norm" in config_failed.found
    assert others.found == "not checked: device, precision, data, steps, task, dry run, disk"


def test_processes_are_counted_as_they_are_started(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)

    def counted(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return count_processes()

    assert counted() == (4, 4)
    assert counted(NPROC="2", NNODES="3") == (2, 6)
    assert counted(WORLD_SIZE="8", LOCAL_WORLD_SIZE="4") == (4, 8)  # as torchrun says
    for wrong in ("0", "-1", "two", "1e3"):
        with pytest.raises(UserError, match="NNODES: should be a whole number from 1"):
            counted(NNODES=wrong)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no such folder for shared memory")
def test_shared_memory_that_is_too_small(tmp_path, tiny_data, monkeypatch):
    config = make_config(tmp_path, tiny_data, "workers=2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    size = 2 * 2 * 8 * 8 * 112 * 112 * 3  # of two processes with two workers each
    for left, state in ((size, PASS), (size - 1, FAIL)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, left=left: Usage(1 << 40, 0, left))
        check = single(run_checks(config, "data"))
        assert check.state == state and ("--shm-size" in check.fix) == (state == FAIL)


# -------------------------------------------------------------------------------------------------------------- mends


def test_an_error_that_names_no_mend_is_given_one(tmp_path):
    def read():
        yield Check("disk", PASS, (tmp_path / "none").read_text())

    check = single_failure(collect_checks("disk", read()))
    assert check.state == FAIL and str(tmp_path / "none") in check.found
