"""Checks in seconds what could end a training hours later: python -m utils.doctor [--kd] [--config FILE] …

It checks knowledge distillation (./train_kd.sh) with --kd or --multi-step, or if config.output has a checkpoint of it;
otherwise plain training (./train.sh). It calls the code that training calls, so that both report the same problems.
Like the start of a training it creates the output folders, and changes nothing else. Exit code 1 if a check fails.
"""

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from backbones import build_backbone
from config import (
    CommandParser,
    add_config_arguments,
    collect_overrides,
    ensure_output_folder,
    load_config,
    output_override,
    require_data,
    warn_unused_fields,
)
from config.base import Config
from eval.inputs.sets import load_config_sets
from utils.checkpoints.run_file import saved_task_type
from utils.distillation.task import DistillTask
from utils.distributed.process_group import World
from utils.doctor.course import check_config, check_head, check_resume, check_steps
from utils.doctor.data import check_data, check_images, check_sets, check_workers
from utils.doctor.disk import check_disk, check_output
from utils.doctor.machine import check_device, check_precision
from utils.doctor.memory import check_memory
from utils.doctor.plan import RunPlan
from utils.doctor.table import FAIL, PASS, WARN, Check, collect_checks
from utils.doctor.teacher import check_student_weights, check_teacher
from utils.errors import UserError

# The order matters, because some checks need the results of earlier ones. The partials pass in functions of config,
# backbones and eval, which the modules of the checks do not import.
SUBJECTS: dict[str, Callable[[RunPlan], Iterator[Check]]] = {
    "config": partial(check_config, warn_unused_fields),
    "device": check_device,
    "precision": check_precision,
    "data": partial(check_data, require_data),
    "images": check_images,
    "sets": partial(check_sets, load_config_sets),
    "steps": check_steps,
    "head": check_head,
    "workers": check_workers,
    "output": partial(check_output, ensure_output_folder),
    "resume": check_resume,
    "student": check_student_weights,
    "teacher": partial(check_teacher, build_backbone),
    "disk": check_disk,
    "memory": check_memory,
}


def main() -> None:
    """Runs the command. Raises SystemExit(1) if a check fails."""
    config, distils = parse_arguments()
    counts = dict.fromkeys((PASS, WARN, FAIL), 0)
    width = max(map(len, SUBJECTS))
    for check in run_checks(plan_run(config, distils)):
        counts[check.state] += 1
        lines = [f"{check.state}  {check.subject:{width}}  {check.found}"]
        lines += [f"{'':{width + 8}}fix: {check.fix}"] if check.fix else []
        tqdm.write("\n".join(lines))  # keeps a progress bar on the screen intact
    print(", ".join(f"{number} {state}" for state, number in counts.items()))
    if counts[FAIL]:
        raise SystemExit(1)


def parse_arguments() -> tuple[Config, bool]:
    """Returns the config of the command line, and whether to check knowledge distillation."""
    parser = CommandParser("Check what a training run with a config needs.")
    add_config_arguments(parser, switches=["multi_step"], resume=True)
    parser.add_argument("--kd", action="store_true", help="check knowledge distillation, as run by ./train_kd.sh")
    args = parser.parse()
    overrides = collect_overrides(args)
    load = partial(load_config, args.config, overrides, saved_in=output_override(overrides))
    distils = args.kd or bool(args.on) or saved_task_type(Path(load().output)) == DistillTask.__name__
    return load(distillation=distils), distils


def run_checks(plan: RunPlan) -> Iterator[Check]:
    """Yields the results of all checks in order; a failure skips only the checks that need its result."""
    for subject, checks in SUBJECTS.items():
        yield from collect_checks(subject, checks(plan))


def plan_run(config: Config, distils: bool = False) -> RunPlan:
    """Returns the run that ./train.sh, or ./train_kd.sh if it distils, would start here.

    The number of processes comes from torchrun's environment, else from NPROC and NNODES, else from the number of GPUs.
    Raises UserError if one of these variables is not a positive integer.
    """
    gpus = torch.cuda.device_count()
    local = _count("LOCAL_WORLD_SIZE", _count("NPROC", max(1, gpus)))
    processes = _count("WORLD_SIZE", local * _count("NNODES", 1))
    world = World(0, 1, torch.device("cuda", 0) if gpus else torch.device("cpu"))
    epoch_end_steps = list(range(1, config.num_epoch + 1))  # one step per epoch, until the size of the data is known
    backbone = build_backbone(config)
    return RunPlan(
        config, local, processes, world, backbone, config.num_image, config.num_classes, epoch_end_steps, distils
    )


def _count(name: str, default: int) -> int:
    """Returns the number in an environment variable. Raises UserError unless it is from 1 to 99999."""
    text = os.environ.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,5}", text) or not int(text):
        raise UserError(f"{name}: should be a whole number from 1, is {text!r}")
    return int(text)
