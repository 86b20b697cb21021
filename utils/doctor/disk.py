"""Checks of the output: folders that can be written, and disk space for all files."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from config.base import Config
from utils.doctor.plan import RunPlan
from utils.doctor.table import PASS, Check, collect_checks, compare_with_free, format_bytes, not_checked

MakeFolder = Callable[[Config, str], Path]  # config.ensure_output_folder

_STATE_TENSORS = {"sgd": 1, "adamw": 2}  # of the optimizers, for each parameter


def check_output(make: MakeFolder, plan: RunPlan) -> Iterator[Check]:
    """Creates the folders that the run writes to. make: config.ensure_output_folder."""
    cached = plan.distils and plan.config.teacher_cache
    for name in ("output", "log_dir", *(["teacher_cache"] if cached else [])):
        yield from collect_checks("output", _check_folder(make, plan.config, name))


def _check_folder(make: MakeFolder, config: Config, name: str) -> Iterator[Check]:
    """Creates the folder of a config field and yields a check that passes. Raises UserError if it cannot be written."""
    yield Check("output", PASS, f"{name}: {make(config, name)} can be written")


def check_disk(plan: RunPlan) -> Iterator[Check]:
    """Compares the size of all files that the run will write with the free space of each disk."""
    config = plan.config
    if not plan.n_images or not plan.num_classes:
        yield not_checked("disk")
        return
    needs = {"output": output_bytes(plan)}
    if plan.teacher_files and config.teacher_cache:
        needs["teacher_cache"] = sum(_cache_bytes(plan, path) for path in set(plan.teacher_files))
    disks: dict[int, list[str]] = {}
    for name in needs:
        disks.setdefault(_existing_parent(getattr(config, name)).stat().st_dev, []).append(name)
    for names in disks.values():
        need = sum(needs[name] for name in names)
        free = shutil.disk_usage(_existing_parent(getattr(config, names[0]))).free
        sizes = " and ".join(f"{format_bytes(needs[name])} in {getattr(config, name)}" for name in names)
        fix = f"free disk space, or name a folder on a larger disk: {names[-1]}=FOLDER"
        yield compare_with_free("disk", need, free, f"{sizes} to be written, {format_bytes(free)} free", fix)


def output_bytes(plan: RunPlan) -> int:
    """Returns the bytes that the run will add to its output folder.

    These are the exported weights of every epoch left, config.keep checkpoints, and one more that is being written.
    """
    config, file = plan.config, io.BytesIO()
    torch.save(dict(plan.backbone.state_dict()), file)
    exported = len(file.getbuffer()) + plan.header_bytes
    buffers = sum(buffer.nbytes for buffer in plan.backbone.buffers())  # of each process
    state_buffers = _STATE_TENSORS.get(config.optimizer, 2)
    checkpoint = (1 + state_buffers) * exported + plan.processes * buffers  # weights and optimizer state
    epochs = len(plan.epoch_end_steps) - plan.progress.epoch + (config.save_initial and not plan.progress.step)
    return epochs * exported + max(1, config.keep + 1 - plan.replaced) * checkpoint


def _cache_bytes(plan: RunPlan, path: Path) -> int:
    """Returns the bytes of the cache of a teacher file; 0 if a cache file of this name and size exists already."""
    size = 4 * plan.config.embedding_size * plan.n_images
    files = Path(plan.config.teacher_cache).glob(f"{path.stem}-*.f16")
    return 0 if any(file.stat().st_size == size for file in files) else size + 8 * plan.n_images


def _existing_parent(folder: str) -> Path:
    """Returns the folder itself or its nearest parent that exists."""
    path = Path(folder).absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())
