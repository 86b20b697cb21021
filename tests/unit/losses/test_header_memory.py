"""Memory of a step of the header, by the formula of docs/scaling.md and as counted."""

import json

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.header import header_tensor_bytes
from tests.helpers.training import CPU, small_config, spawn_ranks
from utils.losses.header import header_loss, make_header

CLASSES = 4000
HEADS = [["header=replicated"], ["header=sharded"], ["header=sharded", "sample_rate=0.25"]]
SHAPES = [["embedding_size=16", "batch_size=8"], ["embedding_size=8", "batch_size=32"]]  # the logits small, and large
WAYS = [[*header, *shape] for header in HEADS for shape in SHAPES]


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are there at once; `peak` is the most."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, list | tuple) else [made]:
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                self.sizes[StorageWeakRef(storage)] = storage.nbytes()
        self.sizes = {storage: size for storage, size in self.sizes.items() if not storage.expired()}
        self.peak = max(self.peak, sum(self.sizes.values()))
        return made


def peak_of_training(config, world) -> int:
    """Bytes of this process's tensors at the peak of steps of the header alone."""
    with Live() as live:
        header = make_header(config, CLASSES, world)
        optimizer = torch.optim.SGD(header.parameters(), 0.1, momentum=0.9, fused=True)
        embeddings = torch.randn(config.batch_size, config.embedding_size).requires_grad_()
        labels = torch.arange(config.batch_size) * (CLASSES // config.batch_size)
        live.peak = 0  # until here initial values were drawn
        for _ in range(2):
            header_loss(header, embeddings, labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            embeddings.grad = None
    return live.peak


def note_peaks(world, folder, data):
    """Each way's peak, in a file of this process."""
    peaks = [peak_of_training(small_config(folder, data, *way), world) for way in WAYS]
    (folder / f"{world.rank}.json").write_text(json.dumps(peaks))


def test_the_head_takes_what_the_formula_says(tmp_path, tiny_data):
    note_peaks(CPU, tmp_path, tiny_data)
    spawn_ranks(note_peaks, tmp_path / "of 2", tiny_data)
    for processes, files in ((1, ["0.json"]), (2, ["of 2/0.json", "of 2/1.json"])):
        for file in files:
            for way, peak in zip(WAYS, json.loads((tmp_path / file).read_text()), strict=True):
                config = small_config(tmp_path, tiny_data, *way)
                size, batch = config.embedding_size, config.batch_size
                needed = header_tensor_bytes(config.header, size, CLASSES, processes, batch, config.sample_rate)
                # Embeddings of all processes, their gradient, and the copy of it that is all-reduced.
                needed += 3 * 4 * processes * batch * size if config.header == "sharded" else 0
                assert needed == pytest.approx(peak, rel=0.05), (processes, way)
