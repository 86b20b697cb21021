"""The ArcFace header against the published code's numbers, and where those break down."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.helpers.paths import GOLDEN
from utils.losses.arcface import ArcFace
from utils.training.arcface_task import ArcFaceTask
from utils.training.task import Batch

VECTORS = np.load(GOLDEN / "arcface.npz")


def golden_header(case: str) -> tuple[ArcFace, dict[str, torch.Tensor]]:
    vectors = {key.split("/")[1]: torch.from_numpy(VECTORS[key]) for key in VECTORS.files if key.startswith(case)}
    header = ArcFace(*vectors["kernel"].shape, s=float(vectors["s"]), m=float(vectors["m"]))
    header.load_state_dict({"kernel": vectors["kernel"]})
    return header, vectors


@pytest.mark.parametrize("case", ["arcface_a", "arcface_b"])
def test_golden_logits_loss_and_gradients(case):
    header, golden = golden_header(case)
    embeddings = golden["embeddings"].requires_grad_()
    logits = header(embeddings, golden["labels"])
    loss = F.cross_entropy(logits, golden["labels"])
    loss.backward()
    torch.testing.assert_close(logits.detach(), golden["logits"], rtol=1e-5, atol=1e-5 * header.s)
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-5)
    for ours, theirs in [(embeddings.grad, golden["grad_embeddings"]), (header.kernel.grad, golden["grad_kernel"])]:
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("size", [2, 128])
def test_value_and_gradient_are_finite_at_the_centre_and_opposite_to_it(sign, size):
    torch.manual_seed(0)
    header = ArcFace(size, 50)
    embeddings = (sign * 7 * header.kernel.detach().T).requires_grad_()  # cos = ±1, by rounding also beyond
    labels = torch.arange(50)
    logits = header(embeddings, labels)
    F.cross_entropy(logits, labels).backward()
    assert torch.isfinite(logits).all() and torch.isfinite(embeddings.grad).all()
    assert torch.isfinite(header.kernel.grad).all()
    own = logits.detach().diagonal() / header.s
    expected = math.cos(header.m) if sign > 0 else -1 - header.m * math.sin(header.m)
    # float32 knows a cosine near 1 to about 3e-7, so its sine to about 8e-4
    torch.testing.assert_close(own, torch.full_like(own, expected), rtol=0, atol=1e-3)


def test_margin_is_added_to_the_angle_of_the_own_class_alone():
    header = ArcFace(2, 2, s=1.0, m=0.3)
    with torch.no_grad():
        header.kernel.copy_(torch.eye(2))
    angle = 0.7
    logits = header(torch.tensor([[math.cos(angle), math.sin(angle)]]), torch.tensor([0]))
    torch.testing.assert_close(logits, torch.tensor([[math.cos(angle + 0.3), math.sin(angle)]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_header_is_float32_inside_autocast(dtype):
    header, golden = golden_header("arcface_a")
    with torch.autocast("cpu", dtype):
        logits = header(golden["embeddings"], golden["labels"])
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.detach(), golden["logits"], rtol=1e-5, atol=1e-5 * header.s)


def test_a_zero_embedding_gives_finite_numbers():
    header = ArcFace(8, 3)
    embeddings = torch.zeros(1, 8, requires_grad=True)
    F.cross_entropy(header(embeddings, torch.tensor([1])), torch.tensor([1])).backward()
    assert torch.isfinite(embeddings.grad).all()


def test_the_task_names_its_loss():
    header, golden = golden_header("arcface_b")
    nothing = torch.zeros(len(golden["labels"]), dtype=torch.int64)
    batch = Batch(golden["embeddings"], golden["labels"], nothing, nothing.bool())
    named = ArcFaceTask(torch.nn.Identity(), header)(batch)
    assert named["Loss"].item() == pytest.approx(float(golden["loss"]), rel=1e-5)
