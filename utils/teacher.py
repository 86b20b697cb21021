"""Teachers: networks whose embeddings a student learns. They are run, never trained."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor, nn

from backbones.names import SIZES, parse_name
from utils.checkpoint import list_backbones, load_weights
from utils.distributed import World, autocast, on_main, place, together
from utils.errors import UserError
from utils.files import is_no_folder
from utils.onnx_teacher import OnnxTeacher
from utils.progress import Progress
from utils.run_log import log

_MOST_EPOCHS = 1_000_000  # of a distillation: each has its teacher in a list


class Teacher(Protocol):
    """Gives the embeddings of images."""

    def load(self, path: Path) -> None:
        """Takes the weights of a file. Raises UserError where they are not those of this network, whole."""

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, 112, 112) float32 in [-1, 1] -> (B, embedding_size) float32 of length 1."""


class NetworkTeacher:
    """A backbone of the project, with the weights of a checkpoint."""

    def __init__(self, network: nn.Module, world: World, precision: str = "fp32") -> None:
        """precision: fp32, bf16 or fp16, whatever the student's."""
        self.network = place(network, world).eval().requires_grad_(False)
        self.world = world
        self.precision = precision

    def load(self, path: Path) -> None:
        """Takes the weights of a file into the memory that is there, so that a change of teacher costs none."""
        load_weights(self.network, path, "teacher_network, teacher_channel, teacher_n_layers, teacher_genotype")

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, 112, 112) float32 in [-1, 1] -> (B, embedding_size) float32 of length 1."""
        with torch.inference_mode(), autocast(self.world, self.precision):
            embeddings = F.normalize(self.network(images).float(), dim=1)
        return embeddings.clone()  # a copy made outside: what inference mode made cannot meet a gradient


def teacher_network(config: EasyDict) -> EasyDict:
    """The fields that build the teacher's network.

    A PocketNetS or PocketNetM has the sizes of that name; a PocketNet of no size has the student's, unless the fields
    teacher_channel, teacher_n_layers and teacher_genotype say otherwise.
    """
    size = parse_name(config.teacher_network).size
    channel, n_layers = SIZES.get(size, (config.channel, config.n_layers))
    genotype = config.teacher_genotype or config.genotype
    return EasyDict(
        net_name=config.teacher_network,
        channel=config.teacher_channel or channel,
        n_layers=config.teacher_n_layers or n_layers,
        genotype=genotype,
        genotypes={genotype: config.genotypes[genotype]},
        stem_multiplier=config.stem_multiplier,
        embedding_size=config.embedding_size,
    )


def teacher_files(config: EasyDict, ends: Sequence[int]) -> list[Path]:
    """The teacher's file for each of the student's epochs. Raises UserError where there is none.

    Template: one file for all. Multi-step: the teacher's own checkpoint of the epoch (paper, Section III-C), or, of
    another number of epochs, the first at which the teacher had done the fraction of its training that the student
    has at the end of this epoch. An untrained checkpoint (step 0) is none.

    Args:
        config: of the student.
        ends: the student's global step at the end of each of its epochs.
    """
    check_folders(config)
    if len(ends) > _MOST_EPOCHS:
        raise UserError(f"config max_steps: {len(ends):,} epochs are too many to plan teachers for; lower max_steps")
    place = Path(config.teacher_pth)
    if is_onnx(config) or is_no_folder(place):
        if config.multi_step:
            raise UserError(f"config teacher_pth: multi-step needs the folder of a teacher's checkpoints, not {place}")
        return [place] * len(ends)
    trained = {step: path for step, path in list_backbones(place, "teacher_pth").items() if step}
    if not trained:
        raise UserError(f"config teacher_pth: {place} holds an untrained checkpoint alone (0backbone.pth); train it")
    if config.multi_step:
        return [trained[step] for step in steps_of_epochs(ends, list(trained))]
    if config.teacher_global_step not in trained:
        raise UserError(
            f"config teacher_global_step: no trained {place / f'{config.teacher_global_step}backbone.pth'}; there are "
            f"the steps {', '.join(map(str, trained))}"
        )
    return [trained[config.teacher_global_step]] * len(ends)


def check_folders(config: EasyDict) -> None:
    """Raises UserError unless a teacher is named, and another folder for the student."""
    if not config.teacher_pth:
        raise UserError("config teacher_pth: is empty; name the folder of the teacher's checkpoints, or an ONNX file")
    path = Path(config.teacher_pth)
    folder = path.parent if is_no_folder(path) else path
    if folder.resolve() == Path(config.output).resolve():
        raise UserError(f"config output: {config.output!r} is the teacher's folder; name another for the student")


def steps_of_epochs(ends: Sequence[int], steps: list[int]) -> list[int]:
    """Which of the teacher's steps (ascending) is as far in its training as the student is at each of its ends."""
    if len(ends) == len(steps):
        return list(steps)
    return [next(step for step in steps if step * ends[-1] >= end * steps[-1]) for end in ends]


def is_onnx(config: EasyDict) -> bool:
    """Whether the teacher is an ONNX file."""
    return config.teacher_pth.lower().endswith(".onnx")


def log_plan(files: list[Path]) -> None:
    """Says which file serves in which epochs."""
    epoch = 0
    for path, group in groupby(files):
        last = epoch + len(list(group)) - 1
        log.info(f"Teacher of epoch{f' {epoch}' if last == epoch else f's {epoch} to {last}'}: {path}")
        epoch = last + 1


def check_files(teacher: Teacher, files: list[Path], world: World) -> None:
    """Loads every file once, so that one that will not serve is known, and told once, before the first step."""

    def load_all() -> None:
        different = list(dict.fromkeys(files))
        with Progress(len(different), "Checking", "teachers", world.is_main) as progress:
            for path in different:
                teacher.load(path)
                progress.update()

    together(world, load_all)


def describe(config: EasyDict) -> str:
    """All of the teacher, but its weights, that its embeddings depend on: the network and the precision."""
    if is_onnx(config):
        return f"ONNX, {config.embedding_size}"
    net = teacher_network(config)
    if depth := parse_name(net.net_name).depth:
        network = f"IResNet {depth}"
    else:
        genotype = net.genotypes[net.genotype]
        network = f"PocketNet {net.channel}, {net.n_layers} cells, stem {net.stem_multiplier}, {genotype}"
    return f"{network}, {net.embedding_size}, {config.teacher_precision}"


def make_teacher(config: EasyDict, world: World, build_backbone: Callable[[EasyDict], nn.Module]) -> Teacher:
    """The config's teacher, without weights as yet."""
    if is_onnx(config):
        return OnnxTeacher(config.embedding_size, world)
    network = build_backbone(teacher_network(config))
    if config.compile:
        network.compile()
    return NetworkTeacher(network, world, config.teacher_precision)


def prepare_teacher(
    config: EasyDict, world: World, ends: Sequence[int], build_backbone: Callable[[EasyDict], nn.Module]
) -> tuple[Teacher, list[Path]]:
    """The config's teacher and its file for each epoch, every one tried, and said. `ends` as in teacher_files."""
    files = on_main(world, lambda: teacher_files(config, ends))
    teacher = make_teacher(config, world, build_backbone)
    check_files(teacher, files, world)
    log_plan(files)
    return teacher, files
