"""The sharded header: the same loss, gradients and files as the full header."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.training import CPU, spawn_ranks
from utils.distributed.collectives import shard_slice
from utils.distributed.data_parallel import average_gradients, unwrap_ddp, wrap_ddp
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.losses.arcface import ArcFace, ArcFaceMargin
from utils.losses.column_shards import gather_columns, scatter_columns
from utils.losses.partial_fc import (
    ShardedHeader,
    load_full_state_dict,
)
from utils.training.checkpointing.state import gather_full_state_dict

SIZES = (4, 2, 1)  # in this order, each with the files of the one before
N, D, CLASSES, S, M = 16, 12, 103, 64.0, 0.5  # 103 classes: 25, 26, 26 and 26 on four ranks
MARGIN = ArcFaceMargin(M)
RATE = 0.3


# ------------------------------------------------------------------------------------- what every process of a run does


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs (N, D), labels (N,) and a kernel (D, CLASSES). The first six inputs lie at cosines of the hard cases."""
    generator = torch.Generator().manual_seed(3)
    inputs, kernel = (torch.randn(shape, generator=generator) for shape in [(N, D), (D, CLASSES)])
    labels = torch.randint(0, CLASSES, (N,), generator=generator)
    labels[:3] = torch.tensor([0, 25, CLASSES - 1])  # the first and last class of a rank and of all
    labels[-1] = labels[-2]  # a class twice
    centres = F.normalize(kernel[:, labels[:6]].T, dim=1)
    across = F.normalize(inputs[:6] - (inputs[:6] * centres).sum(1, keepdim=True) * centres, dim=1)
    end = torch.tensor(M).cos()  # below -end the margin is linear
    cosines = torch.tensor([1.0, -1.0, 0.99, -0.99, -end + 0.01, -end - 0.01])[:, None]
    inputs[:6] = 3 * (cosines * centres + (1 - cosines**2).sqrt() * across)
    return inputs, labels, kernel


def full_state_dict(header: ShardedHeader) -> dict[str, torch.Tensor] | None:
    return gather_full_state_dict(header, dict(header.state_dict()), header.world)


def linear(world: World) -> nn.Module:
    """A backbone that hands the inputs on as they are."""
    layer = nn.Linear(D, D)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(D))
        layer.bias.zero_()
    return wrap_ddp(layer, world)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, list | tuple) else [made]:
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return made


def step(world: World, header: ShardedHeader) -> dict:
    """A backward pass of the problem: loss, gradients, the largest tensor."""
    inputs, labels, _ = problem()
    backbone, part = linear(world), shard_slice(N, world)
    header.zero_grad()
    with Largest() as largest:
        loss = header(backbone(inputs[part]), labels[part])
        loss.backward()
    average_gradients(backbone)
    return {
        "loss": loss.detach(),
        "backbone": [p.grad for p in unwrap_ddp(backbone).parameters()],
        "kernel": gather_columns(header.kernel.grad, CLASSES, world),
        "largest": largest.numel,
    }


def sampled(world: World, header: ShardedHeader, number: int) -> dict:
    """Returns the same with sampling, and the sampled columns as indices of the full kernel."""
    drawn = []
    draw = header.sample
    header.sample = lambda *args: drawn.append(draw(*args)) or drawn[-1]
    header.set_step(number)
    found = step(world, header)
    del header.sample
    shares = [None] * world.size
    if world.size > 1:
        dist.all_gather_object(shares, drawn[0] + header.class_slice.start)
    return found | {"drawn": shares if world.size > 1 else drawn}


def everything(world: World, folder: Path) -> None:
    """Writes the results of this rank, and the full kernel."""
    header = ShardedHeader(D, CLASSES, MARGIN, S, world, seed=5)
    initial = full_state_dict(header)
    load_full_state_dict(header, problem()[2] if world.is_main else None)
    found = {"initial": initial, "exact": step(world, header)}

    partial = ShardedHeader(D, CLASSES, MARGIN, S, world, RATE, seed=5)
    load_full_state_dict(partial, problem()[2] if world.is_main else None)
    found["sampled"] = [sampled(world, partial, number) for number in (7, 7, 8)]
    few = ShardedHeader(D, CLASSES, MARGIN, S, world, 0.01)
    found["few"] = sampled(world, few, 0)["drawn"]

    before = folder / "kernel.pt"
    kernel = (torch.load(before) if before.exists() else initial["kernel"]) if world.is_main else None
    load_full_state_dict(header, kernel)
    held = scatter_columns(kernel, torch.empty_like(header.kernel), CLASSES, world)
    found["held"] = torch.equal(held, header.kernel)
    if world.is_main:
        torch.save(full_state_dict(header)["kernel"], before)
    else:
        assert full_state_dict(header) is None
    torch.save(found, folder / f"{world.size}-{world.rank}.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Results of each rank, by number of ranks."""
    folder = tmp_path_factory.mktemp("sharded")
    for size in SIZES:
        if size == 1:
            everything(CPU, folder)
        else:
            spawn_ranks(everything, folder, size=size)
    return {size: [torch.load(folder / f"{size}-{rank}.pt") for rank in range(size)] for size in SIZES} | {
        "kernel": torch.load(folder / "kernel.pt")
    }


# ----------------------------------------------------------------------------------------------------- without sampling


def full_header(columns: torch.Tensor | None = None) -> dict:
    """Returns the results of the full header, or of a header with the given columns only."""
    inputs, labels, kernel = problem()
    columns = torch.arange(CLASSES) if columns is None else columns
    header, backbone = ArcFace(D, len(columns), S, M), linear(CPU)
    header.load_state_dict({"kernel": kernel[:, columns]})
    labels = torch.searchsorted(columns, labels)
    loss = F.cross_entropy(header(backbone(inputs), labels), labels)
    loss.backward()
    gradient = torch.zeros(D, CLASSES)
    gradient[:, columns] = header.kernel.grad
    return {"loss": loss.detach(), "backbone": [p.grad for p in backbone.parameters()], "kernel": gradient}


def assert_same(found: dict, expected: dict) -> None:
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-5, atol=0)
    for ours, theirs in zip(found["backbone"], expected["backbone"], strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    if found["kernel"] is not None:
        assert (found["kernel"] - expected["kernel"]).abs().max() <= 1e-5 * expected["kernel"].abs().max()


@pytest.mark.parametrize("size", SIZES)
def test_loss_and_gradients_are_those_of_the_full_header_on_the_full_batch(runs, size):
    expected = full_header()
    for found in runs[size]:
        assert_same(found["exact"], expected)
    assert runs[size][0]["exact"]["kernel"] is not None
    assert len({found["exact"]["loss"].item() for found in runs[size]}) == 1


def test_each_hard_case_alone_has_the_loss_and_gradient_of_the_full_header():
    inputs, labels, kernel = problem()
    ours, theirs = ShardedHeader(D, CLASSES, MARGIN, S, CPU), ArcFace(D, CLASSES, S, M)
    load_full_state_dict(ours, kernel)
    theirs.load_state_dict({"kernel": kernel})
    for image in range(6):
        row, label = inputs[image : image + 1], labels[image : image + 1]
        gradients = []
        for loss in (ours, lambda *batch: F.cross_entropy(theirs(*batch), batch[1])):
            embedding = row.clone().requires_grad_()
            value = loss(embedding, label)
            gradients.append((value, *torch.autograd.grad(value, embedding)))
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_no_tensor_as_large_as_the_batch_times_all_classes_is_made(runs, size):
    for rank, found in enumerate(runs[size]):
        share = shard_slice(CLASSES, World(rank, size, CPU.device))
        assert found["exact"]["largest"] == N * (share.stop - share.start)


def test_half_precision_around_it_changes_nothing():
    inputs, labels, kernel = problem()
    header = ShardedHeader(D, CLASSES, MARGIN, S, CPU)
    load_full_state_dict(header, kernel)
    with torch.autocast("cpu", torch.bfloat16):
        loss = header(inputs, labels)
    assert loss.dtype == torch.float32 and loss == header(inputs, labels)


def test_it_trains_with_momentum_as_the_full_header_does():
    inputs, labels, kernel = problem()
    ours, theirs = ShardedHeader(D, CLASSES, MARGIN, S, CPU), ArcFace(D, CLASSES, S, M)
    load_full_state_dict(ours, kernel)
    theirs.load_state_dict({"kernel": kernel})
    for header, loss in [(ours, ours), (theirs, lambda *batch: F.cross_entropy(theirs(*batch), batch[1]))]:
        optimizer = torch.optim.SGD(header.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            loss(inputs[6:], labels[6:]).backward()
            optimizer.step()
    torch.testing.assert_close(ours.kernel, theirs.kernel, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- with sampling


@pytest.mark.parametrize("size", SIZES)
def test_the_classes_of_the_batch_are_drawn_and_others_up_to_the_rate(runs, size):
    for rank, found in enumerate(runs[size]):
        share = shard_slice(CLASSES, World(rank, size, CPU.device))
        columns = set(range(share.start, share.stop))
        own = columns & set(problem()[1].tolist())
        for number in range(3):
            drawn = found["sampled"][number]["drawn"][rank].tolist()
            assert own <= set(drawn) <= columns
            assert drawn == sorted(set(drawn)) and len(drawn) == max(round(RATE * len(columns)), len(own))
        few = set(found["few"][rank].tolist())
        assert few == own or (not own and len(few) == 1)


@pytest.mark.parametrize("size", SIZES)
def test_sampled_loss_and_gradients_are_those_of_the_drawn_columns_alone(runs, size):
    for number in range(3):
        columns = torch.cat(runs[size][0]["sampled"][number]["drawn"])
        expected = full_header(columns)
        for found in runs[size]:
            assert_same(found["sampled"][number], expected)
        left_out = torch.ones(CLASSES, dtype=torch.bool).index_fill_(0, columns, False)
        gradient = runs[size][0]["sampled"][number]["kernel"]
        assert left_out.any() and (gradient[:, left_out] == 0).all() and (gradient[:, ~left_out] != 0).any(0).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_draw_follows_from_the_step_and_the_rank(runs, size):
    first, again, other = (torch.cat(found["drawn"]).tolist() for found in runs[size][0]["sampled"])
    assert first == again != other


def test_steps_count_on_by_themselves_and_a_rate_of_1_draws_nothing():
    inputs, labels, _ = problem()
    header = ShardedHeader(D, 5000, MARGIN, S, CPU, sample_rate=0.1)
    losses = [header(inputs, labels).item() for _ in range(3)]
    header.set_step(1)
    assert [header(inputs, labels).item() for _ in range(2)] == losses[1:] and len(set(losses)) == 3
    alike = ShardedHeader(D, 5000, MARGIN, S, CPU)
    assert alike(inputs, labels) == alike(inputs, labels)


# ---------------------------------------------------------------------------------------------------------------- files


def test_the_initial_kernel_is_the_same_on_any_number_of_ranks(runs):
    kernels = [runs[size][0]["initial"]["kernel"] for size in SIZES]
    assert all(torch.equal(kernel, kernels[0]) for kernel in kernels)
    assert kernels[0].std().item() == pytest.approx(0.01, rel=0.1)
    assert not torch.equal(ShardedHeader(D, CLASSES, MARGIN, S, CPU, seed=6).kernel, kernels[0])


def test_pieces_of_the_kernel_differ_and_a_rank_draws_its_own(monkeypatch):
    for module in ("partial_fc", "column_shards"):
        monkeypatch.setattr(f"utils.losses.{module}.COLUMN_CHUNK", 10)
    kernel = ShardedHeader(D, CLASSES, MARGIN, S, CPU).kernel.detach()
    assert not torch.equal(kernel[:, :10], kernel[:, 10:20])
    shares = [ShardedHeader(D, CLASSES, MARGIN, S, World(rank, 4, CPU.device)).kernel.detach() for rank in range(4)]
    assert torch.equal(torch.cat(shares, dim=1), kernel)


def test_a_kernel_written_by_4_ranks_passes_through_2_and_1_unchanged_and_loads_into_arcface(runs):
    initial = runs[4][0]["initial"]
    assert torch.equal(runs["kernel"], initial["kernel"])
    assert all(found["held"] for size in SIZES for found in runs[size])
    header = ArcFace(D, CLASSES)
    header.load_state_dict(initial)
    assert torch.equal(header.kernel, runs["kernel"])


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"header: 3 classes cannot be split over 4 processes"):
        ShardedHeader(D, 3, MARGIN, S, World(0, 4, CPU.device))
    for rate in (0.0, 1.5, float("nan")):
        with pytest.raises(UserError, match=rf"sample_rate: should be above 0 and at most 1, is {rate}"):
            ShardedHeader(D, CLASSES, MARGIN, S, CPU, rate)
    with pytest.raises(UserError, match=r"header: kernel is \(12, 102\), should be \(12, 103\); check"):
        load_full_state_dict(ShardedHeader(D, CLASSES, MARGIN, S, CPU), torch.zeros(D, 102))
