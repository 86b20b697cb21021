"""What is read: training images and their labels, verification sets, and the workers that load them."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from easydict import EasyDict

from utils.datasets.shared_loader import Loader
from utils.datasets.training_data import load_training_data
from utils.distributed.process_group import World
from utils.doctor.plan import Run
from utils.doctor.table import FAIL, PASS, WARN, Check, format_bytes, format_processes, heard, split_message
from utils.errors import UserError
from utils.filesystem import path_exists

SAMPLE, SECONDS = 300, 5.0  # training images that are read, and for how long at most

ReadSets = Callable[[EasyDict, World], Sequence[Any]]  # eval.inputs.sets.config_sets


def data(require: Callable[[EasyDict], None], plan: Run) -> Iterator[Check]:
    """The files of the training images, and every label. require: config.require_data."""
    require(plan.config)
    # A batch of one and no workers: whether the config's fit is for `steps` and `workers` to say.
    loader, plan.num_classes = load_training_data(EasyDict({**plan.config, "batch_size": 1, "workers": 0}), plan.world)
    plan.dataset, plan.n_images = loader.dataset, len(loader.dataset)
    yield Check("data", PASS, f"{plan.n_images:,} images of {plan.num_classes:,} identities in {plan.config.rec}")


def images(plan: Run) -> Iterator[Check]:
    """Some of the images, from all over the file."""
    if plan.dataset is None:
        return
    bad: list[str] = []
    read, seconds, started = 0, 0.0, time.perf_counter()
    for index in np.unique(np.linspace(0, plan.n_images - 1, SAMPLE).astype(int)).tolist():
        try:
            plan.dataset[index]
        except UserError as error:
            bad.append(str(error))
        read, seconds = read + 1, time.perf_counter() - started
        if seconds > SECONDS:
            break
    if bad:
        found, fix = split_message("images", bad[0])
        state = WARN if plan.config.on_bad_image == "skip" else FAIL
        yield Check("images", state, f"{len(bad)} of {read} cannot be read: {found}", fix)
    else:
        yield Check("images", PASS, f"{read} read and decoded in {seconds:.2f} s, {read / seconds:,.0f} a second")


def sets(read: ReadSets, plan: Run) -> Iterator[Check]:
    """The verification sets, every image of them. A training that does not verify does without."""
    config = plan.config
    present = [name for name in config.val_targets if path_exists(Path(config.rec, f"{name}.bin").exists)]
    missing = [f"{name}.bin" for name in config.val_targets if name not in present]
    if present and missing:
        fix = f"put it there, or name those that are: val_targets={','.join(present)}"
        yield Check("sets", WARN, f"no {', '.join(missing)} in {config.rec}: left out", fix)
    for names in [[name] for name in present] or [config.val_targets]:  # one by one, for they take memory
        yield from heard("sets", _sets(read, plan, names), FAIL if config.eval_step else WARN)


def _sets(read: ReadSets, plan: Run, names: list[str]) -> Iterator[Check]:
    for held in read(EasyDict({**plan.config, "val_targets": names}), plan.world):
        plan.set_bytes += held.images.nbytes
        yield Check("sets", PASS, f"{held.name}: {len(held.issame):,} pairs of {len(held.images):,} images")


def workers(plan: Run) -> Iterator[Check]:
    """The memory that loader workers share with the training, made as all processes of this machine will make it."""
    count = plan.config.workers
    if count and plan.dataset is not None and plan.sampler is not None:
        held = [Loader(plan.dataset, plan.sampler, count) for _ in range(plan.local)]
        size = format_bytes(count * len(held) * plan.slot_bytes)
        yield Check("workers", PASS, f"{count} for each of {format_processes(len(held))}, {size} of shared memory")
