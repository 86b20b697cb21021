"""Opens a network from any form that it is kept in: a checkpoint, a shared folder, an exported file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from config import Config, expand_typed_path
from deploy.networks.checkpoints import open_checkpoint
from deploy.networks.exported import RUNTIMES, open_exported
from deploy.networks.metadata import network_fields
from deploy.networks.thresholds import THRESHOLDS_FILE, SetEntries, read_evaluation
from eval.inference.embedding import Runtime, choose_runtime, embed, make_runtime
from utils.distributed.precision import allow_tf32
from utils.distributed.process_group import World, select_device, to_device
from utils.filesystem import sha256


@dataclass(frozen=True)
class Model:
    """A network and what is known of it.

    Attributes:
        path: the file of its weights, whose SHA-256 is `sha256`.
        network: the config fields that define it; empty for exported files of other projects.
        thresholds: of its embeddings, by verification set.
        run: maps aligned faces (N, 112, 112, 3) uint8 RGB to embeddings (N, D) float32, not normalised.
    """

    path: Path
    sha256: str
    embedding_size: int
    network: dict[str, Any]
    thresholds: SetEntries
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class CheckpointRuntime:
    """Embeds a face as the sum of the embeddings of the image and of its hflip, as the evaluation does.

    Its thresholds hold for such embeddings.
    """

    def __init__(self, backbone: nn.Module, config: Config) -> None:
        allow_tf32(False)
        self._world = World(0, 1, select_device(config.device))
        self._backbone, self._config = to_device(backbone, self._world), config
        self._runtimes: dict[str, Runtime] = {}  # by name, each made when it is needed

    def __call__(self, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Maps aligned faces (N, 112, 112, 3) uint8 RGB to embeddings (N, D) float32."""
        # Once the network is converted, OpenVINO is the faster one for any number of faces.
        name = "openvino" if "openvino" in self._runtimes else choose_runtime(self._config, self._world, len(faces))
        if name not in self._runtimes:
            self._runtimes[name] = make_runtime(self._backbone, self._config, self._world, len(faces))
        direct, flipped = embed(self._runtimes[name], faces)
        return direct + flipped


def open_model(path: str | None = None, config_path: str | None = None) -> Model:
    """Opens a network; see `FaceEmbedder.load` for the arguments. Raises UserError."""
    path = None if path is None else expand_typed_path(path)
    if path is not None and Path(path).suffix in RUNTIMES:
        exported = open_exported(Path(path))
        metadata = exported.metadata
        return Model(
            path=Path(path),
            sha256=sha256(Path(path)),
            embedding_size=exported.embedding_size,
            network=metadata.get("network", {}),
            thresholds=metadata.get("thresholds", {}),
            run=exported,
        )
    backbone, config, file = open_checkpoint(path, config_path)
    digest = sha256(file)
    return Model(
        path=file,
        sha256=digest,
        embedding_size=config.embedding_size,
        network=network_fields(config),
        thresholds=read_evaluation(file, digest, THRESHOLDS_FILE, config.test_output),
        run=CheckpointRuntime(backbone, config),
    )
