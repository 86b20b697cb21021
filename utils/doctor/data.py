"""Checks of the input: training images and labels, evaluation sets, and loader workers."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from easydict import EasyDict

from utils.datasets.shared_loader import Loader
from utils.datasets.training_data import load_training_data
from utils.distributed.process_group import World
from utils.doctor.plan import RunPlan
from utils.doctor.table import FAIL, PASS, WARN, Check, collect_checks, error_check, format_bytes, format_processes
from utils.errors import UserError
from utils.filesystem import path_exists

SAMPLE, SECONDS = 300, 5.0  # number of training images that are read, and time limit

ReadSets = Callable[[EasyDict, World], Sequence[Any]]  # eval.inputs.sets.load_config_sets


def check_data(require: Callable[[EasyDict], None], plan: RunPlan) -> Iterator[Check]:
    """Checks the files of the training images and every label. require: config.require_data."""
    require(plan.config)
    # With batch size 1 and no workers, because `check_steps` and `check_workers` check the values of the config.
    loader, plan.num_classes = load_training_data(EasyDict({**plan.config, "batch_size": 1, "workers": 0}), plan.world)
    plan.dataset, plan.n_images = loader.dataset, len(loader.dataset)
    yield Check("data", PASS, f"{plan.n_images:,} images of {plan.num_classes:,} identities in {plan.config.rec}")


def check_images(plan: RunPlan) -> Iterator[Check]:
    """Reads and decodes images at even distances in the file, for at most SECONDS."""
    if plan.dataset is None:
        return
    errors: list[UserError] = []
    read, seconds, start = 0, 0.0, time.perf_counter()
    for index in np.unique(np.linspace(0, plan.n_images - 1, SAMPLE).astype(int)).tolist():
        try:
            plan.dataset[index]
        except UserError as error:
            errors.append(error)
        read, seconds = read + 1, time.perf_counter() - start
        if seconds > SECONDS:
            break
    if errors:
        state = WARN if plan.config.on_bad_image == "skip" else FAIL
        first = error_check("images", state, errors[0])
        yield first._replace(found=f"{len(errors)} of {read} cannot be read: {first.found}")
    else:
        yield Check("images", PASS, f"{read} read and decoded in {seconds:.2f} s, {read / seconds:,.0f} a second")


def check_sets(read: ReadSets, plan: RunPlan) -> Iterator[Check]:
    """Reads every image of the evaluation sets. A problem is only a warning if the run does not evaluate.

    read: eval.inputs.sets.load_config_sets.
    """
    config = plan.config
    present = [name for name in config.val_targets if path_exists(Path(config.rec, f"{name}.bin").exists)]
    missing = [f"{name}.bin" for name in config.val_targets if name not in present]
    if present and missing:
        fix = f"put it there, or name only those that are there: val_targets={','.join(present)}"
        yield Check("sets", WARN, f"no {', '.join(missing)} in {config.rec}: left out", fix)
    for names in [[name] for name in present] or [config.val_targets]:  # one at a time, to save memory
        yield from collect_checks("sets", _read_sets(read, plan, names), FAIL if config.eval_step else WARN)


def _read_sets(read: ReadSets, plan: RunPlan, names: list[str]) -> Iterator[Check]:
    """Yields a check for each set that can be read, and adds up their size."""
    for evaluation_set in read(EasyDict({**plan.config, "val_targets": names}), plan.world):
        plan.set_bytes += evaluation_set.images.nbytes
        n_pairs, n_images = len(evaluation_set.issame), len(evaluation_set.images)
        yield Check("sets", PASS, f"{evaluation_set.name}: {n_pairs:,} pairs of {n_images:,} images")


def check_workers(plan: RunPlan) -> Iterator[Check]:
    """Allocates the shared memory of the loader workers of all processes on this machine."""
    count = plan.config.workers
    if count and plan.dataset is not None and plan.sampler is not None:
        loaders = [Loader(plan.dataset, plan.sampler, count) for _ in range(plan.local_processes)]
        size = format_bytes(count * len(loaders) * plan.slot_bytes)
        yield Check("workers", PASS, f"{count} for each of {format_processes(len(loaders))}, {size} of shared memory")
