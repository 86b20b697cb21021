"""Teachers: networks whose embeddings a student learns to reproduce. They are evaluated, never trained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.compiling import compile_network
from backbones.names import resolve_network_name
from config.base import Config
from utils.checkpoints.weights import load_weights
from utils.distillation.onnx_teacher import OnnxTeacher
from utils.distributed.process_group import World, autocast, to_device
from utils.registry import BACKBONES


class Teacher(Protocol):
    """Interface of a teacher network."""

    def load(self, path: Path) -> None:
        """Loads weights from a file. Raises UserError unless they fit this network completely."""

    def __call__(self, images: Tensor) -> Tensor:
        """Maps (B, 3, 112, 112) float32 in [-1, 1] to embeddings (B, embedding_size) float32 of length 1."""


class NetworkTeacher:
    """Backbone of this project as a teacher, with the weights of a checkpoint."""

    def __init__(self, network: nn.Module, world: World, precision: str = "fp32") -> None:
        """Puts the network in eval mode on the device. precision: fp32, bf16 or fp16, independent of the student's."""
        self.network = to_device(network, world).eval().requires_grad_(False)
        self.world = world
        self.precision = precision

    def load(self, path: Path) -> None:
        """Loads weights into the existing parameters, so that a change of teacher needs no further memory."""
        load_weights(self.network, path, "teacher_network, teacher_channel, teacher_n_layers, teacher_genotype")

    def __call__(self, images: Tensor) -> Tensor:
        """Maps (B, 3, 112, 112) float32 in [-1, 1] to embeddings (B, embedding_size) float32 of length 1."""
        with torch.inference_mode(), autocast(self.world, self.precision):
            embeddings = F.normalize(self.network(images).float(), dim=1)
        return embeddings.clone()  # a copy outside inference mode, because autograd refuses inference tensors


def teacher_network_config(config: Config) -> Config:
    """Returns the config of the teacher's network: the student's, with the fields of the teacher.

    PocketNetS and PocketNetM have the channel and n_layers of their name; a PocketNet without a size has the student's.
    The fields teacher_channel, teacher_n_layers and teacher_genotype override them.
    """
    size = BACKBONES[resolve_network_name(config.teacher_network)].size
    typed = {name: getattr(config, f"teacher_{name}") for name in ("channel", "n_layers", "genotype")}
    overrides = {name: value for name, value in typed.items() if value}
    return replace(config, **size | overrides, net_name=config.teacher_network)


def is_onnx(config: Config) -> bool:
    """Returns whether teacher_pth names an ONNX file."""
    return config.teacher_pth.lower().endswith(".onnx")


def teacher_description(config: Config) -> str:
    """Returns the network and precision as text: all that the embeddings depend on except the weights."""
    if is_onnx(config):
        return f"ONNX, {config.embedding_size}"
    net = teacher_network_config(config)
    name = resolve_network_name(net.net_name)
    backbone = BACKBONES[name]
    values = net.to_dict() | {"genotype": net.genotypes[net.genotype]}
    fields = {field: values[field] for field in backbone.fields}
    network = backbone.description.format(**fields) or ", ".join([name, *map(str, fields.values())])
    return f"{network}, {net.embedding_size}, {config.teacher_precision}"


def make_teacher(config: Config, world: World, build_backbone: Callable[[Config], nn.Module]) -> Teacher:
    """Builds the teacher of the config; its `load` has to be called before it is used."""
    if is_onnx(config):
        return OnnxTeacher(config.embedding_size, world)
    network = build_backbone(teacher_network_config(config))
    if config.compile:
        compile_network(network, varying_batch=True)  # a cache leaves fewer images of a batch to embed
    return NetworkTeacher(network, world, config.teacher_precision)
