"""Steps of training: none makes the host wait for the device, and a step with NaN changes nothing."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from backbones.build import build_backbone
from benchmarks.gpu_check.stages import Context
from benchmarks.gpu_check.support.networks import SMALL_SEARCH, draw_images, draw_labels, network_config, run_fields
from benchmarks.gpu_check.support.teachers import teacher_fields
from benchmarks.gpu_check.support.waits import forbid_waits
from config import load_config
from config.base import Config
from NAS.search import DEFAULT_CONFIG, prepare_search
from utils.checkpoints.snapshot import cpu_snapshot
from utils.distillation.task import prepare_distillation
from utils.distributed.process_group import World, init_distributed, to_device
from utils.losses.header import make_header
from utils.training.arcface_task import ArcFaceTask, make_arcface_task
from utils.training.checkpointing.resume import ResumePoint
from utils.training.engine import train
from utils.training.optimizer_step import OptimizerStep
from utils.training.prepare import PreparedRun, prepare_training
from utils.training.task import Batch

CLASSES = 1000
WARM_UP, CHECKED = 2, 5  # steps: the first ones allocate memory and choose algorithms


def run(context: Context) -> None:
    """Takes both kinds of steps in each precision."""
    with init_distributed(context.device) as world:
        for precision, header in product(("fp32", "bf16", "fp16"), ("replicated", "sharded")):
            check = f"a NaN step changes nothing, {precision}, {header}"
            with context.report.part(check):
                changed = changed_by_nan(network_config(context, f"precision={precision}", f"header={header}"), world)
                context.report.expect(check, not changed, ", ".join(changed[:3]))
        with context.report.part("a NaN step changes nothing, adamw"):
            changed = changed_by_nan(network_config(context, "optimizer=adamw"), world)
            context.report.expect("a NaN step changes nothing, adamw", not changed, ", ".join(changed[:3]))
        for name, config, prepare in _kinds(context):
            check = f"{CHECKED} steps without a wait: {name}"
            with context.report.part(check):
                run_without_waits(prepare(config, world), config, world)
                context.report.expect(check, True)


def changed_by_nan(config: Config, world: World) -> list[str]:
    """Trains two steps, takes one with NaN images and returns the names of all state that this changed.

    They should be none; "not noticed" is among them if the step does not count as non-finite.
    """
    torch.manual_seed(0)
    backbone = to_device(build_backbone(config), world).train()
    task = ArcFaceTask(backbone, make_header(config, CLASSES, world))
    step = OptimizerStep(task, torch.arange(config.batch_size).numpy(), config, world)
    step.set_learning_rate(0)
    batch = random_batch(config.batch_size, world)
    for number in (1, 2):
        step(batch, number)
    step.scaler = torch.amp.GradScaler(world.device.type, init_scale=1.0, enabled=step.scaler.is_enabled())
    before = _state(task, step.optimizer)
    images = torch.full_like(batch.images, torch.nan)
    _, nonfinite = step(Batch(images, batch.labels, batch.indices, batch.flipped), 3)
    after = _state(task, step.optimizer)
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    return changed + ["not noticed"] * (not bool(nonfinite))


def random_batch(batch_size: int, world: World) -> Batch:
    """Returns a batch of random images on the device."""
    images, labels = draw_images(batch_size).to(world.device), draw_labels(batch_size, CLASSES).to(world.device)
    return Batch(images, labels, torch.arange(batch_size), torch.zeros(batch_size, dtype=torch.bool))


def _state(task: ArcFaceTask, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns copies of all weights, running statistics and optimizer states by name."""
    state: dict[str, Tensor] = {}
    for name, module in (("backbone", task.backbone), ("header", task.header)):
        assert isinstance(module, nn.Module)
        state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        for key, parameter in module.named_parameters():
            state |= {f"{name}.{key}.{entry}": value for entry, value in optimizer.state[parameter].items()}
    # Batches that a batch norm has seen are counted as an integer, which has no NaN and which nothing reads.
    return cpu_snapshot({name: value for name, value in state.items() if not name.endswith("num_batches_tracked")})


def _kinds(context: Context) -> list[tuple[str, Config, Callable[[Config, World], PreparedRun]]]:
    """Returns the runs to check: their name, config and preparation."""
    fields = ["log_step=1000", "save_step=1000", "eval_step=1", f"max_steps={WARM_UP + CHECKED + 1}"]
    kinds: list[tuple[str, Config, Callable[[Config, World], PreparedRun]]] = []
    arcface = partial(prepare_training, build_backbone, make_arcface_task)
    for precision, header in (("fp32", "replicated"), ("bf16", "sharded"), ("fp16", "replicated")):
        name = f"training, {precision}, {header}"
        own = [*run_fields(context, f"waits_{precision}"), *fields, f"precision={precision}", f"header={header}"]
        kinds.append((name, network_config(context, *own), arcface))
    own = [*run_fields(context, "waits_kd"), *fields, *teacher_fields(context)]
    config = network_config(context, *own, distillation=True)
    distillation = partial(prepare_distillation, build_backbone)
    kinds.append(("distillation", config, distillation))
    own = [*run_fields(context, "waits_search"), *fields, "search_eval=0"]
    own += ["batch_size=32"] if context.on_gpu else [*SMALL_SEARCH, "batch_size=2"]  # no epoch ends within the steps
    kinds.append(("search, second order", load_config(DEFAULT_CONFIG, own), prepare_search))
    return kinds


def run_without_waits(prepared: PreparedRun, config: Config, world: World) -> None:
    """Trains with the engine; after WARM_UP steps, a wait in one of the CHECKED steps raises RuntimeError.

    The engine calls `verify` after every step, which here forbids and allows waits.
    """
    Path(config.output).mkdir(parents=True)
    task = prepared.make_task(ResumePoint())
    with ExitStack() as guard:

        def verify(step: int) -> dict[str, float]:
            if step == WARM_UP:
                guard.enter_context(forbid_waits(world.device))
            elif step == WARM_UP + CHECKED:
                guard.close()
            return {}

        train(task, prepared.loader, config, world, verify)
