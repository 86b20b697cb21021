"""What the doctor says of files: those that a run will write, goes on from, and learns from."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.doctor_helpers import (
    Usage,
    check_states,
    make_config,
    one_process_on_a_cpu,  # noqa: F401  (for every test here)
    plan_with_data,
    run_checks,
    single,
    single_failure,
    write_teachers,
)
from tests.helpers.training import train_small
from utils.doctor import disk
from utils.doctor.command import SUBJECTS
from utils.doctor.table import FAIL, PASS, WARN, Check

# ------------------------------------------------------------------------------------------------------ what is written


def test_a_folder_that_cannot_be_written(tmp_path, tiny_data):
    (tmp_path / "file").write_text("")
    fields = [f"output={tmp_path / 'file' / 'out'}", f"teacher_pth={tmp_path}", f"teacher_cache={tmp_path / 'file'}"]
    told = run_checks(make_config(tmp_path, tiny_data, *fields), "output", kd=True)
    assert check_states(told) == [FAIL, PASS, FAIL]
    assert [check.fix for check in told] == [
        "name another with output=FOLDER",
        "",
        "name another with teacher_cache=FOLDER",
    ]


def test_a_disk_that_is_too_small(tmp_path, tiny_data, monkeypatch):
    config = make_config(tmp_path, tiny_data)
    need = disk.output_bytes(plan_with_data(config))
    for free, state in ((need - 1, FAIL), (need, WARN), (2 * need, PASS)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, left=free: Usage(1 << 40, 0, left))
        check = single(run_checks(config, "data", "steps", "disk"))
        assert check.state == state and ("output=FOLDER" in check.fix) == (state != PASS)


@pytest.mark.parametrize("fields", [[], ["save_initial=1", "keep=1", "num_epoch=2"]])
def test_the_disk_space_is_what_a_run_takes(tmp_path, tiny_data, fields):
    config = make_config(tmp_path, tiny_data, *fields)
    need = disk.output_bytes(plan_with_data(config))
    train_small(config)
    written = [path.stat().st_size for path in Path(config.output).glob("*header.pth")]
    written += [path.stat().st_size for path in Path(config.output).glob("*backbone.pth")]
    checkpoints = [path.stat().st_size for path in Path(config.output).glob("checkpoint.*.pth")]
    assert len(checkpoints) == config.keep and len(written) == 2 * (config.num_epoch + config.save_initial)
    taken = sum(written) + max(checkpoints) * (config.keep + 1)
    assert 0.9 * taken < need < 1.1 * taken


def test_what_a_teacher_cache_takes(tmp_path, tiny_data, monkeypatch):
    teachers = write_teachers(tmp_path, tiny_data, 3)
    config = make_config(tmp_path, tiny_data, f"teacher_pth={teachers}", "teacher_network=PocketNet", "multi_step=1")
    subjects = ("data", "steps", "teacher", "disk")
    monkeypatch.setattr(disk, "output_bytes", lambda plan: 0)
    size = 40 * (4 * 16 + 8)
    config.teacher_cache = str(tmp_path / "cache" / "of" / "teachers")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, 3 * size - 1))
    assert single_failure(run_checks(config, *subjects, kd=True)).fix.endswith("teacher_cache=FOLDER")
    Path(config.teacher_cache).mkdir(parents=True)
    (Path(config.teacher_cache) / "5backbone-0123456789ab.f16").write_bytes(bytes(40 * 4 * 16))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, 3 * size - 1))
    assert single(run_checks(config, *subjects, kd=True)).state == PASS


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


def ask_resume(folder, data, *fields, kd=False):
    return run_checks(make_config(folder, data, *fields), "data", "steps", "resume", kd=kd)


def test_where_a_run_goes_on(going_on, tiny_data, monkeypatch):
    assert single(ask_resume(going_on, tiny_data)) == Check("resume", PASS, "resumes from step 10, in epoch 2")
    monkeypatch.setenv("NPROC", "2")
    published = ["resume=1", "global_step=5"]
    assert single(ask_resume(going_on, tiny_data)).found == "resumes from step 10, in epoch 2"
    for path in (going_on / "out").glob("checkpoint*"):
        path.unlink()
    # 40 images are two steps of two processes
    told = ask_resume(going_on, tiny_data, *published)
    assert told[0].found == "resumes from step 5, in epoch 2" and all(check.fix for check in told[1:])
    out = going_on / "out"
    assert (
        single(ask_resume(going_on, tiny_data)).found
        == f"starts from scratch; 4 files of the earlier run will be moved to {out}/old-N"
    )


def test_what_remains_of_the_run_is_what_takes_space(going_on, tiny_data):
    config = make_config(going_on, tiny_data)
    plan = plan_with_data(config)
    anew = disk.output_bytes(plan_with_data(make_config(going_on / "new", tiny_data)))
    list(SUBJECTS["resume"](plan))
    checkpoint = max(path.stat().st_size for path in (going_on / "out").glob("checkpoint.*.pth"))
    assert disk.output_bytes(plan) < anew - checkpoint


def test_checkpoints_that_will_be_put_aside_make_no_room(going_on, tiny_data):
    for name in ("checkpoint.pth", "checkpoint.10.pth"):
        (going_on / "out" / name).unlink()
    for fields, epoch, replaced in (([], 1, 1), (["resume=1", "global_step=10"], 2, 0)):
        plan = plan_with_data(make_config(going_on, tiny_data, *fields))
        list(SUBJECTS["resume"](plan))
        assert (plan.progress.epoch, plan.replaced) == (epoch, replaced)


def test_a_damaged_checkpoint(going_on, tiny_data):
    newest = going_on / "out" / "checkpoint.10.pth"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 255
    for name in ("checkpoint.pth", "checkpoint.10.pth"):
        (going_on / "out" / name).write_bytes(content)
    told = ask_resume(going_on, tiny_data)
    assert [check.state for check in told] == [PASS, WARN, WARN] and told[0].found == "resumes from step 5, in epoch 1"
    assert all("damaged" in check.found and check.fix for check in told[1:])
    (going_on / "out" / "checkpoint.5.pth").unlink()
    assert check_states(ask_resume(going_on, tiny_data)) == [FAIL, WARN, WARN]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        (["n_layers=5"], "belongs to another network"),
        (["seed=1"], "config seed"),
        (["teacher_pth=elsewhere", "--kd"], "another kind of run"),
        (["resume=1", "global_step=11"], "11header.pth: no such checkpoint"),
    ],
)
def test_a_run_that_cannot_go_on(going_on, tiny_data, fields, found):
    kd = "--kd" in fields
    check = ask_resume(going_on, tiny_data, *[field for field in fields if field != "--kd"], kd=kd)[0]
    assert check.state == FAIL and found in check.found and check.fix
    assert "--resume 0" not in check.fix or "moves the files there" in check.fix
    assert not kd or check.fix == "resume it with ./train.sh, or name another output"
    assert ("global_step=STEP" in check.fix) == ("header.pth" in found)


def test_a_run_that_is_done_and_one_that_begins_anew(going_on, tiny_data):
    before = sorted((going_on / "out").iterdir())
    check = single_failure(ask_resume(going_on, tiny_data, "num_epoch=2"))
    assert check.state == WARN and "is finished" in check.found
    check = single(ask_resume(going_on, tiny_data, "resume=0"))
    moved = f"starts from scratch; 7 files of the earlier run will be moved to {going_on / 'out'}/old-N"
    assert check == Check("resume", PASS, moved)
    assert ask_resume(going_on / "none", tiny_data, "resume=0")[0].found == "starts from scratch"
    assert sorted((going_on / "out").iterdir()) == before


# -------------------------------------------------------------------------------------------------------------- teacher


def ask_teacher(folder, data, *fields):
    fields = [f"teacher_pth={folder / 'teachers'}", "teacher_network=PocketNet", *fields]
    return run_checks(make_config(folder, data, *fields), "data", "steps", "teacher", kd=True)


def test_a_teacher_that_serves(tmp_path, tiny_data):
    teachers = write_teachers(tmp_path, tiny_data, 3)
    found = f"files in {teachers} valid"
    assert single(ask_teacher(tmp_path, tiny_data, "multi_step=1")) == Check("teacher", PASS, f"3 of 3 {found}")
    assert single(ask_teacher(tmp_path, tiny_data, "teacher_global_step=10")) == Check(
        "teacher", PASS, f"1 of 1 {found}"
    )


def test_weights_that_a_run_starts_from(tmp_path, tiny_data):
    weights = write_teachers(tmp_path, tiny_data, 1)
    fields = [f"student_pth={weights}", "student_global_step=5"]

    def ask_student(*more):
        return single(
            run_checks(make_config(tmp_path, tiny_data, *fields, *more), "data", "steps", "resume", "student")
        )

    found = f"starts from {weights / '5backbone.pth'}, with a new header"
    assert ask_student() == Check("student", PASS, found)
    assert "5header.pth: no such checkpoint" in ask_student("student_header=1").found
    assert "0backbone.pth: no such checkpoint" in ask_student("student_global_step=0").found
    assert "belongs to another network" in ask_student("n_layers=5").found
    assert "is in the output folder" in ask_student(f"output={weights}").found


def test_teacher_files_that_are_missing(tmp_path, tiny_data):
    teachers = write_teachers(tmp_path, tiny_data, 3)
    check = single_failure(ask_teacher(tmp_path, tiny_data, "teacher_global_step=11"))
    assert check.state == FAIL and "no trained" in check.found and "needs no teacher)" in check.fix
    (teachers / "10backbone.pth").unlink()
    check = single_failure(ask_teacher(tmp_path, tiny_data, "multi_step=1"))
    assert check.state == WARN and check.found.startswith("2 checkpoints of a teacher for 3 epochs")
    check = single_failure(
        run_checks(make_config(tmp_path, tiny_data, "multi_step=1"), "data", "steps", "teacher", kd=True)
    )
    assert check.state == FAIL and check.found == "config teacher_pth: is empty"


def test_teacher_files_that_are_damaged_are_all_named(tmp_path, tiny_data):
    teachers = write_teachers(tmp_path, tiny_data, 3)
    for step in (5, 15):
        (teachers / f"{step}backbone.pth").write_bytes((teachers / f"{step}backbone.pth").read_bytes()[:5000])
    told = ask_teacher(tmp_path, tiny_data, "multi_step=1")
    assert check_states(told) == [FAIL, FAIL, PASS] and told[2].found.startswith("1 of 3 files")
    assert all(
        f"{step}backbone.pth: not a readable" in c.found and c.fix for step, c in zip((5, 15), told, strict=False)
    )
    told = ask_teacher(tmp_path, tiny_data, "teacher_global_step=10", "teacher_n_layers=5")
    assert check_states(told) == [FAIL, FAIL] and "belongs to another network" in told[0].found and told[1].fix
