"""The training loop: its updates, files, log lines and errors."""

import math
import pickle
import re
from itertools import pairwise

import pytest
import torch
from torch import nn

from backbones.build import build_backbone
from eval.inference.embedding import TorchRuntime
from eval.scoring import Scorer
from tests.helpers.training import CPU, small_config, small_task, spawn_ranks, train_small
from tests.helpers.waits import CountWaits
from utils.checkpoints.weights import load_weights
from utils.datasets.training_data import load_training_data
from utils.datasets.verification.bins import read_bin
from utils.distributed.collectives import all_gather_rows, shard_slice
from utils.distributed.data_parallel import average_gradients, unwrap_ddp, wrap_ddp
from utils.distributed.process_group import init_distributed, to_device
from utils.errors import UserError
from utils.logs.logger import init_logging, log
from utils.logs.run_log import tensorboard_folder
from utils.training.arcface_task import ArcFaceTask
from utils.training.engine import train
from utils.training.task import Batch


def reported(caplog) -> list[float]:
    return [float(loss) for loss in re.findall(r"Loss ([\d.]+)", caplog.text)]


def test_the_loss_falls_and_the_published_line_is_written(tmp_path, tiny_data, log_capture):
    config = small_config(tmp_path, tiny_data, "num_epoch=12", "lr_steps=9", "log_step=5", "s=16", "m=0.2", "lr=1")
    step, _ = train_small(config)
    assert step == 60
    losses = reported(log_capture)
    assert len(losses) == 12 and losses[-1] < 0.7 * losses[0]
    assert re.search(
        r"Speed \d+\.\d\d samples/sec   Loss \d+\.\d{4}   Epoch: 11   Global Step: 60   Required: 0\.00 hours",
        log_capture.text,
    )


def test_every_epoch_leaves_both_files_and_tensorboard_has_the_curves(tmp_path, tiny_data):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = small_config(tmp_path, tiny_data, "num_epoch=2", "save_initial=1", "eval_step=5", "log_step=5")
    train_small(config, verify=lambda step: {"tiny": step / 100})
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    published = [f"{step}{part}.pth" for step in (0, 10, 5) for part in ("backbone", "header")]
    assert names == [*published, "checkpoint.10.pth", "checkpoint.5.pth", "checkpoint.pth"]
    board = EventAccumulator(str(tensorboard_folder(config))).Reload()
    assert {"train/Loss", "train/lr", "train/speed", "verification/tiny"} <= set(board.Tags()["scalars"])
    assert [(e.step, round(e.value, 4)) for e in board.Scalars("verification/tiny")] == [(5, 0.05), (10, 0.1)]


def test_two_runs_of_one_seed_end_alike_and_another_seed_differs(tmp_path, tiny_data):
    ends = []
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        _, task = train_small(small_config(tmp_path / name, tiny_data, "num_epoch=1", f"seed={seed}"))
        ends.append(task.backbone.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert not all(torch.equal(ends[0][key], ends[2][key]) for key in ends[0])


def test_learning_rate_scales_with_the_images_a_step_and_follows_the_schedule(tmp_path, tiny_data, monkeypatch):
    rates = []
    step = torch.optim.SGD.step

    def recording(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", recording)
    train_small(small_config(tmp_path, tiny_data, "num_epoch=3", "lr_steps=1,2", "lr=0.1"))
    assert rates == pytest.approx([0.1 * 8 / 512 * factor for factor in (1, 0.1, 0.01) for _ in range(5)])


def test_one_step_is_clipped_sgd_with_momentum_and_weight_decay(tmp_path, tiny_data):
    """Against the update written out: d = g · min(1, clip / |g|) + wd · w, v = d, w ← w - lr · v."""
    config = small_config(tmp_path, tiny_data, "max_steps=1", "clip_norm=0.5", "weight_decay=0.1", "lr=10")
    loader, num_classes = load_training_data(config, CPU)
    task = small_task(config, num_classes)
    before = [p.detach().clone() for p in task.backbone.parameters()]
    grads = {}
    handles = [
        p.register_hook(lambda g, i=i: grads.__setitem__(i, g)) for i, p in enumerate(task.backbone.parameters())
    ]
    train(task, loader, config, CPU)
    norm = math.sqrt(sum(g.double().square().sum().item() for g in grads.values()))
    assert norm > 0.5 and len(grads) == len(handles)
    lr = 10 * 8 / 512
    for i, (old, new) in enumerate(zip(before, task.backbone.parameters(), strict=True)):
        torch.testing.assert_close(new.detach(), old - lr * (grads[i] * 0.5 / norm + 0.1 * old), rtol=1e-4, atol=1e-6)


def test_the_host_never_waits_for_the_device_between_two_lines_of_the_log(tmp_path, tiny_data, monkeypatch):
    config = small_config(tmp_path, tiny_data, "num_epoch=2", "log_step=4")
    loader, num_classes = load_training_data(config, CPU)
    task = small_task(config, num_classes)
    waits = []
    call = ArcFaceTask.__call__

    def counting(self, batch):
        waits.append(mode.waits)
        return call(self, batch)

    monkeypatch.setattr(ArcFaceTask, "__call__", counting)
    with CountWaits() as mode:
        train(task, loader, config, CPU)
    new = [later - earlier for earlier, later in pairwise(waits)]
    assert len(new) == 9
    quiet = [w for step, w in enumerate(new, start=1) if step not in (4, 5, 8)]  # a line at 4 and 8, a file at 5
    assert quiet == [0] * 6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions_train_and_keep_float32_weights(tmp_path, tiny_data, log_capture, precision):
    fields = ["num_epoch=4", f"precision={precision}", "s=16", "lr=1", "log_step=5", "channel=1"]
    config = small_config(tmp_path, tiny_data, *fields)
    _, task = train_small(config)
    losses = reported(log_capture)
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in task.backbone.parameters())


def test_verification_leaves_the_network_in_training_mode(tmp_path, tiny_data):
    config = small_config(tmp_path, tiny_data, "num_epoch=1", "eval_step=2", "val_targets=tiny")
    loader, num_classes = load_training_data(config, CPU)
    task = small_task(config, num_classes)
    scorer = Scorer(config, CPU)
    steps = []

    def verify(step):
        assert task.backbone.training
        steps.append(step)
        accuracies = scorer.accuracies(task.backbone, step)
        assert task.backbone.training and set(accuracies) == {"tiny"}
        return accuracies

    train(task, loader, config, CPU, verify)
    assert steps == [2, 4]


# ---------------------------------------------------------------------------------------------- several processes


def _batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 3, 112, 112, generator=generator), torch.randint(0, 4, (16,), generator=generator)


def _loss(task, images, labels):
    nothing = torch.zeros(len(labels), dtype=torch.int64)
    return task(Batch(images, labels, nothing, nothing.bool()))["Loss"]


def _save_gradients(world, folder, data):
    config = small_config(folder, data)
    task = small_task(config, 4, world)
    images, labels = _batch()
    part = shard_slice(16, world)
    _loss(task, images[part], labels[part]).backward()
    average_gradients(task.backbone)
    average_gradients(task.header)
    gradients = [p.grad.clone() for m in (task.backbone, task.header) for p in m.parameters()]
    rows = all_gather_rows(torch.arange(16)[part].numpy(), world)
    torch.save({"gradients": gradients, "rows": rows.tolist(), "bn": unwrap_ddp(task.backbone).stem[1].running_mean},
               folder / f"{world.rank}.pt")  # fmt: skip


def test_two_processes_give_the_mean_of_the_gradients_of_their_halves(tmp_path, tiny_data):
    spawn_ranks(_save_gradients, tmp_path, tiny_data)
    ours = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    halves = []
    torch.set_num_threads(1)
    for rank in (0, 1):
        task = small_task(small_config(tmp_path, tiny_data), 4)
        images, labels = _batch()
        part = slice(8 * rank, 8 * rank + 8)
        _loss(task, images[part], labels[part]).backward()
        halves.append([p.grad for m in (task.backbone, task.header) for p in m.parameters()])
        # Batch norm is each process's own: its running mean is that of its half.
        assert torch.equal(task.backbone.stem[1].running_mean, ours[rank]["bn"])
    assert not torch.equal(ours[0]["bn"], ours[1]["bn"])
    for first, second, *both in zip(*halves, ours[0]["gradients"], ours[1]["gradients"], strict=True):
        assert torch.equal(both[0], both[1])
        torch.testing.assert_close(both[0], (first + second) / 2, rtol=1e-6, atol=1e-7)
    assert ours[0]["rows"] == ours[1]["rows"] == list(range(16))


def _train_together(world, folder, data):
    config = small_config(folder, data, "num_epoch=1", "eval_step=2", "val_targets=tiny")
    loader, num_classes = load_training_data(config, world)
    task = small_task(config, num_classes, world)
    scorer = Scorer(config, world)
    accuracies, xnorm = [], []

    def verify(step):
        accuracies.append(scorer.accuracies(unwrap_ddp(task.backbone), step))  # which broadcasts the running statistics
        runtime = TorchRuntime(unwrap_ddp(task.backbone), world.device, config.eval_batch)
        xnorm.append(scorer.score(runtime, step)["tiny"].xnorm)
        return accuracies[-1]

    train(task, loader, config, world, verify)
    found = {"weights": list(task.backbone.parameters()), "accuracies": accuracies, "xnorm": xnorm[0]}
    torch.save(found, folder / f"{world.rank}.pt")


def test_two_processes_train_alike_share_the_verification_and_write_once(tmp_path, tiny_data):
    spawn_ranks(_train_together, tmp_path, tiny_data)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))
    assert first["accuracies"] == second["accuracies"] and len(first["accuracies"]) == 1
    # They are those of the checkpoint, which holds the first process's running statistics, not a mixture's.
    config = small_config(tmp_path, tiny_data, "val_targets=tiny")
    backbone = to_device(build_backbone(config), CPU)
    load_weights(backbone, tmp_path / "out" / "2backbone.pth")
    scores = Scorer(config, CPU).score(TorchRuntime(backbone, CPU.device, 128), 2)["tiny"]
    assert first["accuracies"][0] == {"tiny": scores.accuracy}
    assert first["xnorm"] == second["xnorm"] == pytest.approx(scores.xnorm, rel=1e-4)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["2backbone.pth", "2header.pth", "checkpoint.2.pth", "checkpoint.pth"]


@pytest.mark.parametrize("same", [[True] * 12, [False] * 12, [True, False]])
def test_a_verification_set_that_cannot_be_measured_is_named_before_training(tmp_path, tiny_data, same):
    images = read_bin(tiny_data / "tiny.bin")[0][: 2 * len(same)]
    (tmp_path / "odd.bin").write_bytes(pickle.dumps((images, same)))
    config = small_config(tmp_path, tiny_data, f"rec={tmp_path}", "val_targets=odd")
    with pytest.raises(UserError, match=rf"odd\.bin: {len(same)} pairs, .* both kinds"):
        Scorer(config, CPU)


def test_one_process_needs_no_process_group():
    with init_distributed(device="cpu") as world:
        assert world == CPU and not torch.distributed.is_initialized()
    assert isinstance(wrap_ddp(nn.Linear(1, 1), CPU), nn.Linear)


def test_control_characters_in_a_message_stay_in_one_line(tmp_path, capsys, monkeypatch):
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(log, name, [] if name == "handlers" else getattr(log, name))  # put back afterwards
    init_logging(tmp_path / "x.log", prefix="Training: ")
    log.warning("no photo a\nb\x1b[31m")
    for text in (capsys.readouterr().out, (tmp_path / "x.log").read_text()):
        assert text.count("\n") == 1 and text.endswith("-no photo a\\nb\\x1b[31m\n")
