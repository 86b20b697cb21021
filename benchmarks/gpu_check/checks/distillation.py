"""Distillation with one teacher and with a teacher of each epoch, the cache of its embeddings, and an evaluation."""

import json
import math
from pathlib import Path

import numpy as np
import torch

import eval.eval as evaluation
import train_kd
from backbones.build import build_backbone
from benchmarks.gpu_check.stages import Context
from benchmarks.gpu_check.support.commands import run_here
from benchmarks.gpu_check.support.networks import network_arguments, network_config, run_fields
from benchmarks.gpu_check.support.teachers import STEPS, teacher_fields
from benchmarks.measures import relative_error
from utils.checkpoints.weights import list_backbones
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.transforms import normalise
from utils.distillation.teacher import NetworkTeacher, teacher_network_config
from utils.distributed.process_group import World

IMAGES = 4  # whose cached embeddings are compared


def run(context: Context) -> None:
    """Runs train_kd.py four times and eval.py twice, in this process."""
    cache = context.folder / "cache"
    epochs = [f"num_epoch={len(STEPS)}", "log_step=5"]
    fields = [*network_arguments(context), *teacher_fields(context), *epochs]
    single = [*fields, *run_fields(context, "kd"), f"teacher_cache={cache}"]
    with context.report.part("template distillation"):
        run_here(train_kd.main, *single)
        context.report.expect("template distillation, with a new cache", _epochs(context, "kd") == len(STEPS))
    with context.report.part("cache"):
        _check_cache(context, cache)
        again = [*fields, *run_fields(context, "kd_cached"), f"teacher_cache={cache}", "precision=bf16"]
        run_here(train_kd.main, *again)
        context.report.expect(
            "template distillation, from the cache, bf16", _epochs(context, "kd_cached") == len(STEPS)
        )
    with context.report.part("multi-step distillation"):
        run_here(train_kd.main, "--multi-step", *fields, *run_fields(context, "kd_multi"))
        context.report.expect("multi-step distillation", _epochs(context, "kd_multi") == len(STEPS))
    with context.report.part("AdaDistill"):
        adaptive = ["distill=adadistill", "loss=adaface", "header=sharded", f"teacher_cache={cache}"]
        run_here(train_kd.main, *fields, *run_fields(context, "kd_adaptive"), *adaptive)
        context.report.expect(
            "AdaDistill with AdaFace and a sharded header", _epochs(context, "kd_adaptive") == len(STEPS)
        )
    with context.report.part("evaluation"):
        _evaluate(context, context.folder / "runs" / "kd")


def _epochs(context: Context, name: str) -> int:
    """Returns the number of epochs whose weights a run has saved."""
    return len(list_backbones(context.folder / "runs" / name))


def _check_cache(context: Context, folder: Path) -> None:
    """Compares cached embeddings with those of the teacher on a CPU. They are float16: within 2^-11 of their value."""
    (path,) = folder.glob("*.f16")
    identity = json.loads(path.with_suffix(".json").read_text())
    cached = np.memmap(path, np.float16, "r", shape=(identity["images"], 2, identity["embedding_size"]))
    config = network_config(context, *teacher_fields(context), distillation=True)
    cpu = World(0, 1, torch.device("cpu"))
    teacher = NetworkTeacher(build_backbone(teacher_network_config(config)), cpu, config.teacher_precision)
    teacher.load(Path(config.teacher_pth, f"{config.teacher_global_step}backbone.pth"))
    filled = np.flatnonzero(np.any(cached, axis=(1, 2)))[:IMAGES]
    data = FaceDataset(context.folder / "faces")
    pixels = torch.from_numpy(np.stack([data[int(index)][0] for index in filled]))
    exact = torch.stack(
        [teacher(images) for images in (normalise(pixels), normalise(pixels).flip(3))], dim=1
    )  # (B, 2, D)
    found = torch.from_numpy(cached[filled].astype(np.float32))
    context.report.compare("cached embeddings and those of a CPU", relative_error(found, exact), 5e-4)


def _evaluate(context: Context, folder: Path) -> None:
    """Scores the last checkpoint on this device and on a CPU."""
    step = max(list_backbones(folder))
    scores = {}
    for device in dict.fromkeys((context.device, "cpu")):
        results = context.folder / "results" / device
        changes = [f"output={folder}", f"device={device}", f"test_output={results}", "eval_runtime=torch"]
        run_here(evaluation.main, "--steps", str(step), *changes)
        (scores[device],) = json.loads((results / "results.json").read_text())[str(step)].values()
    here, on_cpu = scores[context.device], scores["cpu"]
    context.report.measure("accuracy on 40 pairs", 100 * here["accuracy"], "%")
    difference = abs(here["xnorm"] - on_cpu["xnorm"]) / on_cpu["xnorm"]
    finite = math.isfinite(here["accuracy"])
    context.report.compare("norms of the embeddings here and on a CPU", difference, 1e-4, also=finite)
