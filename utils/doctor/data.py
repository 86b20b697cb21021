"""Checks of images: a sample of the training images, and all those of the evaluation sets."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from config.base import Config
from eval.inputs.sets import load_config_sets
from utils.datasets.image_dataset import ImageDataset
from utils.distributed.process_group import World
from utils.doctor.plan import RunPlan
from utils.doctor.table import FAIL, PASS, WARN, Check, collect_checks, error_check
from utils.errors import UserError
from utils.filesystem import path_exists

SAMPLE, SECONDS = 300, 5.0  # number of training images that are read, and time limit


def check_images(plan: RunPlan) -> Iterator[Check]:
    """Reads and decodes images at even distances in the file, for at most SECONDS."""
    if not plan.run:
        return
    data: ImageDataset = plan.run.loader.dataset
    errors: list[UserError] = []
    read, seconds, start = 0, 0.0, time.perf_counter()
    for index in np.unique(np.linspace(0, len(data) - 1, SAMPLE).astype(int)).tolist():
        try:
            data[index]
        except UserError as error:
            errors.append(error)
        read, seconds = read + 1, time.perf_counter() - start
        if seconds > SECONDS:
            break
    if errors:
        first = error_check("images", WARN if plan.config.on_bad_image == "skip" else FAIL, errors[0])
        yield first._replace(found=f"{len(errors)} of {read} cannot be read: {first.found}")
    else:
        yield Check("images", PASS, f"{read} read and decoded in {seconds:.2f} s, {read / seconds:,.0f} a second")


def check_sets(plan: RunPlan) -> Iterator[Check]:
    """Reads every image of the evaluation sets. A problem is only a warning if the run does not evaluate."""
    config = plan.config
    if plan.kind.command == "search":
        return
    present = [name for name in config.val_targets if path_exists(Path(config.rec, f"{name}.bin").exists)]
    missing = [f"{name}.bin" for name in config.val_targets if name not in present]
    if present and missing:
        fix = f"put it there, or name only those that are there: val_targets={','.join(present)}"
        yield Check("sets", WARN, f"no {', '.join(missing)} in {config.rec}: left out", fix)
    for names in [[name] for name in present] or [config.val_targets]:  # one at a time, to save memory
        yield from collect_checks("sets", _read_sets(config, names), FAIL if config.eval_step else WARN)


def _read_sets(config: Config, names: list[str]) -> Iterator[Check]:
    """Yields a check for each set that can be read."""
    for evaluation_set in load_config_sets(replace(config, val_targets=names), World(0, 1, torch.device("cpu"))):
        n_pairs, n_images = len(evaluation_set.issame), len(evaluation_set.images)
        yield Check("sets", PASS, f"{evaluation_set.name}: {n_pairs:,} pairs of {n_images:,} images")
