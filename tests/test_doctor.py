"""The doctor: every failure provoked, none of them told of a run that is well."""

import os
import shutil
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from config import load_config
from tests.conftest import DEMO, ROOT, run_command, write_data
from tests.training import CPU, run, small_config, small_task
from utils import doctor, step_memory
from utils.checkpoint import save_checkpoint
from utils.dataset import FaceDataset
from utils.distributed import World
from utils.doctor import FAIL, PASS, SUBJECTS, WARN, Check
from utils.errors import UserError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def one_process_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("NPROC", "NNODES", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CXX", "CC"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def data(tmp_path) -> Path:
    """A data set that a test may damage."""
    return write_data(tmp_path / "data")


def config_of(folder, data, *fields):
    return small_config(folder, data, "val_targets=tiny", *fields)


def ask(config, *subjects: str) -> list[Check]:
    """What the doctor says of the last of the subjects, the others having been asked before."""
    plan = doctor.plan_run(config)
    told: list[Check] = []
    for subject in subjects:
        told = list(doctor.heard(subject, SUBJECTS[subject](plan)))
    return told


def states(checks) -> list[str]:
    return [check.state for check in checks]


def only(checks) -> Check:
    (check,) = checks
    return check


def ill(checks) -> Check:
    """The only one that is not well; it must say how to mend it."""
    check = only([check for check in checks if check.state != PASS])
    assert check.found and check.mend
    return check


# --------------------------------------------------------------------------------------------------------- the command


def test_a_healthy_run_passes(demo):
    done = run_command(demo, sys.executable, "-m", "utils.doctor", *DEMO, "output=output/well", "num_epoch=2")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "pass  data       48 images of 6 identities in data/faces_demo" in lines
    assert "pass  steps      12, 6 an epoch; 1 process with 8 images each" in lines
    assert lines[-1].endswith(" pass, 0 warn, 0 fail") and "mend:" not in done.stdout
    assert {line.split()[1] for line in lines[:-1]} == set(SUBJECTS) - {"precision", "teacher"}  # not asked for
    assert not list((demo / "output" / "well").iterdir())


def test_a_warning_is_no_failure_and_a_failure_is_exit_code_1(demo):
    warned = run_command(demo, sys.executable, "-m", "utils.doctor", *DEMO, "num_epoch=2")
    assert warned.returncode == 0
    assert "warn  resume     output/demo holds the whole run" in warned.stdout
    failed = run_command(demo, sys.executable, "utils/doctor.py", *DEMO, "output=output/ill", "--multi-step")
    assert failed.returncode == 1
    assert "\nfail  teacher    config teacher_pth: is empty\n                 mend: name the folder" in failed.stdout
    assert "\npass  memory " in failed.stdout and failed.stdout.endswith(", 1 fail\n")


def test_a_wrong_config_is_exit_code_2(demo):
    for fields, environment in ((["lr=-1"], {}), ([], {"NPROC": "none"})):
        done = run_command(demo, sys.executable, "-m", "utils.doctor", *DEMO, *fields, **environment)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stdout == ""


def test_one_failure_hides_no_other(tmp_path, data):
    (data / "train.rec").unlink()
    (data / "tiny.bin").write_bytes(b"no pickle")
    config = config_of(tmp_path, data, "eval_step=1", "teacher_pth=nowhere")
    told = list(doctor.examine(doctor.plan_run(config)))
    assert {check.subject for check in told if check.state == FAIL} == {"data", "sets", "teacher"}
    unknown = [check.subject for check in told if "takes the data" in check.found]
    assert unknown == ["steps", "resume", "disk", "memory"]
    assert all(check.mend for check in told if check.state != PASS)


def test_sizes_of_the_config_serve_where_the_data_are_missing(tmp_path):
    config = config_of(tmp_path, tmp_path, "num_classes=7", "num_image=100")
    config.rec = str(tmp_path / "none")  # as a config file may say
    told = list(doctor.examine(doctor.plan_run(config)))
    assert ill([check for check in told if check.subject == "data"]).found.startswith("config rec: no folder")
    assert [check.found for check in told if check.subject == "steps"] == [
        "36, 12 an epoch; 1 process with 8 images each"
    ]
    assert {check.state for check in told if check.subject in ("disk", "memory")} == {PASS}


# ---------------------------------------------------------------------------------------------------------------- data


def test_a_truncated_record_file(tmp_path, data):
    whole = (data / "train.rec").read_bytes()
    (data / "train.rec").write_bytes(whole[: len(whole) // 2])
    check = ill(ask(config_of(tmp_path, data), "data"))
    assert check.state == FAIL and "train.idx, line" in check.found and "copy both again" in check.mend


def test_a_label_that_is_no_class(tmp_path, data):
    (data / "property").write_text("3,112,112")
    check = ill(ask(config_of(tmp_path, data), "data"))
    assert check.state == FAIL and "label 3 is not one of the 3 classes" in check.found
    assert check.mend == "set num_classes=4 if the data is right"


def test_sizes_of_the_config_that_are_not_those_of_the_files(tmp_path, data):
    told = ask(config_of(tmp_path, data, "num_classes=9", "num_image=41"), "data")
    assert states(told) == [PASS, WARN, WARN]
    assert told[0].found == f"40 images of 9 identities in {data}"
    assert [check.mend.split(" in ")[0] for check in told[1:]] == ["change num_classes", "change num_image"]


@pytest.mark.parametrize(("what", "state"), [("error", FAIL), ("skip", WARN)])
def test_an_image_that_cannot_be_decoded(tmp_path, data, what, state):
    reader = FaceDataset(data).reader
    record = reader.read(7)
    at = (data / "train.rec").read_bytes().index(record) + 24  # behind the image's header
    with (data / "train.rec").open("r+b") as file:
        file.seek(at)
        file.write(bytes(len(record) - 24))
    check = only(ask(config_of(tmp_path, data, f"on_bad_image={what}"), "data", "images"))
    assert check.state == state and check.mend
    assert check.found.startswith(f"1 of 40 cannot be read: {data / 'train.rec'}: record 7 ")


def test_reading_images_ends_in_time(tmp_path, data, monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 0.0)
    check = only(ask(config_of(tmp_path, data), "data", "images"))
    assert check.state == PASS and check.found.startswith("1 read and decoded")


# ------------------------------------------------------------------------------------------------------ verification


@pytest.mark.parametrize(("eval_step", "state"), [(5, FAIL), (0, WARN)])
def test_verification_sets_that_are_missing_or_damaged(tmp_path, data, eval_step, state):
    config = config_of(tmp_path, data, f"eval_step={eval_step}")
    assert only(ask(config, "sets")) == Check("sets", PASS, "tiny: 20 pairs of 40 images")
    (data / "cut.bin").write_bytes((data / "tiny.bin").read_bytes()[:-1000])
    config.val_targets = ["cut", "tiny", "lfw"]
    told = ask(config, "sets")
    assert states(told) == [WARN, state, PASS] and all(check.mend for check in told[:2])
    assert told[0].found == f"no lfw.bin in {data}: left out" and "cut.bin: not a verification set" in told[1].found
    config.val_targets = ["lfw"]
    check = ill(ask(config, "sets"))
    assert check.state == state and "none of lfw.bin" in check.found


# -------------------------------------------------------------------------------------------------- steps and workers


def test_a_batch_that_is_larger_than_the_data(tmp_path, tiny_data, monkeypatch):
    config = config_of(tmp_path, tiny_data, "batch_size=16")
    assert only(ask(config, "data", "steps")).found == "6, 2 an epoch; 1 process with 16 images each"
    monkeypatch.setenv("NPROC", "2")
    assert only(ask(config, "data", "steps")).found == "3, 1 an epoch; 2 processes with 16 images each"
    monkeypatch.setenv("NNODES", "2")
    check = ill(ask(config, "data", "steps"))
    assert check.state == FAIL and "16 images on 4 processes" in check.found and check.mend == "lower batch_size"
    config.batch_size = 1
    assert "batch norm" in ill(ask(config, "data", "steps")).found


def test_processes_are_counted_as_they_are_started(tmp_path, tiny_data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    config = config_of(tmp_path, tiny_data)

    def counted(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        plan = doctor.plan_run(config)
        return plan.local, plan.processes

    assert counted() == (4, 4)
    assert counted(NPROC="2", NNODES="3") == (2, 6)
    assert counted(WORLD_SIZE="8", LOCAL_WORLD_SIZE="4") == (4, 8)  # as torchrun says
    for wrong in ("0", "-1", "two", "1e3"):
        with pytest.raises(UserError, match="NNODES: should be a whole number from 1"):
            counted(NNODES=wrong)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no such folder for shared memory")
def test_shared_memory_that_is_too_small(tmp_path, tiny_data, monkeypatch):
    config = config_of(tmp_path, tiny_data, "workers=2")
    found = "2 for each of 1 process, 3.4 MiB of shared memory"
    assert only(ask(config, "data", "steps", "workers")) == Check("workers", PASS, found)
    monkeypatch.setenv("NPROC", "2")
    size = 2 * 6 * 8 * 112 * 112 * 3  # of a process
    for most, state in ((2 * size, PASS), (2 * size - 1, FAIL)):
        left = iter([most, most - size])
        monkeypatch.setattr(shutil, "disk_usage", lambda path, left=left: Usage(1 << 40, 0, next(left)))
        check = only(ask(config, "data", "steps", "workers"))
        assert check.state == state and ("--shm-size" in check.mend) == (state == FAIL)


# ----------------------------------------------------------------------------------------------------- what is written


def test_a_folder_that_cannot_be_written(tmp_path, tiny_data):
    (tmp_path / "file").write_text("")
    fields = [f"output={tmp_path / 'file' / 'out'}", f"teacher_pth={tmp_path}", f"teacher_cache={tmp_path / 'file'}"]
    told = ask(config_of(tmp_path, tiny_data, *fields), "output")
    assert states(told) == [FAIL, PASS, FAIL]
    assert [check.mend for check in told] == [
        "name another with output=FOLDER",
        "",
        "name another with teacher_cache=FOLDER",
    ]


def test_a_disk_that_is_too_small(tmp_path, tiny_data, monkeypatch):
    config = config_of(tmp_path, tiny_data)
    need = doctor._output_bytes(known(config))
    for free, state in ((need - 1, FAIL), (need, WARN), (2 * need, PASS)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, left=free: Usage(1 << 40, 0, left))
        check = only(ask(config, "data", "steps", "disk"))
        assert check.state == state and ("output=FOLDER" in check.mend) == (state != PASS)


def known(config) -> doctor.Run:
    """The doctor's plan once the data and the steps are known."""
    plan = doctor.plan_run(config)
    assert all(check.state == PASS for subject in ("data", "steps") for check in SUBJECTS[subject](plan))
    return plan


@pytest.mark.parametrize("fields", [[], ["save_initial=1", "keep=1", "num_epoch=2"]])
def test_the_disk_space_is_what_a_run_takes(tmp_path, tiny_data, fields):
    config = config_of(tmp_path, tiny_data, *fields)
    need = doctor._output_bytes(known(config))
    run(config)
    written = [path.stat().st_size for path in Path(config.output).glob("*header.pth")]
    written += [path.stat().st_size for path in Path(config.output).glob("*backbone.pth")]
    checkpoints = [path.stat().st_size for path in Path(config.output).glob("checkpoint.*.pth")]
    assert len(checkpoints) == config.keep and len(written) == 2 * (config.num_epoch + config.save_initial)
    taken = sum(written) + max(checkpoints) * (config.keep + 1)
    assert 0.9 * taken < need < 1.1 * taken


def test_what_a_teacher_cache_takes(tmp_path, tiny_data, monkeypatch):
    teachers = teachers_of(tmp_path, tiny_data, 3)
    config = config_of(tmp_path, tiny_data, f"teacher_pth={teachers}", "teacher_network=PocketNet", "multi_step=1")
    subjects = ("data", "steps", "teacher", "disk")
    monkeypatch.setattr(doctor, "_output_bytes", lambda plan: 0)
    size = 40 * (4 * 16 + 8)
    config.teacher_cache = str(tmp_path / "cache" / "of" / "teachers")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, 3 * size - 1))
    assert ill(ask(config, *subjects)).mend.endswith("teacher_cache=FOLDER")
    Path(config.teacher_cache).mkdir(parents=True)
    (Path(config.teacher_cache) / "5backbone-0123456789ab.f16").write_bytes(bytes(40 * 4 * 16))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, 3 * size - 1))
    assert only(ask(config, *subjects)).state == PASS


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.fixture(scope="module")
def begun(tmp_path_factory, tiny_data) -> Path:
    """A folder with a run of two of three epochs; not to be changed."""
    folder = tmp_path_factory.mktemp("begun")
    run(config_of(folder, tiny_data, "max_steps=10"))
    return folder


@pytest.fixture
def going_on(begun, tmp_path) -> Path:
    """A copy of it."""
    shutil.copytree(begun / "out", tmp_path / "out")
    return tmp_path


def ask_resume(folder, data, *fields):
    return ask(config_of(folder, data, *fields), "data", "steps", "resume")


def test_where_a_run_goes_on(going_on, tiny_data, monkeypatch):
    assert only(ask_resume(going_on, tiny_data)) == Check("resume", PASS, "goes on from step 10, in epoch 2")
    monkeypatch.setenv("NPROC", "2")
    published = ["resume=1", "global_step=5"]
    assert only(ask_resume(going_on, tiny_data)).found == "goes on from step 10, in epoch 2"
    for path in (going_on / "out").glob("checkpoint*"):
        path.unlink()
    # 40 images are two steps of two processes
    assert only(ask_resume(going_on, tiny_data, *published)).found == "goes on from step 5, in epoch 2"
    assert only(ask_resume(going_on, tiny_data)).found == "begins anew"


def test_what_remains_of_the_run_is_what_takes_space(going_on, tiny_data):
    config = config_of(going_on, tiny_data)
    plan = known(config)
    anew = doctor._output_bytes(known(config_of(going_on / "new", tiny_data)))
    list(SUBJECTS["resume"](plan))
    checkpoint = max(path.stat().st_size for path in (going_on / "out").glob("checkpoint.*.pth"))
    assert doctor._output_bytes(plan) < anew - checkpoint


def test_a_damaged_checkpoint(going_on, tiny_data):
    newest = going_on / "out" / "checkpoint.10.pth"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 255
    for name in ("checkpoint.pth", "checkpoint.10.pth"):
        (going_on / "out" / name).write_bytes(content)
    told = ask_resume(going_on, tiny_data)
    assert [check.state for check in told] == [PASS, WARN, WARN] and told[0].found == "goes on from step 5, in epoch 1"
    assert all("damaged" in check.found and check.mend for check in told[1:])
    (going_on / "out" / "checkpoint.5.pth").unlink()
    assert states(ask_resume(going_on, tiny_data)) == [FAIL, WARN, WARN]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        (["n_layers=5"], "is of another network"),
        (["seed=1"], "config seed"),
        (["teacher_pth=elsewhere"], "another kind of run"),
        (["resume=1", "global_step=11"], "11header.pth: no such checkpoint"),
    ],
)
def test_a_run_that_cannot_go_on(going_on, tiny_data, fields, found):
    check = only(ask_resume(going_on, tiny_data, *fields))
    assert check.state == FAIL and found in check.found


def test_a_run_that_is_done_and_one_that_begins_anew(going_on, tiny_data):
    before = sorted((going_on / "out").iterdir())
    check = ill(ask_resume(going_on, tiny_data, "num_epoch=2"))
    assert check.state == WARN and "the whole run" in check.found
    check = only(ask_resume(going_on, tiny_data, "resume=0"))
    assert check == Check("resume", PASS, "begins anew; 3 checkpoint files will be put aside")
    assert ask_resume(going_on / "none", tiny_data, "resume=0")[0].found == "begins anew"
    assert sorted((going_on / "out").iterdir()) == before


# ------------------------------------------------------------------------------------------------------------- teacher


def teachers_of(folder, data, epochs) -> Path:
    """A folder with a teacher's checkpoint of each epoch: 5, 10, …"""
    task = small_task(config_of(folder, data), 4)
    for epoch in range(epochs):
        save_checkpoint(folder / "teachers", 5 * (epoch + 1), task.backbone, task.header)
    return folder / "teachers"


def ask_teacher(folder, data, *fields):
    fields = [f"teacher_pth={folder / 'teachers'}", "teacher_network=PocketNet", *fields]
    return ask(config_of(folder, data, *fields), "data", "steps", "teacher")


def test_a_teacher_that_serves(tmp_path, tiny_data):
    teachers = teachers_of(tmp_path, tiny_data, 3)
    found = f"files in {teachers} whole"
    assert only(ask_teacher(tmp_path, tiny_data, "multi_step=1")) == Check("teacher", PASS, f"3 of 3 {found}")
    told = ask_teacher(
        tmp_path, tiny_data, "teacher_global_step=10", f"student_pth={teachers}", "student_global_step=5"
    )
    assert states(told) == [PASS, PASS]
    assert [told[0].found, told[1].found] == [
        f"1 of 1 {found}",
        f"the student starts from {teachers / '5backbone.pth'}",
    ]


def test_teacher_files_that_are_missing(tmp_path, tiny_data):
    teachers = teachers_of(tmp_path, tiny_data, 3)
    check = ill(ask_teacher(tmp_path, tiny_data, "teacher_global_step=11"))
    assert check.state == FAIL and "no trained" in check.found and "teacher_pth=)" in check.mend
    (teachers / "10backbone.pth").unlink()
    check = ill(ask_teacher(tmp_path, tiny_data, "multi_step=1"))
    assert check.state == WARN and check.found.startswith("2 checkpoints of a teacher for 3 epochs")
    check = ill(ask(config_of(tmp_path, tiny_data, "multi_step=1"), "data", "steps", "teacher"))
    assert check.state == FAIL and check.found == "config teacher_pth: is empty"
    check = ill(ask_teacher(tmp_path, tiny_data, "teacher_global_step=5", f"student_pth={teachers}"))
    assert check.state == FAIL and check.found == f"{teachers / '0backbone.pth'}: no such checkpoint"


def test_teacher_files_that_are_damaged_are_all_named(tmp_path, tiny_data):
    teachers = teachers_of(tmp_path, tiny_data, 3)
    for step in (5, 15):
        (teachers / f"{step}backbone.pth").write_bytes((teachers / f"{step}backbone.pth").read_bytes()[:5000])
    told = ask_teacher(tmp_path, tiny_data, "multi_step=1")
    assert states(told) == [FAIL, FAIL, PASS] and told[2].found.startswith("1 of 3 files")
    assert all(
        f"{step}backbone.pth: not a readable" in c.found and c.mend for step, c in zip((5, 15), told, strict=False)
    )
    told = ask_teacher(tmp_path, tiny_data, "teacher_global_step=10", "teacher_n_layers=5")
    assert states(told) == [FAIL, FAIL] and "is of another network" in told[0].found


# ------------------------------------------------------------------------------------------------- device and precision


def test_a_cpu_with_more_processes_than_cores(tmp_path, tiny_data, monkeypatch):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    config = config_of(tmp_path, tiny_data)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert only(ask(config, "device")).state == PASS
    monkeypatch.setenv("NPROC", str(cores + 1))
    assert ill(ask(config, "device")).mend == f"NPROC={cores} at most"


def test_gpus(tmp_path, tiny_data, monkeypatch):
    config = config_of(tmp_path, tiny_data)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    check = ill(ask(config, "device"))  # a driver, and no GPU to be seen
    assert check.state == WARN and "nvidia-smi" in check.mend
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    assert only(ask(config, "device")) == Check("device", PASS, "2 processes here, 2 GPUs: Some GPU")
    monkeypatch.setenv("NPROC", "3")
    check = ill(ask(config, "device"))
    assert (check.state, check.mend) == (FAIL, "NPROC=2 at most")


def test_half_precision(tmp_path, tiny_data, monkeypatch):
    config = config_of(tmp_path, tiny_data, "precision=bf16", "teacher_precision=fp16")
    assert ill(ask(config, "precision")).mend == "precision=fp32"
    config.teacher_pth = "somewhere"
    assert [check.mend for check in ask(config, "precision")] == ["precision=fp32", "teacher_precision=fp32"]
    plan = replace(doctor.plan_run(config), world=World(0, 1, torch.device("cuda", 0)))
    for has, wanted in ((True, [PASS, PASS]), (False, [WARN, PASS])):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert states(doctor.precision(plan)) == wanted


def test_compilation_without_a_compiler(tmp_path, tiny_data, monkeypatch):
    config = config_of(tmp_path, tiny_data, "compile=1")
    monkeypatch.setenv("CXX", "my++")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert only(ask(config, "precision")) == Check("precision", PASS, "compile=True, by my++")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    check = ill(ask(config, "precision"))
    assert (check.state, check.mend) == (FAIL, "install my++, or compile=False")


# -------------------------------------------------------------------------------------------------------------- memory


def test_memory_that_is_too_small(tmp_path, tiny_data, monkeypatch):
    config = config_of(tmp_path, tiny_data, "batch_size=20")
    plan = known(config)
    fixed, by_image = doctor.step_bytes(plan)
    fixed, by_image = doctor.PROCESS + fixed + 4 * plan.header_bytes, doctor.HEAP * by_image
    need = int(fixed + 20 * by_image)
    for free, state in ((need - 2, FAIL), (need + 2, WARN), (2 * need, PASS)):
        monkeypatch.setattr(doctor, "available_memory", lambda free=free: free)
        check = only(ask(config, "data", "steps", "memory"))
        assert check.state == state
        if state == FAIL:
            assert check.mend == f"batch_size={int((0.85 * free - fixed) / by_image)} fits"
    monkeypatch.setattr(doctor, "available_memory", lambda: 1 << 20)
    check = only(ask(config, "data", "steps", "memory"))
    assert check.state == FAIL and check.mend.startswith("free some")
    monkeypatch.setattr(doctor, "available_memory", lambda: None)
    assert ill(ask(config, "data", "steps", "memory")).state == WARN


def test_what_is_free_of_memory(tmp_path, monkeypatch):
    for name in ("meminfo", "limit", "other"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(step_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(step_memory, "LIMITS", (tmp_path / "limit", tmp_path / "missing"))
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    4000 kB\nHugePages_Total:  0\n")
    (tmp_path / "limit").write_text("max\n")
    assert step_memory.available_memory() == 4000 * 1024
    (tmp_path / "limit").write_text("1000\n")
    assert step_memory.available_memory() == 1000
    (tmp_path / "meminfo").unlink()
    assert step_memory.available_memory() is None


def test_memory_of_gpus(tmp_path, tiny_data, monkeypatch):
    config = config_of(tmp_path, tiny_data, "batch_size=10")
    plan = known(config)
    plan.world = World(0, 1, torch.device("cuda", 0))
    free = {0: 5 << 30, 1: 3 << 30}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free[index], 8 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(doctor, "step_bytes", lambda plan: (1 << 30, 3 << 28))
    told = list(doctor.memory(plan))
    assert states(told) == [FAIL, PASS] and told[0].mend == "batch_size=2 fits"
    assert told[0].found.startswith("8.50 GiB needed of 3.00 GiB free on each Some GPU")

    def fails(plan):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(doctor, "step_bytes", fails)
    check = only(doctor.heard("memory", doctor.memory(plan)))
    assert check.state == FAIL and check.found == "a step of three images fails on cuda:0: CUDA out of memory."


def test_what_a_step_keeps_is_counted(tmp_path):
    """By hand: a convolution keeps its input, a batch norm its input and four numbers a channel."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.ReLU()
    )
    image, maps = 3 * 112 * 112 * 4, 8 * 56 * 56 * 4
    for n in (2, 5):
        assert step_memory.kept_bytes(network, n, CPU, "fp32") == n * (image + 2 * maps) + 4 * 8 * 4
    assert all(parameter.grad is None for parameter in network.parameters())
    assert step_memory.largest_output(network, CPU) == maps


def test_a_teacher_and_half_precision_change_what_a_step_takes(tmp_path, tiny_data):
    teachers_of(tmp_path, tiny_data, 1)
    plan = known(config_of(tmp_path, tiny_data))
    fixed, by_image = doctor.step_bytes(plan)
    plan.config.precision = "bf16"
    assert doctor.step_bytes(plan)[1] - 16 * 4 == pytest.approx((by_image - 16 * 4) / 2)
    taught = known(
        config_of(
            tmp_path, tiny_data, f"teacher_pth={tmp_path / 'teachers'}", "teacher_network=PocketNet", "multi_step=1"
        )
    )
    list(SUBJECTS["teacher"](taught))
    more, for_image = doctor.step_bytes(taught)
    assert more - fixed == sum(parameter.nbytes for parameter in taught.backbone.parameters())
    assert for_image - by_image == 3 * 16 * 56 * 56 * 4


# ------------------------------------------------------------------------------------------------------------- configs


def test_the_schedule_is_said():
    plan = doctor.plan_run(load_config(ROOT / "config" / "config_PocketNetS128.py"))
    network, schedule = doctor.settings(plan)
    assert network.found == "PocketNetS, 16 channels, 18 cells, embedding 128, fp32"
    rates = "0.025 from 0, 0.0025 from 7, 0.00025 from 13, 2.5e-05 from 19, 2.5e-06 from 24"
    assert schedule.found == f"26 epochs; learning rate by epoch {rates}"
    plan.config.lr_func = lambda epoch: 1 - epoch / 26
    _, schedule = doctor.settings(plan)
    assert schedule.found == "26 epochs; learning rate by epoch 0.025 to 0.000962"
