"""Checks in seconds what would end a training hours later: python -m utils.doctor [--kd] [--config FILE] …

It checks plain training (./train.sh), with --kd or --multi-step distillation (./train_kd.sh), and without these the
kind of run whose checkpoint lies in config.output. It asks the code that the training asks, so that both say the same.
Like the start of a training it makes the output folders; nothing else changes. Exit code 1 where a check fails.
"""

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from easydict import EasyDict
from tqdm import tqdm

from backbones import build_backbone
from config import (
    CommandParser,
    add_config_arguments,
    load_config,
    log_unused,
    make_folder,
    overrides_of,
    require_data,
    typed_output,
)
from eval.inputs.sets import config_sets
from utils.checkpoints.run_file import saved_task_type
from utils.distillation.task import DistillTask
from utils.distributed.process_group import World
from utils.doctor.course import head, resume, settings, steps
from utils.doctor.data import data, images, sets, workers
from utils.doctor.disk import disk, output
from utils.doctor.machine import device, precision
from utils.doctor.memory import memory
from utils.doctor.plan import Run
from utils.doctor.table import FAIL, PASS, WARN, Check, heard
from utils.doctor.teacher import student, teacher
from utils.errors import UserError

# In this order, for some need what others find out. Partial: utils/checks, as the rest of utils, knows neither config
# nor backbones nor eval, and is handed what it needs of them.
SUBJECTS: dict[str, Callable[[Run], Iterator[Check]]] = {
    "config": partial(settings, log_unused),
    "device": device,
    "precision": precision,
    "data": partial(data, require_data),
    "images": images,
    "sets": partial(sets, config_sets),
    "steps": steps,
    "head": head,
    "workers": workers,
    "output": partial(output, make_folder),
    "resume": resume,
    "student": student,
    "teacher": partial(teacher, build_backbone),
    "disk": disk,
    "memory": memory,
}


def main() -> None:
    """The command line."""
    config, distils = parse_arguments()
    counts = dict.fromkeys((PASS, WARN, FAIL), 0)
    width = max(map(len, SUBJECTS))
    for check in examine(plan_run(config, distils)):
        counts[check.state] += 1
        lines = [f"{check.state}  {check.subject:{width}}  {check.found}"]
        lines += [f"{'':{width + 8}}mend: {check.fix}"] if check.fix else []
        tqdm.write("\n".join(lines))  # above a bar that may be on the screen
    print(", ".join(f"{number} {state}" for state, number in counts.items()))
    if counts[FAIL]:
        raise SystemExit(1)


def parse_arguments() -> tuple[EasyDict, bool]:
    """Returns the config that the command line names, and whether a distillation is to be checked."""
    parser = CommandParser("Check what a training by a config needs.")
    add_config_arguments(parser, switches=["multi_step"], resume=True)
    parser.add_argument("--kd", action="store_true", help="check a distillation: what ./train_kd.sh needs")
    args = parser.parse()
    overrides = overrides_of(args)
    load = partial(load_config, args.config, overrides, saved_in=typed_output(overrides))
    distils = args.kd or bool(args.on) or saved_task_type(Path(load().output)) == DistillTask.__name__
    return load(distills=distils), distils


def examine(plan: Run) -> Iterator[Check]:
    """Every check in turn; one that fails stops only those that need what it should have found."""
    for subject, checks in SUBJECTS.items():
        yield from heard(subject, checks(plan))


def plan_run(config: EasyDict, distils: bool = False) -> Run:
    """The run that ./train.sh, or ./train_kd.sh if it distils, would start here; torchrun's environment counts as well.

    Raises UserError over a number of processes that is none.
    """
    gpus = torch.cuda.device_count()
    local = _count("LOCAL_WORLD_SIZE", _count("NPROC", max(1, gpus)))
    processes = _count("WORLD_SIZE", local * _count("NNODES", 1))
    world = World(0, 1, torch.device("cuda", 0) if gpus else torch.device("cpu"))
    ends = list(range(1, config.num_epoch + 1))  # a step each, until the data say how many
    return Run(
        config, local, processes, world, build_backbone(config), config.num_image, config.num_classes, ends, distils
    )


def _count(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,5}", text) or not int(text):
        raise UserError(f"{name}: should be a whole number from 1, is {text!r}")
    return int(text)
