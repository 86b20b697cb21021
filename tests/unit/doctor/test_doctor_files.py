"""What the doctor says of files: those that a run will write, goes on from, and learns from."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.doctor_helpers import (
    Usage,
    check_plan,
    check_states,
    make_config,
    make_plan,
    one_process_on_a_cpu,  # noqa: F401  (for every test here)
    run_checks,
    single,
    single_failure,
    write_teachers,
)
from tests.helpers.training import train_small
from utils.doctor import machine
from utils.doctor.plan import DISTILLATION, TRAINING
from utils.doctor.table import FAIL, PASS, WARN, Check

START = ("data", "steps", "task")


def started_plan(config, kind=TRAINING):
    """The plan of a run whose task is built."""
    plan = make_plan(config, kind)
    assert check_states(check_plan(plan, *START)) == [PASS]
    return plan


# ------------------------------------------------------------------------------------------------------ what is written


def test_a_folder_that_cannot_be_written(tmp_path, tiny_data):
    (tmp_path / "file").write_text("")
    fields = [f"output={tmp_path / 'file' / 'out'}", f"teacher_pth={tmp_path}", f"teacher_cache={tmp_path / 'file'}"]
    checks = run_checks(make_config(tmp_path, tiny_data, *fields), "output", kind=DISTILLATION)
    assert check_states(checks) == [FAIL, PASS, FAIL]
    assert [check.fix for check in checks] == [
        "name another with output=FOLDER",
        "",
        "name another with teacher_cache=FOLDER",
    ]


def test_a_disk_that_is_too_small(tmp_path, tiny_data, monkeypatch):
    config = make_config(tmp_path, tiny_data)
    need = machine.output_bytes(started_plan(config))
    for free, state in ((need - 1, FAIL), (need, WARN), (2 * need, PASS)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, left=free: Usage(1 << 40, 0, left))
        check = single(run_checks(config, *START, "disk"))
        assert check.state == state and ("output=FOLDER" in check.fix) == (state != PASS)


@pytest.mark.parametrize("fields", [[], ["save_initial=1", "keep=1", "num_epoch=2"]])
def test_the_disk_space_is_what_a_run_takes(tmp_path, tiny_data, fields):
    config = make_config(tmp_path, tiny_data, *fields)
    need = machine.output_bytes(started_plan(config))
    train_small(config)
    written = [path.stat().st_size for path in Path(config.output).glob("*header.pth")]
    written += [path.stat().st_size for path in Path(config.output).glob("*backbone.pth")]
    checkpoints = [path.stat().st_size for path in Path(config.output).glob("checkpoint.*.pth")]
    assert len(checkpoints) == config.keep and len(written) == 2 * (config.num_epoch + config.save_initial)
    taken = sum(written) + max(checkpoints) * (config.keep + 1)
    assert 0.9 * taken < need < 1.1 * taken


# --------------------------------------------------------------------------------------------------------------- resume


@pytest.fixture(scope="module")
def begun(tmp_path_factory, tiny_data) -> Path:
    """A folder with a run of two of three epochs; not to be changed."""
    folder = tmp_path_factory.mktemp("begun")
    train_small(make_config(folder, tiny_data, "max_steps=10"))
    return folder


@pytest.fixture
def going_on(begun, tmp_path) -> Path:
    """A copy of it."""
    shutil.copytree(begun / "out", tmp_path / "out")
    return tmp_path


def ask_resume(folder, data, *fields, kind=TRAINING):
    """What the doctor says of the start of a run, after the line of its steps."""
    steps, *checks = run_checks(make_config(folder, data, *fields), "data", "steps", kind=kind)
    return checks if " an epoch; " in steps.found else [steps, *checks]


def test_where_a_run_goes_on(going_on, tiny_data):
    assert single(ask_resume(going_on, tiny_data)) == Check("steps", PASS, "resumes from step 10, in epoch 2")
    for path in (going_on / "out").glob("checkpoint*"):
        path.unlink()
    checks = ask_resume(going_on, tiny_data, "resume=1", "global_step=5")
    assert checks[0].found == "resumes from step 5, in epoch 1"
    checks = ask_resume(going_on, tiny_data, "resume=1", "global_step=5", "batch_size=16")  # an epoch of 2 steps
    assert checks[0].found == "resumes from step 5, in epoch 2" and all(check.fix for check in checks[1:])
    assert check_states(checks) == [PASS, WARN]
    out = going_on / "out"
    assert (
        single(ask_resume(going_on, tiny_data)).found
        == f"starts from scratch; 4 files of the earlier run will be moved to {out}/old-N"
    )


def test_what_remains_of_the_run_is_what_takes_space(going_on, tiny_data):
    config = make_config(going_on, tiny_data)
    anew = machine.output_bytes(started_plan(make_config(going_on / "new", tiny_data)))
    checkpoint = max(path.stat().st_size for path in (going_on / "out").glob("checkpoint.*.pth"))
    assert machine.output_bytes(started_plan(config)) < anew - checkpoint


def test_checkpoints_that_will_be_put_aside_make_no_room(going_on, tiny_data):
    for name in ("checkpoint.pth", "checkpoint.10.pth"):
        (going_on / "out" / name).unlink()
    for fields, epoch, replaced in (([], 1, 1), (["resume=1", "global_step=10"], 2, 0)):
        plan = started_plan(make_config(going_on, tiny_data, *fields))
        assert (plan.resume_point.progress.epoch, plan.replaced) == (epoch, replaced)


def test_a_damaged_checkpoint(going_on, tiny_data):
    newest = going_on / "out" / "checkpoint.10.pth"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 255
    for name in ("checkpoint.pth", "checkpoint.10.pth"):
        (going_on / "out" / name).write_bytes(content)
    checks = ask_resume(going_on, tiny_data)
    assert [check.state for check in checks] == [PASS, WARN, WARN] and checks[
        0
    ].found == "resumes from step 5, in epoch 1"
    assert all("damaged" in check.found and check.fix for check in checks[1:])
    (going_on / "out" / "checkpoint.5.pth").unlink()
    assert check_states(ask_resume(going_on, tiny_data)) == [FAIL, WARN, WARN]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        (["seed=1"], "config seed"),
        (["teacher_pth=elsewhere", "--kd"], "another kind of run"),
        (["resume=1", "global_step=11"], "11header.pth: no such checkpoint"),
    ],
)
def test_a_run_that_cannot_go_on(going_on, tiny_data, fields, found):
    kd = "--kd" in fields
    kind = DISTILLATION if kd else TRAINING
    check = ask_resume(going_on, tiny_data, *[field for field in fields if field != "--kd"], kind=kind)[0]
    assert check.state == FAIL and found in check.found and check.fix
    assert "--resume 0" not in check.fix or "moves the files there" in check.fix
    assert not kd or check.fix == "resume it with ./train.sh, or name another output"
    assert ("global_step=STEP" in check.fix) == ("header.pth" in found)


@pytest.mark.parametrize("fields", [["resume=auto"], ["resume=1", "global_step=10"]])
def test_weights_of_another_network_end_the_dry_run(going_on, tiny_data, fields):
    before = {path: path.read_bytes() for path in (going_on / "out").iterdir()}
    config = make_config(going_on, tiny_data, "n_layers=5", *fields)
    if "global_step=10" in fields:
        for path in (going_on / "out").glob("checkpoint*"):
            path.unlink()
            del before[path]
    check = single_failure(run_checks(config, *START, "dry run"))
    name = "10backbone.pth" if "global_step=10" in fields else "checkpoint.pth (backbone)"
    assert check.state == FAIL and check.found.startswith(f"{going_on / 'out' / name}: belongs to another network")
    assert check.fix == "check net_name, channel, n_layers, genotype"
    assert {path: path.read_bytes() for path in (going_on / "out").iterdir()} == before


def test_a_run_that_is_done_and_one_that_begins_anew(going_on, tiny_data):
    before = sorted((going_on / "out").iterdir())
    check = single_failure(ask_resume(going_on, tiny_data, "num_epoch=2"))
    assert check.state == WARN and "is finished" in check.found
    check = single(ask_resume(going_on, tiny_data, "resume=0"))
    moved = f"starts from scratch; 7 files of the earlier run will be moved to {going_on / 'out'}/old-N"
    assert check == Check("steps", PASS, moved)
    assert ask_resume(going_on / "none", tiny_data, "resume=0")[0].found == "starts from scratch"
    assert sorted((going_on / "out").iterdir()) == before


# -------------------------------------------------------------------------------------------------------------- teacher


def ask_teacher(folder, data, *fields):
    fields = [f"teacher_pth={folder / 'teachers'}", "teacher_network=PocketNet", *fields]
    return run_checks(make_config(folder, data, *fields), *START, kind=DISTILLATION)


@pytest.mark.parametrize("fields", [["multi_step=1"], ["teacher_global_step=10"]])
def test_a_teacher_that_serves(tmp_path, tiny_data, fields):
    teachers = write_teachers(tmp_path, tiny_data, 3)
    check = single(ask_teacher(tmp_path, tiny_data, *fields))
    assert check.state == PASS and check.found.endswith(f" weights on cpu, learns from {teachers}")


def test_the_dry_run_learns_from_the_teacher_and_fills_no_cache(tmp_path, tiny_data):
    teachers, cache = write_teachers(tmp_path, tiny_data, 1), tmp_path / "cache"
    fields = [f"teacher_pth={teachers}", "teacher_network=PocketNet", "multi_step=1", f"teacher_cache={cache}"]
    plan = make_plan(make_config(tmp_path, tiny_data, *fields, "num_epoch=1"), DISTILLATION)
    checks = check_plan(plan, *START, "dry run")
    assert check_states(checks) == [PASS, PASS]
    assert checks[0].found.endswith(" for the run, without evaluation and the teacher's cache")
    assert plan.task.targets.active_checkpoint == teachers / "5backbone.pth" and not cache.exists()


def test_weights_that_a_run_starts_from(tmp_path, tiny_data):
    weights = write_teachers(tmp_path, tiny_data, 1)
    fields = [f"student_pth={weights}", "student_global_step=5"]

    def ask_student(*more, subjects=START):
        return run_checks(make_config(tmp_path, tiny_data, *fields, *more), *subjects)

    assert ask_student(subjects=("data", "steps"))[1].found == f"starts from {weights}"
    assert single(ask_student()).state == PASS
    for more, found in (
        ("student_header=1", "5header.pth: no such checkpoint"),
        ("student_global_step=0", "0backbone.pth: no such checkpoint"),
        ("n_layers=5", "belongs to another network"),
    ):
        check = single_failure(ask_student(more))
        assert check.state == FAIL and found in check.found
    check = single_failure(ask_student(f"output={weights}", subjects=("config",)))
    assert check.state == FAIL and "is in the output folder" in check.found


def test_teacher_files_that_are_missing(tmp_path, tiny_data):
    teachers = write_teachers(tmp_path, tiny_data, 3)
    check = single_failure(ask_teacher(tmp_path, tiny_data, "teacher_global_step=11"))
    assert check.state == FAIL and "no trained" in check.found and check.fix == "there are the steps 5, 10, 15"
    (teachers / "10backbone.pth").unlink()
    check = single_failure(ask_teacher(tmp_path, tiny_data, "multi_step=1"))
    assert check.state == WARN and check.found.startswith("2 checkpoints of a teacher for 3 epochs")
    check = single_failure(run_checks(make_config(tmp_path, tiny_data, "multi_step=1"), *START, kind=DISTILLATION))
    assert check.state == FAIL and check.found == "config teacher_pth: is empty"


def test_teacher_files_that_are_damaged_are_all_named(tmp_path, tiny_data):
    teachers = write_teachers(tmp_path, tiny_data, 3)
    for step in (5, 15):
        (teachers / f"{step}backbone.pth").write_bytes((teachers / f"{step}backbone.pth").read_bytes()[:5000])
    check = single(ask_teacher(tmp_path, tiny_data, "multi_step=1"))
    assert check.state == FAIL and f"{teachers}/5backbone.pth: not a readable" in check.found and check.fix
    assert check.found.endswith(" (2 of 3 teacher files are unusable: 5backbone.pth, 15backbone.pth)")
    check = single(ask_teacher(tmp_path, tiny_data, "teacher_global_step=10", "teacher_n_layers=5"))
    assert check.state == FAIL and "belongs to another network" in check.found and check.fix
