"""A header that starts from a file, trained or kept: header_from and header_frozen."""

import re
import sys

import pytest
import torch

from tests.helpers.commands import DEMO, run_command
from tests.helpers.training import CPU, small_config, spawn_ranks, train_prepared
from utils.checkpoints.weights import read_weights
from utils.distributed.data_parallel import unwrap_ddp
from utils.errors import UserError
from utils.losses.header import make_header
from utils.training.initial_header import check_initial_header, header_file, load_initial_header

HEADERS = ("replicated", "sharded")
TEACHER = ["teacher_network=PocketNet", "teacher_pth=output/demo", "teacher_global_step=12"]


def centres(classes=4) -> torch.Tensor:
    return torch.randn(16, classes, generator=torch.Generator().manual_seed(4))


def write_header(folder, kernel=None):
    torch.save({"kernel": centres() if kernel is None else kernel}, folder / "3header.pth")
    return folder / "3header.pth"


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("frozen", [True, False])
def test_a_header_starts_from_the_file_and_learns_unless_it_is_frozen(tmp_path, tiny_data, header, frozen):
    fields = [f"header_from={write_header(tmp_path)}", f"header_frozen={frozen}", f"header={header}"]
    config = small_config(tmp_path, tiny_data, *fields)
    module = make_header(config, 4, CPU)
    load_initial_header(config, module, CPU)
    kernel = unwrap_ddp(module).kernel
    assert torch.equal(kernel.detach(), centres()) and kernel.requires_grad == (not frozen)


def train_both(world, folder, data):
    """Trains with a frozen header, of each kind, in one run and in two."""
    for header in HEADERS:
        for name, ends in (("uncut", [2]), ("cut", [1, 2])):
            run = folder / f"{header}-{name}"
            run.mkdir(exist_ok=True)
            for end in ends:
                fields = [f"header_from={folder / '3header.pth'}", "header_frozen=1", f"header={header}"]
                train_prepared(world, run, data, *fields, "save_step=1", f"max_steps={end}")


def test_a_frozen_header_of_two_processes_resumes_exactly(tmp_path, tiny_data):
    write_header(tmp_path)
    spawn_ranks(train_both, tmp_path, tiny_data, size=2)
    for header in HEADERS:
        runs = [tmp_path / f"{header}-{name}" / "out" for name in ("uncut", "cut")]
        first, second = (read_weights(run / "2backbone.pth") for run in runs)
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert all(torch.equal(read_weights(run / "2header.pth")["kernel"], centres()) for run in runs)


def test_the_teachers_header_is_the_one_beside_its_backbone(tmp_path, tiny_data):
    for step in (5, 10):
        (tmp_path / f"{step}backbone.pth").touch()
    (tmp_path / "teacher.onnx").touch()

    def found(*fields):
        return header_file(small_config(tmp_path, tiny_data, "header_from=teacher", *fields))

    folder = [f"teacher_pth={tmp_path}", "teacher_global_step=5"]
    assert found(*folder) == tmp_path / "5header.pth"
    assert found(*folder, "multi_step=1") == tmp_path / "10header.pth"
    assert found(f"teacher_pth={tmp_path / '10backbone.pth'}") == tmp_path / "10header.pth"
    with pytest.raises(UserError, match=r"header_from: the teacher .*teacher\.onnx is no \{step\}backbone\.pth"):
        found(f"teacher_pth={tmp_path / 'teacher.onnx'}")
    assert header_file(small_config(tmp_path, tiny_data, "header_from=a/b.pth")).name == "b.pth"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["header_from=teacher"], "header_from: 'teacher', but this command has no teacher; train with ./train_kd.sh"),
        (["header_frozen=1"], "header_frozen: would keep random class centres; name trained ones"),
        (["header_from=a", "student_pth=b", "student_header=1"], "header_from: 'a', but student_header=True names"),
        (["output=run", "header_from=run/3header.pth"], "header_from: 'run/3header.pth' is in the output folder; name"),
        (["output=run", "header_from=link.pth"], "header_from: 'link.pth' is in the output folder; name"),
    ],
)
def test_fields_that_contradict_each_other_are_one_line(tmp_path, tiny_data, monkeypatch, fields, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "3header.pth").touch()
    (tmp_path / "link.pth").symlink_to("run/3header.pth")
    with pytest.raises(UserError, match=message):
        check_initial_header(small_config(tmp_path, tiny_data, *fields), distills=False)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (centres(5), r"3header\.pth: its header is \(16, 5\), .* = \(16, 4\); .* the same identities"),
        (centres()[:8], r"3header\.pth: its header is \(8, 4\)"),
        (centres() / 0, r"3header\.pth: kernel is not finite"),
    ],
)
def test_a_kernel_that_does_not_fit_is_one_line(tmp_path, tiny_data, header, kernel, message):
    config = small_config(tmp_path, tiny_data, f"header_from={write_header(tmp_path, kernel)}", f"header={header}")
    with pytest.raises(UserError, match=message):
        load_initial_header(config, make_header(config, 4, CPU), CPU)


@pytest.mark.parametrize("header", HEADERS)
def test_a_file_without_a_header_is_one_line(tmp_path, tiny_data, header):
    torch.save({"conv.weight": torch.ones(2)}, tmp_path / "3backbone.pth")
    for fields, message in (
        (["header_from=no/3header.pth"], "config header_from: no/3header.pth does not exist; name a {step}header.pth"),
        (
            ["header_from=teacher", f"teacher_pth={tmp_path}"],
            f"config header_from: {tmp_path}/0header.pth does not exist; check teacher_pth and teacher_global_step, or",
        ),
        ([f"header_from={tmp_path / '3backbone.pth'}"], "3backbone.pth: has no class centres (kernel); name a {step}"),
    ):
        config = small_config(tmp_path, tiny_data, *fields, f"header={header}")
        with pytest.raises(UserError, match=re.escape(message)):
            load_initial_header(config, make_header(config, 4, CPU), CPU)


def test_the_command_keeps_the_teachers_header(demo, tmp_path):
    run = [sys.executable, "train_kd.py", *DEMO, *TEACHER, f"output={tmp_path}/student", f"log_dir={tmp_path}"]
    done = run_command(demo, *run, "header_from=teacher", "header_frozen=1", "max_steps=2", "save_initial=0")
    assert done.returncode == 0, done.stderr
    assert "Header: starts from output/demo/12header.pth, and stays as it is" in done.stdout
    ours, theirs = (
        read_weights(path) for path in (tmp_path / "student/2header.pth", demo / "output/demo/12header.pth")
    )
    assert torch.equal(ours["kernel"], theirs["kernel"])
    assert '"header_from": "teacher"' in (tmp_path / "student/config.json").read_text()
    refused = run_command(demo, *run, "header_from=teacher", "max_steps=3")
    assert re.fullmatch("error: config header_frozen: False, but the run in .* has True; .*\n", refused.stderr)
