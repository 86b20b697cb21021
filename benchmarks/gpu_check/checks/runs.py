"""Runs of train.py: one is stopped by SIGTERM and resumed, and its checkpoint read and resumed on a CPU."""

import re
import signal
from pathlib import Path

import torch
from torch import Tensor

from backbones.build import build_backbone
from benchmarks.gpu_check.stages import Context
from benchmarks.gpu_check.support.commands import run_command
from benchmarks.gpu_check.support.networks import draw_images, network_arguments, run_fields
from benchmarks.measures import relative_error
from config import load_config
from eval.inference.embedding import TorchRuntime
from utils.checkpoints.run_file import read_checkpoint
from utils.checkpoints.weights import load_weights, read_weights
from utils.distributed.process_group import init_distributed, to_device

STEPS, STOP_AFTER = 16, 4  # so many that an epoch ends on a GPU, and when SIGTERM is sent


def run(context: Context) -> None:
    """Trains the same run twice, once with an interruption, and compares them."""
    folders = {name: context.folder / "runs" / name for name in ("whole", "resumed")}
    arguments = ["train.py", *network_arguments(context), "log_step=1", "save_step=5", f"max_steps={STEPS}"]
    whole, resumed = ([*arguments, *run_fields(context, name)] for name in folders)
    expect = context.report.expect
    with context.report.part("training"):
        code, output = run_command(*whole)
        losses = _losses(output)
        expect(f"{STEPS} steps of train.py", code == 0 and max(losses, default=0) == STEPS, f"exit code {code}")
        _measure_rate(context, output)
    with context.report.part("SIGTERM and resume"):
        code, output = run_command(*resumed, stop_at=rf"Global Step: {STOP_AFTER} ")
        stopped = code == 128 + signal.SIGTERM and "Stopped by SIGTERM" in output
        expect("SIGTERM ends the run with a checkpoint", stopped, f"exit code {code}")
        state = read_checkpoint(folders["resumed"])
        assert state
        step = state["position"]["step"]
        code, output = run_command(*resumed)
        expect("it resumes there", f"Resumes at step {step}" in output and code == 0, f"step {step}")
        after = _losses(output)
        difference = max(abs(after[n] / losses[n] - 1) for n in range(step + 1, step + 4))
        limit = 1e-3 if context.on_gpu else 0  # a GPU may add in another order each time
        context.report.compare("the next three losses are those of the whole run", difference, limit)
        _compare_weights(context, *(folder / f"{STEPS}backbone.pth" for folder in folders.values()))
    with context.report.part("checkpoint on a CPU"):
        _read_on_cpu(context, folders["resumed"], STEPS)
        code, output = run_command(*resumed, f"max_steps={STEPS + 1}", "device=cpu", without_gpu=True)
        expect("it resumes on a CPU", code == 0 and max(_losses(output), default=0) == STEPS + 1, f"exit code {code}")


def _losses(output: str) -> dict[int, float]:
    """Returns the loss of each log line by its step."""
    found = re.findall(r"Loss ([\d.]+|nan|inf) .*Global Step: (\d+)", output)
    return {int(step): float(loss) for loss, step in found}


def _measure_rate(context: Context, output: str) -> None:
    """Writes the median speed of the log lines, which are one a step: the host waits for each."""
    rates = sorted(map(float, re.findall(r"Speed ([\d.]+)", output)))
    context.report.measure("train.py with a log line each step", rates[len(rates) // 2], "img/s")


def _compare_weights(context: Context, whole: Path, resumed: Path) -> None:
    """Compares the last weights of both runs, which are equal on a CPU."""
    first, second = (_flat(read_weights(path)) for path in (whole, resumed))
    difference = relative_error(second, first)
    if context.on_gpu:
        context.report.measure("difference of their last weights", difference, "")
    else:
        context.report.compare("difference of their last weights", difference, 0)


def _flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weight.double().flatten() for weight in weights.values()])


def _read_on_cpu(context: Context, folder: Path, step: int) -> None:
    """Compares the embeddings of the saved network on this device and on a CPU."""
    config = load_config(saved_in=folder)
    backbone = build_backbone(config)
    load_weights(backbone, folder / f"{step}backbone.pth")
    pixels = ((draw_images(8).permute(0, 2, 3, 1) + 1) * 127.5).byte().contiguous().numpy()
    on_cpu, _ = TorchRuntime(backbone, torch.device("cpu"), 8)(pixels)
    with init_distributed(context.device) as world:
        found, _ = TorchRuntime(to_device(backbone, world), world.device, 8)(pixels)
    difference = relative_error(torch.from_numpy(found), torch.from_numpy(on_cpu))
    context.report.compare("embeddings of its network here and on a CPU", difference, 1e-4)
