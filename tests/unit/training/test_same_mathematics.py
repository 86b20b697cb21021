"""Training at each setting has the losses of a plain loop, step by step: faster, but the same mathematics."""

import pytest
import torch
from torch import nn

from backbones.build import build_backbone
from backbones.ops import FactorizedReduce, StdConv
from benchmarks.training.plain import make_plain
from tests.helpers.training import CPU, small_config
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.transforms import normalise
from utils.training.arcface_task import make_arcface_task
from utils.training.checkpointing.resume import ResumePoint
from utils.training.optimizer_step import OptimizerStep
from utils.training.prepare import prepare_training
from utils.training.task import Batch

STEPS, BATCH, LR = 50, 16, 0.0003
SETTINGS = ["s=8", "seed=0"]


@pytest.fixture(scope="module")
def batches(tiny_data):
    """Random batches of the tiny dataset."""
    dataset, generator = FaceDataset(tiny_data), torch.Generator().manual_seed(0)
    images, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    pixels, labels = normalise(torch.stack([torch.from_numpy(image) for image in images])), torch.tensor(labels)
    picks = [torch.randint(0, len(labels), (BATCH,), generator=generator) for _ in range(STEPS)]
    return [Batch(pixels[pick], labels[pick], pick, torch.zeros(BATCH, dtype=torch.bool)) for pick in picks]


def make_run(folder, data, *settings):
    """Returns the config, the loader and the task that train.py trains."""
    config = small_config(folder, data, *SETTINGS, *settings)
    run = prepare_training(build_backbone, make_arcface_task, config, CPU)
    torch.manual_seed(0)
    return config, run.loader, run.make_task(ResumePoint())


@pytest.fixture(scope="module")
def expected(tmp_path_factory, tiny_data, batches):
    """Losses of a plain loop: eager, float32, contiguous memory, torch's PReLU, an optimizer for each module."""
    config, _, task = make_run(tmp_path_factory.mktemp("plain"), tiny_data)
    backbone, header = task.backbone.train(), task.header
    make_plain(backbone)
    options = {"lr": LR, "momentum": config.momentum, "weight_decay": config.weight_decay, "foreach": False}
    optimizers = [torch.optim.SGD(module.parameters(), **options) for module in (backbone, header)]
    losses = []
    for batch in batches:
        logits = header(backbone(batch.images.contiguous()), batch.labels)
        loss = nn.functional.cross_entropy(logits, batch.labels)
        loss.backward()
        nn.utils.clip_grad_norm_(backbone.parameters(), config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1  # it learns
    return torch.tensor(losses)


@pytest.mark.parametrize(("setting", "tolerance"), [("", 1e-3), ("header=sharded", 1e-3), ("precision=bf16", 0.01)])
def test_the_losses_are_those_of_a_plain_loop(tmp_path, tiny_data, batches, expected, setting, tolerance):
    config, loader, task = make_run(tmp_path, tiny_data, *setting.split())
    assert any(m.folds for m in task.backbone.modules() if isinstance(m, StdConv | FactorizedReduce))
    if setting == "header=sharded":  # which draws its classes in another order
        plain = make_run(tmp_path, tiny_data)[2]
        task.header.load_state_dict(plain.header.state_dict())
    task.backbone.train()
    step = OptimizerStep(task, loader.dataset.keys, config, CPU)
    for group in step.optimizer.param_groups:
        group["lr"] = LR
    losses = [step(batch, number)[0]["Loss"].item() for number, batch in enumerate(batches, start=1)]
    # Of the first loss: rounding grows from step to step, while the loss falls to a hundredth.
    torch.testing.assert_close(torch.tensor(losses), expected, rtol=0, atol=tolerance * float(expected[0]))


def test_folding_keeps_state_and_evaluation(tmp_path, tiny_data, batches):
    """Keys are those of the plain network; in evaluation mode the embeddings are too, to the bit."""
    _, _, task = make_run(tmp_path, tiny_data)
    plain = build_backbone(small_config(tmp_path, tiny_data))
    assert plain.state_dict().keys() == task.backbone.state_dict().keys()
    plain.load_state_dict(task.backbone.state_dict())
    plain = plain.to(memory_format=torch.channels_last).eval()
    with torch.inference_mode():
        images = batches[0].images
        assert torch.equal(task.backbone.eval()(images), plain(images))
