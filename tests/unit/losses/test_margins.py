"""CosFace and AdaFace against their formulas in float64, in both headers, on one process and on two."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.training import CPU, small_config, spawn_ranks, train_sharded
from utils.distributed.collectives import shard_slice
from utils.distributed.data_parallel import average_gradients, unwrap_ddp, wrap_ddp
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.losses.adaface import AdaFaceMargin
from utils.losses.cosface import CosFaceMargin
from utils.losses.header import header_loss, make_header
from utils.training.checkpointing.state import gather_full_state_dict

LOSSES, HEADERS = ("cosface", "adaface"), ("replicated", "sharded")
META = World(0, 1, torch.device("meta"))
N, D, CLASSES, S, M = 12, 16, 9, 64.0, 0.4
STEPS = 3


def adaface_in_float64(cosine: torch.Tensor, norms: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """The paper's formula by way of the angle itself."""
    z = ((norms.clamp(0.001, 100) - mean) / (std + 1e-3) * 0.333).clamp(-1, 1)
    return torch.cos((cosine.acos() - M * z).clamp(0, math.pi)) - (M * z + M)


def problem(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (N, D) of norms from 0.1 to 300, and labels (N,)."""
    generator = torch.Generator().manual_seed(step)
    embeddings = F.normalize(torch.randn(N, D, generator=generator), dim=1)
    norms = torch.logspace(-1, math.log10(300), N)[torch.randperm(N, generator=generator)]
    return embeddings * norms[:, None], torch.randint(0, CLASSES, (N,), generator=generator)


def kernel() -> torch.Tensor:
    return torch.randn(D, CLASSES, generator=torch.Generator().manual_seed(9))


def expected_steps(loss: str) -> list[dict]:
    """Loss, gradients and running statistics of each step on the batch of all ranks, in float64."""
    mean, std, found = 20.0, 100.0, []
    for step in range(STEPS):
        embeddings, labels = problem(step)
        embeddings, centres = embeddings.double().requires_grad_(), kernel().double().requires_grad_()
        cosine = F.normalize(embeddings, dim=1) @ F.normalize(centres, dim=0)
        target = cosine.gather(1, labels[:, None])
        norms = embeddings.detach().norm(dim=1, keepdim=True)
        clipped = norms.clamp(0.001, 100)
        mean, std = 0.99 * mean + 0.01 * clipped.mean().item(), 0.99 * std + 0.01 * clipped.std().item()
        shifted = target - M if loss == "cosface" else adaface_in_float64(target, norms, mean, std)
        value = F.cross_entropy(S * cosine.scatter(1, labels[:, None], shifted), labels)
        gradients = torch.autograd.grad(value, [embeddings, centres])
        found.append({"loss": value.item(), "gradients": gradients, "mean": mean, "std": std})
    return found


def run_steps(world: World, folder, data, loss: str, header: str) -> list[dict]:
    """The same by a header of the project; the embeddings are those of a linear backbone of weight 1."""
    fields = [f"loss={loss}", f"header={header}", f"m={M}", f"s={S}", f"embedding_size={D}"]
    module = make_header(small_config(folder, data, *fields), CLASSES, world)
    inner, part, found = unwrap_ddp(module), shard_slice(N, world), []
    with torch.no_grad():
        columns = inner.class_slice if header == "sharded" else slice(None)
        inner.kernel.copy_(kernel()[:, columns])
    for step in range(STEPS):
        embeddings, labels = problem(step)
        shift = wrap_ddp(Shift(N), world)  # its gradient is that of the embeddings
        module.zero_grad()
        value = header_loss(module, shift(embeddings, part), labels[part])
        value.backward()
        average_gradients(module)
        average_gradients(shift)
        gradient = {"kernel": inner.kernel.grad}
        full = gather_full_state_dict(inner, gradient, world)
        found.append({"loss": value.item(), "embeddings": unwrap_ddp(shift).zeros.grad, "kernel": full, "m": {
            name: buffer.item() for name, buffer in inner.margin.named_buffers()}})  # fmt: skip
    return found


class Shift(torch.nn.Module):
    """Adds zeros to embeddings, whose gradient is theirs."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.zeros = torch.nn.Parameter(torch.zeros(n, D))

    def forward(self, embeddings: torch.Tensor, part: slice) -> torch.Tensor:
        return (embeddings + self.zeros)[part]


def all_cases(world: World, folder, data) -> None:
    """Runs every loss with every header, and writes the results of this rank."""
    found = {case: run_steps(world, folder, data, *case) for case in itertools.product(LOSSES, HEADERS)}
    torch.save(found, folder / f"{world.size}-{world.rank}.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_data):
    """Results of each rank, by number of ranks."""
    folder = tmp_path_factory.mktemp("margins")
    all_cases(CPU, folder, tiny_data)
    spawn_ranks(all_cases, folder, tiny_data, size=2)
    return {size: [torch.load(folder / f"{size}-{rank}.pt") for rank in range(size)] for size in (1, 2)}


def test_cosface_subtracts_its_margin():
    cosine = torch.linspace(-1, 1, 11, dtype=torch.float64)[:, None]
    torch.testing.assert_close(CosFaceMargin(0.35)(cosine, None), cosine - 0.35, rtol=0, atol=0)


def test_adaface_is_its_formula_in_value_and_gradient():
    """Cosines of every angle with norms of every quality, also where θ + g_angle is clipped at 0 and at π."""
    angles, norms = torch.linspace(0.01, math.pi - 0.01, 60), torch.tensor([1e-9, 0.5, 20.0, 55.0, 99.0, 1e9])
    cosine, norms = (grid.reshape(-1, 1).double() for grid in torch.meshgrid(angles.cos(), norms, indexing="ij"))
    margin = AdaFaceMargin(M).double()
    margin.mean.fill_(20.0), margin.std.fill_(10.0)
    ours, theirs = cosine.clone().requires_grad_(), cosine.clone().requires_grad_()
    shifted, expected = margin(ours, norms), adaface_in_float64(theirs, norms, 20.0, 10.0)
    torch.testing.assert_close(shifted, expected, rtol=1e-12, atol=1e-12)
    gradient, expected_gradient = (
        torch.autograd.grad(value.sum(), x)[0] for value, x in [(shifted, ours), (expected, theirs)]
    )
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)
    assert (gradient == 0).sum() > 20  # the clipped ones


def test_good_images_are_pushed_by_cosine_and_bad_ones_by_angle():
    """z = 1: cos(θ - m) - 2m. z = -1: ArcFace's cos(θ + m). z = 0: CosFace's cos θ - m."""
    margin, angle = AdaFaceMargin(M), torch.tensor([[1.1]])
    margin.std.fill_(10.0)
    for norm, expected in [(100.0, math.cos(1.1 - M) - 2 * M), (20.0, math.cos(1.1) - M)]:
        assert margin(angle.cos(), torch.tensor([[norm]])).item() == pytest.approx(expected, abs=1e-6)
    margin.mean.fill_(90.0)
    assert margin(angle.cos(), torch.tensor([[0.0]])).item() == pytest.approx(math.cos(1.1 + M), abs=1e-6)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradients_are_those_of_the_formula_on_the_global_batch(runs, size, header, loss):
    ranks = [found[loss, header] for found in runs[size]]
    for step, expected in enumerate(expected_steps(loss)):
        values = [found[step]["loss"] for found in ranks]
        assert sum(values) / size == pytest.approx(expected["loss"], rel=1e-5)
        if header == "sharded":
            assert len(set(values)) == 1
        for name, gradient in zip(("embeddings", "kernel"), expected["gradients"], strict=True):
            found = ranks[0][step][name]
            found = found["kernel"] if name == "kernel" else found
            assert (found - gradient).abs().max() <= 2e-5 * gradient.abs().max()


@pytest.mark.parametrize("header", HEADERS)
def test_running_statistics_are_those_of_the_global_batch_and_equal_in_all_processes(runs, header):
    for step, expected in enumerate(expected_steps("adaface")):
        one, (first, second) = runs[1][0]["adaface", header], (found["adaface", header] for found in runs[2])
        assert first[step]["m"] == second[step]["m"]
        for found in (one, first):
            assert found[step]["m"] == {
                "mean": pytest.approx(expected["mean"], rel=1e-6),
                "std": pytest.approx(expected["std"], rel=1e-6),
            }


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_edges_are_finite(tmp_path, tiny_data, loss, header):
    """Embeddings on their centre, opposite to it, of length 0 and very long; a batch of one; bfloat16 around it."""
    torch.manual_seed(0)
    module = make_header(small_config(tmp_path, tiny_data, f"loss={loss}", f"header={header}"), 8, CPU)
    centres = module.kernel.detach().T
    embeddings = torch.cat([7e3 * centres, -7 * centres, 1e-9 * centres, torch.zeros(8, 16), 1e12 * centres])
    labels = torch.arange(8).repeat(5)
    for rows in (slice(None), slice(24, 25), slice(0, 1)):
        inputs = embeddings[rows].clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = header_loss(module, inputs, labels[rows])
        value.backward()
        assert value.dtype == torch.float32 and torch.isfinite(value)
        assert torch.isfinite(inputs.grad).all() and torch.isfinite(module.kernel.grad).all()
        assert all(torch.isfinite(buffer) for buffer in module.margin.buffers())


@pytest.mark.parametrize("header", HEADERS)
def test_the_running_statistics_resume_exactly(tmp_path, tiny_data, header):
    for folder, cuts in (("uncut", [6]), ("cut", [2, 6])):
        for steps in cuts:
            (tmp_path / folder).mkdir(exist_ok=True)
            fields = ["loss=adaface", f"header={header}", "save_step=1", f"max_steps={steps}"]
            train_sharded(CPU, tmp_path / folder, tiny_data, *fields)
    for name in ("6header.pth", "6backbone.pth"):
        first, second = (torch.load(tmp_path / folder / "out" / name) for folder in ("uncut", "cut"))
        assert all(torch.equal(first[key], second[key]) for key in first)
    header_file = torch.load(tmp_path / "cut" / "out" / "6header.pth")
    assert header_file.keys() == {"kernel", "margin.mean", "margin.std"} and header_file["margin.mean"] < 20
    with pytest.raises(UserError, match=r"config loss: cosface, but the run in .* has 'adaface'; use that"):
        train_sharded(CPU, tmp_path / "cut", tiny_data, "loss=cosface", f"header={header}", "max_steps=7")


@pytest.mark.parametrize("header", HEADERS)
def test_all_of_a_header_is_on_its_ranks_device(tmp_path, tiny_data, header):
    module = make_header(small_config(tmp_path, tiny_data, "loss=adaface", f"header={header}"), CLASSES, META)
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("header", HEADERS)
def test_files_of_another_loss_name_the_loss(tmp_path, tiny_data, header):
    def resume(*fields):
        train_sharded(CPU, tmp_path, tiny_data, f"header={header}", "max_steps=2", *fields)

    resume()
    for path in (tmp_path / "out").glob("checkpoint*"):
        path.unlink()
    message = r"2header\.pth: is the header of another loss: it has no margin\.\*, this run's has margin\.mean, "
    with pytest.raises(UserError, match=message):
        resume("loss=adaface", "resume=1", "global_step=2")
