"""What is written: the folders, and room for all checkpoints."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from easydict import EasyDict

from utils.doctor.plan import Run
from utils.doctor.table import PASS, Check, format_bytes, heard, unknown, weighed

MakeFolder = Callable[[EasyDict, str], Path]  # config.make_folder


def output(make: MakeFolder, plan: Run) -> Iterator[Check]:
    """The folders that are written."""
    cached = plan.distils and plan.config.teacher_cache
    for name in ("output", "log_dir", *(["teacher_cache"] if cached else [])):
        yield from heard("output", _folder(make, plan.config, name))


def _folder(make: MakeFolder, config: EasyDict, name: str) -> Iterator[Check]:
    yield Check("output", PASS, f"{name}: {make(config, name)} can be written")


def disk(plan: Run) -> Iterator[Check]:
    """Room for all that the run will write."""
    config = plan.config
    if not plan.n_images or not plan.num_classes:
        yield unknown("disk")
        return
    needs = {"output": output_bytes(plan)}
    if plan.teacher_files and config.teacher_cache:
        needs["teacher_cache"] = sum(_cache_bytes(plan, path) for path in set(plan.teacher_files))
    disks: dict[int, list[str]] = {}
    for name in needs:
        disks.setdefault(_existing(config[name]).stat().st_dev, []).append(name)
    for names in disks.values():
        need, free = sum(needs[name] for name in names), shutil.disk_usage(_existing(config[names[0]])).free
        told = " and ".join(f"{format_bytes(needs[name])} in {config[name]}" for name in names)
        fix = f"make room, or name a folder on a larger disk: {names[-1]}=FOLDER"
        yield weighed("disk", need, free, f"{told} to be written, {format_bytes(free)} free", fix)


def output_bytes(plan: Run) -> int:
    """Of the published files of every epoch to come, and of config.keep checkpoints and one that is being written."""
    config, file = plan.config, io.BytesIO()
    torch.save(dict(plan.backbone.state_dict()), file)
    published = len(file.getbuffer()) + plan.header_bytes
    buffers = sum(buffer.nbytes for buffer in plan.backbone.buffers())  # of each process
    checkpoint = 2 * published + plan.processes * buffers  # weights and momentum
    epochs = len(plan.epoch_end_steps) - plan.progress.epoch + (config.save_initial and not plan.progress.step)
    return epochs * published + max(1, config.keep + 1 - plan.replaced) * checkpoint


def _cache_bytes(plan: Run, path: Path) -> int:
    """Of the embeddings of a teacher's file; 0 where there are such of a teacher of this name, as many and as long."""
    size = 4 * plan.config.embedding_size * plan.n_images
    there = Path(plan.config.teacher_cache).glob(f"{path.stem}-*.f16")
    return 0 if any(file.stat().st_size == size for file in there) else size + 8 * plan.n_images


def _existing(folder: str) -> Path:
    """The folder, or the first above it that is there."""
    path = Path(folder).absolute()
    return next(there for there in (path, *path.parents) if there.exists())
