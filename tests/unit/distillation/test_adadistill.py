"""AdaDistill: class centres that follow the teacher, against the formula in float64, and exact resume of them."""

import re
import sys
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from backbones.build import build_backbone
from config import load_config
from config.usage import unused_fields
from tests.helpers.commands import DEMO, run_command
from tests.helpers.paths import ROOT
from tests.helpers.training import CPU, SMALL, small_config, spawn_ranks
from tests.helpers.waits import CountWaits
from utils.checkpoints.weights import read_weights, save_weights
from utils.distillation.task import DistillTask, prepare_distillation
from utils.distributed.collectives import shard_slice
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.losses.distilled_centres import DistilledCentres, moved_centres
from utils.losses.header import header_loss, make_header
from utils.training.checkpointing.resume import resolve_resume
from utils.training.checkpointing.state import gather_full_state_dict
from utils.training.engine import train
from utils.training.initial_header import check_initial_header

HEADERS = ("replicated", "sharded")
N, D, CLASSES, STEPS = 12, 16, 7, 3


def problem(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student's and teacher's embeddings, and labels with classes that repeat within the batch; class 6 never comes."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, CLASSES - 1, (N,), generator=generator)
    people = torch.randn(CLASSES, D, generator=torch.Generator().manual_seed(99))
    teacher = F.normalize(people[labels] + 0.7 * torch.randn(N, D, generator=generator), dim=1)
    student = 5 * (teacher + (0.6 - 0.2 * step) * torch.randn(N, D, generator=generator))
    student[0], teacher[1] = -student[0], -teacher[1]  # negative cosines
    return student, teacher, labels


def centres_in_float64() -> list[torch.Tensor]:
    """The kernel (D, CLASSES) after each step, class by class and image by image."""
    kernel, found = torch.zeros(D, CLASSES, dtype=torch.float64), []
    for step in range(STEPS):
        student, teacher, labels = (tensor.double() for tensor in problem(step))
        for label in labels.unique():
            old, moves = kernel[:, int(label)].clone(), []
            for s, t in zip(student[labels == label], teacher[labels == label], strict=True):
                agreement, typical = max(0.0, F.cosine_similarity(s, t, dim=0)), max(0.0, old @ t)
                moves.append(t if not old.any() else (1 - agreement) * typical * (t - old))
            kernel[:, int(label)] = F.normalize(old + sum(moves) / len(moves), dim=0)
        found.append(kernel.clone())
    return found


def follow(world: World, folder, data) -> None:
    """Writes the centres of this rank after each step, of both headers."""
    found = {}
    for header in HEADERS:
        config = small_config(folder, data, f"header={header}")
        module, part = make_header(config, CLASSES, world, learned=False), shard_slice(N, world)
        centres, found[header] = DistilledCentres(module, world), []
        for step in range(STEPS):
            student, teacher, labels = problem(step)
            with torch.autocast("cpu", torch.bfloat16):
                centres.move(student[part], teacher[part], labels[part])
            full = gather_full_state_dict(module, dict(module.state_dict()), world)
            found[header].append(full["kernel"] if full else module.kernel.detach().clone())
    torch.save(found, folder / f"{world.size}-{world.rank}.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_data):
    """Centres by number of ranks and rank."""
    folder = tmp_path_factory.mktemp("centres")
    follow(CPU, folder, tiny_data)
    spawn_ranks(follow, folder, tiny_data, size=2)
    return {size: [torch.load(folder / f"{size}-{rank}.pt") for rank in range(size)] for size in (1, 2)}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("header", HEADERS)
def test_centres_are_those_of_the_formula_on_the_global_batch(runs, header, size):
    for found, expected in zip(runs[size][0][header], centres_in_float64(), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
        assert not found[:, CLASSES - 1].any()


def test_all_processes_keep_the_same_centres(runs):
    first, second = runs[2]
    for kernels in zip(first["replicated"], second["replicated"], strict=True):
        assert torch.equal(*kernels)
    for full, part in zip(first["sharded"], second["sharded"], strict=True):
        assert torch.equal(full[:, shard_slice(CLASSES, World(1, 2, CPU.device))], part)


def test_early_the_centre_is_near_the_single_embedding_and_late_near_its_average():
    old, teacher = F.normalize(torch.tensor([[1.0, 0.2], [1.0, -0.2]]).double(), dim=1)

    def moved(agreement, embedding):
        return moved_centres(old[None], torch.tensor([agreement]).double(), embedding, torch.ones(1, 1).bool())[0]

    torch.testing.assert_close(moved(1.0, teacher[None]), old)
    assert moved(0.0, teacher[None]) @ teacher > 0.99 > old @ teacher
    hard = torch.tensor([[-0.2, 1.0]]).double() / 1.04**0.5  # at a right angle to its centre
    torch.testing.assert_close(moved(0.0, hard), old)


def test_images_of_one_class_write_the_same_bits_in_any_order():
    torch.manual_seed(0)
    old, agreement, teacher = torch.randn(1, D).expand(33, D), torch.rand(33), F.normalize(torch.randn(33, D), dim=1)
    new = moved_centres(old, agreement, teacher, torch.ones(33, 33).bool())
    assert (new == new[0]).all()
    order = torch.randperm(33)
    other = moved_centres(old, agreement[order], teacher[order], torch.ones(33, 33).bool())
    torch.testing.assert_close(other, new, rtol=0, atol=1e-6)


@pytest.mark.parametrize("header", HEADERS)
def test_only_the_student_has_a_gradient_and_a_skipped_step_moves_no_centre(tmp_path, tiny_data, header):
    module = make_header(small_config(tmp_path, tiny_data, f"header={header}"), CLASSES, CPU, learned=False)
    centres = DistilledCentres(module, CPU)
    centres.move(*problem(0))
    before, (student, teacher, labels) = module.kernel.clone(), problem(1)
    student.requires_grad_()
    centres.move(student, teacher, labels)
    header_loss(module, student, labels).backward()
    assert module.kernel.grad is None and (student.grad != 0).any() and torch.isfinite(student.grad).all()
    after = module.kernel.clone()
    assert not torch.equal(after, before)
    with CountWaits() as mode:
        centres.move(student, teacher, labels)
        centres.undo(torch.tensor(True))
    assert mode.waits == 0 and torch.equal(module.kernel, after)
    module.kernel.copy_(before)
    centres.move(student, teacher, labels)
    centres.undo(torch.tensor(False))
    assert torch.equal(module.kernel, after)
    centres.undo(torch.tensor(True))
    assert torch.equal(module.kernel, before)


# ---------------------------------------------------------------------------------------------------------- whole runs


class InterruptError(Exception):
    """Ends a run in its second step."""


def distill(world: World, folder, data, *overrides: str, interrupt: bool = False) -> None:
    """Trains as train_kd.py does, resuming from the folder, with a random network as teacher."""

    def verify(step: int) -> dict[str, float]:
        if interrupt and step == 2:
            raise InterruptError
        return {}

    fields = [*SMALL, "batch_size=4", f"rec={data}", f"output={folder / 'out'}", f"log_dir={folder}", "save_step=1"]
    teacher = ["teacher_network=PocketNet", f"teacher_pth={folder.parent / 'teacher'}", "teacher_global_step=4"]
    fields += [*teacher, "distill=adadistill", "eval_step=1", *overrides]
    config = load_config(ROOT / "config" / "config_demo.py", fields, distillation=True)
    torch.manual_seed(config.seed)
    run = prepare_distillation(build_backbone, config, world)
    resume_point = resolve_resume(config, DistillTask, run.loader, world)
    with pytest.raises(InterruptError) if interrupt else nullcontext():
        train(run.make_task(resume_point), run.loader, config, world, verify, resume_point)


@pytest.fixture
def teacher(tmp_path):
    """Folder whose subfolder teacher holds two checkpoints."""
    (tmp_path / "teacher").mkdir()
    for step in (2, 4):
        torch.manual_seed(step)
        save_weights(tmp_path / "teacher" / f"{step}backbone.pth", build_backbone(load_config(
            ROOT / "config" / "config_demo.py", SMALL)))  # fmt: skip
    return tmp_path


def distill_both(world: World, folder, data) -> None:
    """Distils in one run, and in two: cut between two teachers, with an epoch a step, and within an epoch."""
    cases = {
        "replicated": ["multi_step=1", "loss=adaface", "batch_size=16", "num_epoch=2"],
        "sharded": [f"teacher_cache={folder / 'cache'}", "max_steps=2"],
    }
    for header, fields in cases.items():
        for name in ("uncut", "cut"):
            run = folder / f"{header}-{name}"
            run.mkdir(exist_ok=True)
            for interrupt in {"uncut": [False], "cut": [True, False]}[name]:
                distill(world, run, data, f"header={header}", *fields, interrupt=interrupt)


def test_runs_of_two_processes_resume_exactly(teacher, tiny_data):
    spawn_ranks(distill_both, teacher, tiny_data, size=2)
    for header in HEADERS:
        assert [path.name for path in sorted((teacher / f"{header}-cut" / "out").glob("checkpoint.*.pth"))] == [
            "checkpoint.1.pth", "checkpoint.2.pth",
        ]  # fmt: skip
        for name in ("header", "backbone"):
            files = [teacher / f"{header}-{run}" / "out" / f"2{name}.pth" for run in ("uncut", "cut")]
            first, second = map(read_weights, files)
            assert all(torch.equal(first[key], second[key]) for key in first)
        lengths = read_weights(files[0].with_name("2header.pth"))["kernel"].norm(dim=0)
        torch.testing.assert_close(lengths[lengths > 0], torch.ones(int((lengths > 0).sum())))


def test_a_step_that_is_not_finite_moves_no_centre(teacher, tiny_data, monkeypatch):
    steps, call = [], DistillTask.__call__

    def failing(task, batch):
        steps.append(task.centres.kernel.clone())
        return {"Loss": call(task, batch)["Loss"] * (torch.nan if len(steps) == 2 else 1)}

    monkeypatch.setattr(DistillTask, "__call__", failing)
    (teacher / "run").mkdir()
    distill(CPU, teacher / "run", tiny_data, "max_steps=3")
    assert not steps[0].any() and not torch.equal(*steps[:2]) and torch.equal(*steps[1:])


def test_other_runs_do_not_mix_with_it(teacher, tiny_data):
    (teacher / "run").mkdir()
    distill(CPU, teacher / "run", tiny_data, "max_steps=1")
    with pytest.raises(UserError, match=r"config distill: mse, but the run in .* has 'adadistill'; use that"):
        distill(CPU, teacher / "run", tiny_data, "max_steps=2", "distill=mse")
    config = small_config(teacher, tiny_data, "header_frozen=1", "header_from=teacher", "distill=adadistill", "w=3")
    with pytest.raises(UserError, match="header_frozen: distill=adadistill moves the class centres"):
        check_initial_header(config, distills=True)
    assert unused_fields(config, "train_kd") == ["w"] and unused_fields(config, "train") == ["distill", "w"]


def test_the_command_trains_with_it(demo, tmp_path):
    where = [
        "teacher_network=PocketNet",
        "teacher_pth=output/demo",
        f"output={tmp_path}/student",
        f"log_dir={tmp_path}",
    ]
    run = [*DEMO, *where, "teacher_global_step=12", "max_steps=3", "log_step=1", "save_initial=0"]
    done = run_command(demo, "./train_kd.sh", *run, "distill=adadistill", "loss=adaface", "m=0.4", NPROC="2")
    assert done.returncode == 0 and len(re.findall(r"Loss [\d.]+   Epoch", done.stdout)) == 3, done.stderr
    saved = read_weights(tmp_path / "student" / "3header.pth")
    assert saved.keys() == {"kernel", "margin.mean", "margin.std"} and saved["kernel"].shape == (32, 6)
    failed = run_command(demo, sys.executable, "train_kd.py", *run, "distill=adadistil")
    assert failed.stderr == "error: config distill: should be mse or adadistill, is 'adadistil'\n"
    failed = run_command(
        demo, sys.executable, "train_kd.py", *run, "distill=adadistill", "embedding_size=16", f"output={tmp_path}/other"
    )
    assert failed.returncode == 2, failed.stdout
    assert re.fullmatch(r"error: .*12backbone\.pth: tail\.6\.weight has shape \(32, .*embedding_size\n", failed.stderr)
