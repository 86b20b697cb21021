"""Checks in seconds what would end a training hours later: python -m utils.doctor [--multi-step] [--config FILE] …

It asks the code that the training asks, so that both say the same. Like the start of a training it makes the output
folders; nothing else changes. Exit code 1 where a check fails.
"""

import io
import itertools
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run as a script: the modules are found from the project's folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from easydict import EasyDict
from torch import nn
from tqdm import tqdm

from backbones import build_backbone
from config import make_folder, parse_command, require_data
from eval.sets import config_sets
from utils.checkpoint import NETWORK_FIELDS, list_backbones, load_state, load_weights
from utils.dataset import EpochSampler, FaceDataset, load_training_data
from utils.distill import DistillTask
from utils.distributed import PRECISIONS, World, place
from utils.engine import epoch_ends
from utils.errors import UserError, run
from utils.images import SIZE
from utils.loader import SLOTS, Loader
from utils.losses import ArcFace, ArcFaceTask
from utils.resume import FILE, Position, find_start
from utils.run_log import log
from utils.step_memory import available_memory, kept_bytes, largest_output
from utils.teacher import NetworkTeacher, Teacher, is_onnx, make_teacher, teacher_files

PASS, WARN, FAIL = "pass", "warn", "fail"
SAMPLE, SECONDS = 300, 5.0  # training images that are read, and for how long at most
CLOSE = 0.85  # of what is free: a need beyond it is told as a warning, for needs are estimates
PROCESS = 600 << 20  # bytes of a training process that does nothing yet: 250 MiB on a CPU, more with CUDA's libraries
HEAP = 1.5  # memory that a CPU's heap grows by for a byte of a step's in use: 1.26 to 1.54, as measured


class Check(NamedTuple):
    """One line of the table."""

    subject: str
    state: str  # pass, warn or fail
    found: str
    mend: str = ""


@dataclass
class Run:
    """The run that is checked, and what the checks so far have found out about it."""

    config: EasyDict
    local: int  # processes on this machine
    processes: int  # on all machines
    world: World  # the doctor's own: one process
    backbone: nn.Module
    n_images: int  # 0: not known
    num_classes: int  # 0: not known
    ends: list[int]  # see epoch_ends
    dataset: FaceDataset | None = None
    sampler: EpochSampler | None = None
    position: Position = field(default_factory=Position)  # where it begins
    teacher: Teacher | None = None
    teacher_files: list[Path] = field(default_factory=list)  # of each epoch
    set_bytes: int = 0  # of the verification sets, decoded

    @property
    def distils(self) -> bool:
        """Whether it has a teacher."""
        return bool(self.config.teacher_pth) or self.config.multi_step

    @property
    def header_bytes(self) -> int:
        """Of the header's weights."""
        return 4 * self.config.embedding_size * self.num_classes

    @property
    def slot_bytes(self) -> int:
        """Of the images that a loader worker holds."""
        return SLOTS * self.config.batch_size * SIZE * SIZE * 3


# ------------------------------------------------------------------------------------------------ what the project says


def examine(plan: Run) -> Iterator[Check]:
    """Every check in turn; one that fails stops only those that need what it should have found."""
    for subject, checks in SUBJECTS.items():
        yield from heard(subject, checks(plan))


def heard(subject: str, checks: Iterable[Check], wrong: str = FAIL) -> Iterator[Check]:
    """The checks; then, as checks, an error that ended them (`wrong`) and the warnings that were logged meanwhile."""
    with _listening() as messages:
        try:
            yield from checks
        except (UserError, OSError) as error:
            yield Check(subject, wrong, *_parted(subject, str(error)))
    yield from (Check(subject, WARN, *_parted(subject, message)) for message in messages)


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collects the warnings of the project's log, which says nothing elsewhere meanwhile."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    before = log.handlers, log.propagate
    log.handlers, log.propagate = [handler], False
    try:
        yield messages
    finally:
        log.handlers, log.propagate = before


def _parted(subject: str, message: str) -> tuple[str, str]:
    """What was found, and the mend: the message's own, or else the subject's."""
    found, _, mend = message.partition("; ")
    if not mend and (match := re.match(r"config (\w+):", found)):
        mend = f"change {match[1]} in the config, or for one run with {match[1]}=…"
    return found, mend or _MENDS.get(subject, "")


_MENDS = {
    "data": "copy the files again, or make them anew (data/README.md)",
    "images": "copy the files again, or make them anew (data/README.md); on_bad_image=skip trains without such images",
    "sets": "copy it again, or name sets without it: val_targets=NAME,NAME",
    "resume": "an older one serves where there is one; delete it, and see to the disk",
    "teacher": "copy it again, or name another",
}


# ----------------------------------------------------------------------------------------------------------- the checks


def settings(plan: Run) -> Iterator[Check]:
    """The network, and the schedule."""
    config = plan.config
    size = "" if "resnet" in config.net_name.lower() else f", {config.channel} channels, {config.n_layers} cells"
    yield Check("config", PASS, f"{config.net_name}{size}, embedding {config.embedding_size}, {config.precision}")
    rate = config.lr * config.batch_size * plan.processes / 512
    rates = [(rate * config.lr_func(epoch), epoch) for epoch in range(config.num_epoch)]
    parts = [f"{lr:.3g} from {next(group)[1]}" for lr, group in itertools.groupby(rates, lambda pair: pair[0])]
    told = ", ".join(parts) if len(parts) <= 8 else f"{rates[0][0]:.3g} to {rates[-1][0]:.3g}"
    yield Check("config", PASS, f"{config.num_epoch} epochs; learning rate by epoch {told}")


def device(plan: Run) -> Iterator[Check]:
    """GPUs, or the CPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if gpus:
        state = FAIL if plan.local > len(gpus) else PASS
        found = f"{_processes(plan.local)} here, {len(gpus)} GPUs: {', '.join(dict.fromkeys(gpus))}"
        yield Check("device", state, found, f"NPROC={len(gpus)} at most" if state == FAIL else "")
    elif shutil.which("nvidia-smi"):
        mend = "see what nvidia-smi says, that CUDA_VISIBLE_DEVICES is not empty, and that torch is a build for CUDA"
        yield Check("device", WARN, "PyTorch finds no GPU here: the run would be on the CPU", mend)
    else:
        state = WARN if plan.local > cores else PASS
        found = f"CPU: {_processes(plan.local)} here, {cores} cores"
        yield Check("device", state, found, f"NPROC={cores} at most" if state == WARN else "")


def precision(plan: Run) -> Iterator[Check]:
    """Half precision and compilation, where they are asked for."""
    config, gpu = plan.config, plan.world.device.type == "cuda"
    for name in ("precision", *(["teacher_precision"] if plan.distils else [])):
        kind = config[name]
        if kind != "fp32" and not gpu:
            found = f"{name}={kind} on a CPU: where it has no instructions for it, several times slower"
            yield Check("precision", WARN, found, f"{name}=fp32")
        elif kind == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            yield Check("precision", WARN, f"{name}=bf16: this GPU has no bfloat16 of its own", f"{name}=fp16, or fp32")
        elif kind != "fp32":
            yield Check("precision", PASS, f"{name}={kind}")
    if config.compile:
        # What torch compiles by: on a CPU each kernel, on a GPU (Triton) what starts them.
        default = "gcc" if gpu else "clang++" if sys.platform == "darwin" else "g++"
        compiler = os.environ.get("CC" if gpu else "CXX", default)
        found, mend = f"compile=True, by {compiler}", f"install {compiler}, or compile=False"
        there = shutil.which(compiler)
        yield Check("precision", PASS, found) if there else Check("precision", FAIL, f"{found}: not here", mend)


def data(plan: Run) -> Iterator[Check]:
    """The files of the training images, and every label."""
    require_data(plan.config)
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
        found, mend = _parted("images", bad[0])
        state = WARN if plan.config.on_bad_image == "skip" else FAIL
        yield Check("images", state, f"{len(bad)} of {read} cannot be read: {found}", mend)
    else:
        yield Check("images", PASS, f"{read} read and decoded in {seconds:.2f} s, {read / seconds:,.0f} a second")


def sets(plan: Run) -> Iterator[Check]:
    """The verification sets, every image of them. A training that does not verify does without."""
    config = plan.config
    present = [name for name in config.val_targets if Path(config.rec, f"{name}.bin").is_file()]
    missing = [f"{name}.bin" for name in config.val_targets if name not in present]
    if present and missing:
        mend = f"put it there, or name those that are: val_targets={','.join(present)}"
        yield Check("sets", WARN, f"no {', '.join(missing)} in {config.rec}: left out", mend)
    for names in [[name] for name in present] or [config.val_targets]:  # one by one, for they take memory
        yield from heard("sets", _sets(plan, names), FAIL if config.eval_step else WARN)


def _sets(plan: Run, names: list[str]) -> Iterator[Check]:
    for held in config_sets(EasyDict({**plan.config, "val_targets": names}), plan.world):
        plan.set_bytes += held.images.nbytes
        yield Check("sets", PASS, f"{held.name}: {len(held.issame):,} pairs of {len(held.images):,} images")


def steps(plan: Run) -> Iterator[Check]:
    """Epochs and batches."""
    config = plan.config
    if not plan.n_images:
        yield _unknown("steps")
        return
    if config.batch_size == 1:
        raise UserError("config batch_size: 1 image is too few for batch norm; batch_size=2 at least")
    plan.sampler = EpochSampler(plan.n_images, config.batch_size, 0, plan.processes, config.seed)
    plan.ends = epoch_ends(config, plan.sampler)
    batch = f"{_processes(plan.processes)} with {config.batch_size} images each"
    yield Check("steps", PASS, f"{plan.ends[-1]:,}, {len(plan.sampler):,} an epoch; {batch}")


def workers(plan: Run) -> Iterator[Check]:
    """The memory that loader workers share with the training, made as all processes of this machine will make it."""
    count = plan.config.workers * plan.local
    if count and plan.dataset is not None and plan.sampler is not None:
        held = [Loader(plan.dataset, plan.sampler, plan.config.workers) for _ in range(plan.local)]
        size = _size(count * plan.slot_bytes)
        yield Check(
            "workers", PASS, f"{plan.config.workers} for each of {_processes(len(held))}, {size} of shared memory"
        )


def output(plan: Run) -> Iterator[Check]:
    """The folders that are written."""
    cached = plan.distils and plan.config.teacher_cache
    for name in ("output", "log_dir", *(["teacher_cache"] if cached else [])):
        yield from heard("output", _folder(plan.config, name))


def _folder(config: EasyDict, name: str) -> Iterator[Check]:
    yield Check("output", PASS, f"{name}: {make_folder(config, name)} can be written")


def resume(plan: Run) -> Iterator[Check]:
    """Where the run begins, and whether what is there fits the network."""
    config, folder = plan.config, Path(plan.config.output)
    if config.resume == "0":
        old = len(list(folder.glob("checkpoint*.pth")))
        yield Check("resume", PASS, f"begins anew; {old} checkpoint files will be put aside" if old else "begins anew")
        return
    if plan.dataset is None or plan.sampler is None:
        yield _unknown("resume")
        return
    # As one process that has the batches of all, for more would ask each other.
    joint = EasyDict({**config, "batch_size": config.batch_size * plan.processes})
    way = DistillTask if plan.distils else ArcFaceTask
    start = find_start(joint, way, Loader(plan.dataset, plan.sampler), plan.world)
    modules = {"header": ArcFace(config.embedding_size, plan.num_classes), "backbone": plan.backbone}
    for name, module in modules.items():
        if start.state:
            load_state(module, start.state[name], f"{folder / FILE} ({name})")
        elif start.published:
            load_weights(module, folder / f"{start.position.step}{name}.pth")
    plan.position, plan.ends = start.position, epoch_ends(config, plan.sampler, start.position)
    if not start.position.step:
        yield Check("resume", PASS, "begins anew")
    elif start.position.step < plan.ends[-1]:
        yield Check("resume", PASS, f"goes on from step {start.position.step:,}, in epoch {start.position.epoch}")
    else:
        yield Check("resume", WARN, f"{folder} holds the whole run: nothing to do", "another output, or --resume 0")


def teacher(plan: Run) -> Iterator[Check]:
    """The teacher's file for each epoch, and the student's, whole and of their networks."""
    config = plan.config
    if not plan.distils:
        return
    try:
        plan.teacher_files = teacher_files(config, plan.ends)
    except UserError as error:
        raise UserError(f"{error} (./train.sh needs no teacher: teacher_pth=)") from None
    if config.multi_step:
        there = len([step for step in list_backbones(config.teacher_pth) if step])
        if there != len(plan.ends):
            found = f"{there} checkpoints of a teacher for {len(plan.ends)} epochs: each has the one as far in training"
            yield Check("teacher", WARN, found, "copy those that are missing, if the teacher had as many epochs")
    plan.teacher = make_teacher(config, plan.world, build_backbone)
    files, whole = dict.fromkeys(plan.teacher_files), list[Path]()
    for path in tqdm(files, desc="Checking", unit="teacher", leave=False, disable=None):
        yield from heard("teacher", _load(plan.teacher, path, whole))
    yield Check("teacher", PASS if whole else FAIL, f"{len(whole)} of {len(files)} files in {config.teacher_pth} whole")
    if config.student_pth:
        path = Path(config.student_pth, f"{config.student_global_step}backbone.pth")
        load_weights(plan.backbone, path, f"student_pth, student_global_step, {NETWORK_FIELDS}")
        yield Check("teacher", PASS, f"the student starts from {path}")


def _load(teacher: Teacher, path: Path, whole: list[Path]) -> Iterator[Check]:
    teacher.load(path)
    whole.append(path)
    yield from ()


def disk(plan: Run) -> Iterator[Check]:
    """Room for all that the run will write."""
    config = plan.config
    if not plan.n_images or not plan.num_classes:
        yield _unknown("disk")
        return
    needs = {"output": _output_bytes(plan)}
    if plan.teacher_files and config.teacher_cache:
        needs["teacher_cache"] = sum(_cache_bytes(plan, path) for path in set(plan.teacher_files))
    disks: dict[int, list[str]] = {}
    for name in needs:
        disks.setdefault(_existing(config[name]).stat().st_dev, []).append(name)
    for names in disks.values():
        need, free = sum(needs[name] for name in names), shutil.disk_usage(_existing(config[names[0]])).free
        told = " and ".join(f"{_size(needs[name])} in {config[name]}" for name in names)
        mend = f"make room, or name a folder on a larger disk: {names[-1]}=FOLDER"
        yield _weighed("disk", need, free, f"{told} to be written, {_size(free)} free", mend)


def _output_bytes(plan: Run) -> int:
    """Of the published files of every epoch to come, and of config.keep checkpoints and one that is being written."""
    config, file = plan.config, io.BytesIO()
    torch.save(dict(plan.backbone.state_dict()), file)
    published = len(file.getbuffer()) + plan.header_bytes
    buffers = sum(buffer.nbytes for buffer in plan.backbone.buffers())  # of each process
    checkpoint = 2 * published + plan.processes * buffers  # weights and momentum
    epochs = len(plan.ends) - plan.position.epoch + (config.save_initial and not plan.position.step)
    there = list(Path(config.output).glob("checkpoint.*.pth")) if config.resume != "0" else []  # to be replaced
    return epochs * published + max(1, config.keep + 1 - len(there)) * checkpoint


def _cache_bytes(plan: Run, path: Path) -> int:
    """Of the embeddings of a teacher's file; 0 where there are such of a teacher of this name, as many and as long."""
    size = 4 * plan.config.embedding_size * plan.n_images
    there = Path(plan.config.teacher_cache).glob(f"{path.stem}-*.f16")
    return 0 if any(file.stat().st_size == size for file in there) else size + 8 * plan.n_images


def _existing(folder: str) -> Path:
    """The folder, or the first above it that is there."""
    path = Path(folder).absolute()
    return next(there for there in (path, *path.parents) if there.exists())


def memory(plan: Run) -> Iterator[Check]:
    """What training takes of the device, and of this machine's memory."""
    if not plan.num_classes:
        yield _unknown("memory")
        return
    gpu, batch = plan.world.device.type == "cuda", plan.config.batch_size
    free = min((torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())), default=0)
    try:
        fixed, by_image = step_bytes(plan)
    except RuntimeError as error:  # of CUDA: out of memory, or not built for this GPU
        reason = str(error).splitlines()[0]
        raise UserError(f"a step of three images fails on {plan.world.device}: {reason}; see to the device") from None
    # Of all processes; sets; two copies of weights and momentum that wait to be written.
    rest = plan.local * (PROCESS + plan.config.workers * plan.slot_bytes) + 4 * plan.header_bytes
    rest += plan.set_bytes * plan.local // plan.processes if plan.config.eval_step else 0
    if gpu:
        yield _room(fixed, by_image, batch, free, f"each {torch.cuda.get_device_name()}")
        fixed = by_image = 0
    available = available_memory()
    fixed, by_image = rest + plan.local * fixed, plan.local * HEAP * by_image
    if available is None:
        found = f"{_size(fixed + batch * by_image)} of memory needed; this system does not say what is free"
        yield Check("memory", WARN, found, "see for yourself that there is so much")
    else:
        yield _room(fixed, by_image, batch, available, "this machine")


def _room(fixed: float, by_image: float, batch: int, free: int, where: str) -> Check:
    parts = f": {_size(fixed)}, and {_size(by_image)} for each image of a batch" if by_image else ""
    fitting = int((CLOSE * free - fixed) / by_image) if by_image else 0
    mend = f"batch_size={fitting} fits" if fitting > 1 else "free some; fewer processes, workers or classes take less"
    need = fixed + batch * by_image
    return _weighed("memory", need, free, f"{_size(need)} needed of {_size(free)} free on {where}{parts}", mend)


def _weighed(subject: str, need: float, free: float, found: str, mend: str) -> Check:
    state = FAIL if need > free else WARN if need > CLOSE * free else PASS
    return Check(subject, state, found, "" if state == PASS else mend)


def _unknown(subject: str) -> Check:
    return Check(subject, WARN, "not checked, for it takes the data", "mend those, then ask again")


def _processes(count: int) -> str:
    return f"{count} process{'es' * (count > 1)}"


def _size(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


SUBJECTS: dict[str, Callable[[Run], Iterator[Check]]] = {
    "config": settings, "device": device, "precision": precision, "data": data, "images": images, "sets": sets,
    "steps": steps, "workers": workers, "output": output, "resume": resume, "teacher": teacher, "disk": disk,
    "memory": memory,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ memory


def step_bytes(plan: Run) -> tuple[float, float]:
    """What a process's training step takes at its peak, in bytes: whatever the batch, and for each image of it.

    Weights, gradients and momentum; what the backbone keeps for the backward pass, measured; and what the header makes
    in passing: as much as four of its logits or, if that is more, four of its weights (as measured of ArcFace).
    """
    config, world = plan.config, plan.world
    backbone = place(plan.backbone, world).train()
    # Half precision can take a CPU minutes: there it is reckoned from float32.
    kind = config.precision if world.device.type == "cuda" else "fp32"
    share = torch.finfo(PRECISIONS[config.precision]).bits / torch.finfo(PRECISIONS[kind]).bits
    two, three = (share * kept_bytes(backbone, n, world, kind) for n in (2, 3))
    fixed = 3 * sum(parameter.nbytes for parameter in backbone.parameters()) + max(0, 3 * two - 2 * three)
    by_image = three - two
    if config.head == "sharded":  # docs/scaling.md; the logits are of the images of all processes
        fixed += (3 + 3 * config.sample_rate) * plan.header_bytes / plan.processes
        by_image += 4 * plan.num_classes * config.sample_rate
    else:
        fixed += (3 + 4) * plan.header_bytes
        by_image += 4 * 4 * plan.num_classes
    if isinstance(plan.teacher, NetworkTeacher):
        network = plan.teacher.network
        fixed += sum(parameter.nbytes for parameter in network.parameters())
        by_image += 3 * largest_output(network, world)  # what goes around a block, into a layer and out of it
    elif plan.teacher_files and is_onnx(config):
        fixed += plan.teacher_files[0].stat().st_size
    return fixed, by_image


# ------------------------------------------------------------------------------------------------------- the command


def plan_run(config: EasyDict) -> Run:
    """The run that ./train.sh or ./train_kd.sh would start here; torchrun's environment counts as well."""
    gpus = torch.cuda.device_count()
    local = _count("LOCAL_WORLD_SIZE", _count("NPROC", max(1, gpus)))
    processes = _count("WORLD_SIZE", local * _count("NNODES", 1))
    world = World(0, 1, torch.device("cuda", 0) if gpus else torch.device("cpu"))
    ends = list(range(1, config.num_epoch + 1))  # a step each, until the data say how many
    return Run(config, local, processes, world, build_backbone(config), config.num_image, config.num_classes, ends)


def _count(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,5}", text) or not int(text):
        raise UserError(f"{name}: should be a whole number from 1, is {text!r}")
    return int(text)


def main() -> None:
    """The command line."""
    config = parse_command("Check what a training by a config needs.", switches=["multi_step"])
    counts = dict.fromkeys((PASS, WARN, FAIL), 0)
    width = max(map(len, SUBJECTS))
    for check in examine(plan_run(config)):
        counts[check.state] += 1
        lines = [f"{check.state}  {check.subject:{width}}  {check.found}"]
        lines += [f"{'':{width + 8}}mend: {check.mend}"] if check.mend else []
        tqdm.write("\n".join(lines))  # above a bar that may be on the screen
    print(", ".join(f"{number} {state}" for state, number in counts.items()))
    if counts[FAIL]:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
