"""The doctor: every failure provoked, none of them told of a run that is well."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from config import load_config
from tests.conftest import DEMO, ROOT, run_command, write_data
from tests.helpers.doctor_helpers import (
    Usage,
    ask,
    config_of,
    ill,
    one_process_on_a_cpu,  # noqa: F401  (for every test here)
    only,
    states,
)
from utils.datasets.face_dataset import FaceDataset
from utils.doctor import command as doctor
from utils.doctor import data as checks_of_data
from utils.doctor.command import SUBJECTS
from utils.doctor.table import FAIL, PASS, WARN, Check, collect_checks
from utils.errors import UserError


@pytest.fixture
def data(tmp_path) -> Path:
    """A data set that a test may damage."""
    return write_data(tmp_path / "data")


# ---------------------------------------------------------------------------------------------------------- the command


def test_a_healthy_run_passes(demo):
    done = run_command(demo, sys.executable, "-m", "utils.doctor", *DEMO, "output=output/well", "num_epoch=2")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "pass  data       48 images of 6 identities in data/faces_demo" in lines
    assert "pass  steps      12, 6 an epoch; 1 process with 8 images each" in lines
    assert lines[-1].endswith(" pass, 0 warn, 0 fail") and "fix:" not in done.stdout
    assert {line.split()[1] for line in lines[:-1]} == set(SUBJECTS) - {
        "precision",
        "head",
        "student",
        "teacher",
    }  # not asked for
    assert not list((demo / "output" / "well").iterdir())


def test_a_warning_is_no_failure_and_a_failure_is_exit_code_1(demo):
    warned = run_command(demo, sys.executable, "-m", "utils.doctor", *DEMO, "num_epoch=2")
    assert warned.returncode == 0
    assert "warn  resume     the run in output/demo is finished" in warned.stdout
    failed = run_command(demo, sys.executable, "utils/doctor", *DEMO, "output=output/ill", "--multi-step")
    assert failed.returncode == 1
    assert "\nfail  teacher    config teacher_pth: is empty\n                 fix: name the folder" in failed.stdout
    assert "\npass  memory " in failed.stdout and failed.stdout.endswith(", 1 fail\n")


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
    assert (code, kind) == (1, "distillation") and "fail  teacher" in stdout
    refused = run_command(demo, *command, *DEMO, "teacher_network=unheard-of", "--kd")
    assert refused.returncode == 2 and "config teacher_network: 'unheard-of' is not a known network" in refused.stderr
    trained = run_command(demo, sys.executable, "train_kd.py", *DEMO, *teacher, "max_steps=2", f"log_dir={tmp_path}")
    assert trained.returncode == 0, trained.stderr
    code, kind, stdout = ask_doctor(f"output={tmp_path}", "max_steps=3")  # by the config.json of the run
    assert (code, kind) == (0, "distillation") and "resumes from step 2" in stdout
    assert ask_doctor(f"output={demo / 'output' / 'demo'}", "num_epoch=3")[:2] == (0, "plain training")


def test_sizes_that_fit_no_memory_are_a_line(demo, tmp_path):
    for command in (["-m", "utils.doctor"], ["train.py"]):
        done = run_command(demo, sys.executable, *command, *DEMO, f"output={tmp_path}", "channel=65536")
        assert done.returncode == 2, done.stdout
        assert re.fullmatch(r"error: out of memory .*; lower batch_size, .*\n", done.stderr), done.stderr


def test_a_wrong_config_is_exit_code_2(demo):
    for fields, environment in ((["lr=-1"], {}), ([], {"NPROC": "none"})):
        done = run_command(demo, sys.executable, "-m", "utils.doctor", *DEMO, *fields, **environment)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stdout == ""


def test_one_failure_hides_no_other(tmp_path, data):
    (data / "train.rec").unlink()
    (data / "tiny.bin").write_bytes(b"no pickle")
    config = config_of(tmp_path, data, "eval_step=1", "teacher_pth=nowhere")
    told = list(doctor.run_checks(doctor.plan_run(config, distils=True)))
    assert {check.subject for check in told if check.state == FAIL} == {"data", "sets", "teacher"}
    unknown = [check.subject for check in told if "needs the data" in check.found]
    assert unknown == ["steps", "resume", "disk", "memory"]
    assert all(check.fix for check in told if check.state != PASS)


def test_sizes_of_the_config_serve_where_the_data_are_missing(tmp_path):
    config = config_of(tmp_path, tmp_path, "num_classes=7", "num_image=100")
    config.rec = str(tmp_path / "none")  # as a config file may say
    told = list(doctor.run_checks(doctor.plan_run(config)))
    assert ill([check for check in told if check.subject == "data"]).found.startswith("config rec: no folder")
    assert [check.found for check in told if check.subject == "steps"] == [
        "36, 12 an epoch; 1 process with 8 images each"
    ]
    assert {check.state for check in told if check.subject in ("disk", "memory")} == {PASS}


@pytest.mark.parametrize(
    ("kd", "fields", "unused", "fix"),
    [
        (False, ["w=3", "n_nodes=2"], "n_nodes, w: set, but not used by ./train.sh", "./train_kd.sh trains with"),
        (True, ["w=3", "n_nodes=2"], "n_nodes: set, but not used by ./train_kd.sh", "remove them from the config"),
    ],
)
def test_settings_without_effect_are_a_warning(tmp_path, tiny_data, kd, fields, unused, fix):
    check = ill(ask(config_of(tmp_path, tiny_data, *fields), "config", kd=kd))
    assert check.state == WARN and check.found == f"Config: {unused}" and check.fix.startswith(fix)


# --------------------------------------------------------------------------------------------------------- the schedule


def test_the_schedule_is_said():
    plan = doctor.plan_run(load_config(ROOT / "config" / "config_PocketNetS128.py"))
    network, schedule, _ = SUBJECTS["config"](plan)
    assert network.found == "PocketNetS, 16 channels, 18 cells, embedding 128, fp32"
    rates = "0.025 from 0, 0.0025 from 7, 0.00025 from 13, 2.5e-05 from 19, 2.5e-06 from 24"
    assert schedule.found == f"26 epochs; learning rate by epoch {rates}"
    plan.config.lr_func = lambda epoch: 1 - epoch / 26
    _, schedule, _ = SUBJECTS["config"](plan)
    assert schedule.found == "26 epochs; learning rate by epoch 0.025 to 0.000962"


# ----------------------------------------------------------------------------------------------------------------- data


def test_a_truncated_record_file(tmp_path, data):
    whole = (data / "train.rec").read_bytes()
    (data / "train.rec").write_bytes(whole[: len(whole) // 2])
    check = ill(ask(config_of(tmp_path, data), "data"))
    assert check.state == FAIL and "train.idx, line" in check.found and "copy both again" in check.fix


def test_a_label_that_is_no_class(tmp_path, data):
    (data / "property").write_text("3,112,112")
    check = ill(ask(config_of(tmp_path, data), "data"))
    assert check.state == FAIL and "label 3 is not one of the 3 classes" in check.found
    assert check.fix == "set num_classes=4 if the data is right"


def test_sizes_of_the_config_that_are_not_those_of_the_files(tmp_path, data):
    told = ask(config_of(tmp_path, data, "num_image=41"), "data")
    assert states(told) == [PASS, WARN]
    assert told[0].found == f"40 images of 4 identities in {data}"
    assert told[1].fix.startswith("change num_image in ")
    check = ill(ask(config_of(tmp_path, data, "num_classes=9"), "data"))
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
    check = only(ask(config_of(tmp_path, data, f"on_bad_image={what}"), "data", "images"))
    assert check.state == state and check.fix
    assert check.found.startswith(f"1 of 40 cannot be read: {data / 'train.rec'}: record 7 ")


def test_reading_images_ends_in_time(tmp_path, data, monkeypatch):
    monkeypatch.setattr(checks_of_data, "SECONDS", 0.0)
    check = only(ask(config_of(tmp_path, data), "data", "images"))
    assert check.state == PASS and check.found.startswith("1 read and decoded")


# --------------------------------------------------------------------------------------------------------- verification


@pytest.mark.parametrize(("eval_step", "state"), [(5, FAIL), (0, WARN)])
def test_verification_sets_that_are_missing_or_damaged(tmp_path, data, eval_step, state):
    config = config_of(tmp_path, data, f"eval_step={eval_step}")
    assert only(ask(config, "sets")) == Check("sets", PASS, "tiny: 20 pairs of 40 images")
    (data / "cut.bin").write_bytes((data / "tiny.bin").read_bytes()[:-1000])
    config.val_targets = ["cut", "tiny", "lfw"]
    told = ask(config, "sets")
    assert states(told) == [WARN, state, PASS] and all(check.fix for check in told[:2])
    assert told[0].found == f"no lfw.bin in {data}: left out" and "cut.bin: not a verification set" in told[1].found
    os.mkfifo(data / "pipe.bin")
    config.val_targets = ["pipe", "tiny"]
    check = ask(config, "sets")[0]
    assert check.state == state and "pipe.bin: is not a regular file (a pipe)" in check.found
    config.val_targets = ["lfw"]
    check = ill(ask(config, "sets"))
    assert check.state == state and "none of lfw.bin" in check.found


# ---------------------------------------------------------------------------------------------------- steps and workers


def test_a_batch_that_is_larger_than_the_data(tmp_path, tiny_data, monkeypatch):
    config = config_of(tmp_path, tiny_data, "batch_size=16")
    assert only(ask(config, "data", "steps")).found == "6, 2 an epoch; 1 process with 16 images each"
    monkeypatch.setenv("NPROC", "2")
    assert only(ask(config, "data", "steps")).found == "3, 1 an epoch; 2 processes with 16 images each"
    monkeypatch.setenv("NNODES", "2")
    check = ill(ask(config, "data", "steps"))
    assert check.state == FAIL and "16 images on 4 processes" in check.found and check.fix == "lower batch_size"
    config.batch_size = 1
    assert "batch norm" in ill(ask(config, "data", "steps")).found


def test_processes_are_counted_as_they_are_started(tmp_path, tiny_data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    config = config_of(tmp_path, tiny_data)

    def counted(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        plan = doctor.plan_run(config)
        return plan.local_processes, plan.processes

    assert counted() == (4, 4)
    assert counted(NPROC="2", NNODES="3") == (2, 6)
    assert counted(WORLD_SIZE="8", LOCAL_WORLD_SIZE="4") == (4, 8)  # as torchrun says
    for wrong in ("0", "-1", "two", "1e3"):
        with pytest.raises(UserError, match="NNODES: should be a whole number from 1"):
            counted(NNODES=wrong)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no such folder for shared memory")
def test_shared_memory_that_is_too_small(tmp_path, tiny_data, monkeypatch):
    config = config_of(tmp_path, tiny_data, "workers=2")
    found = "2 for each of 1 process, 4.6 MiB of shared memory"
    assert only(ask(config, "data", "steps", "workers")) == Check("workers", PASS, found)
    monkeypatch.setenv("NPROC", "2")
    size = 2 * 8 * 8 * 112 * 112 * 3  # of a process
    for most, state in ((2 * size, PASS), (2 * size - 1, FAIL)):
        left = iter([most, most - size])
        monkeypatch.setattr(shutil, "disk_usage", lambda path, left=left: Usage(1 << 40, 0, next(left)))
        check = only(ask(config, "data", "steps", "workers"))
        assert check.state == state and ("--shm-size" in check.fix) == (state == FAIL)


# ------------------------------------------------------------------------------------------------------ a sharded head


def test_a_sharded_head_needs_a_class_for_every_process(tmp_path, tiny_data, monkeypatch):
    config = config_of(tmp_path, tiny_data, "batch_size=4")  # 4 classes
    monkeypatch.setenv("NPROC", "5")
    assert ask(config, "data", "steps", "head") == []  # whole, it is not split
    config.head = "sharded"
    check = ill(ask(config, "data", "steps", "head"))
    assert (check.state, check.fix) == (FAIL, "4 processes at most, or head=whole")
    assert check.found == "head: 4 classes cannot be split over 5 processes"  # as the training says
    assert ill(ask(config, "head")).state == WARN  # classes are not known
    monkeypatch.setenv("NPROC", "3")
    found = "sharded over 3 processes: at most 2 of 4 classes each"
    assert only(ask(config, "data", "steps", "head")) == Check("head", PASS, found)
    config.sample_rate = 0.5
    assert only(ask(config, "data", "steps", "head")).found == f"{found}, 0.5 of them a step"


# -------------------------------------------------------------------------------------------------------------- mends


def test_an_error_that_names_no_mend_is_given_one(tmp_path):
    def read():
        yield Check("disk", PASS, (tmp_path / "none").read_text())

    check = ill(collect_checks("disk", read()))
    assert check.state == FAIL and str(tmp_path / "none") in check.found
