"""Measures the speed of the loader, of plain JPEG decoding, of torch's DataLoader, and of a per-image float pipeline.

    python benchmarks/loader.py [--rec FOLDER] [--workers 0,1,2]

Each figure is the median of several passes, taken in turn, in images per second.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.training.plain import PerImageFloat
from utils.datasets.alignment import SIZE
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.sampler import EpochSampler
from utils.datasets.shared_loader import SharedMemoryLoader
from utils.errors import run_cli

PUBLISHED = 1840  # img/s per core of the published loader, in batches, on a core of this kind
BATCH = 128


class Batches(Dataset):
    """Decodes the images of a batch at once, as bytes, into memory of its own: what torch's DataLoader does best."""

    def __init__(self, dataset: FaceDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.empty((len(indices), SIZE, SIZE, 3), dtype=torch.uint8)
        labels = torch.empty(len(indices), dtype=torch.int64)
        self.dataset.read_into(indices, images.numpy(), labels.numpy())
        return images, labels


def decode_pass(dataset: FaceDataset, threads: int) -> Callable[[], int]:
    """Returns a pass that only decodes JPEG payloads in memory, in threads (OpenCV releases the GIL)."""
    payloads = [np.frombuffer(dataset.reader.read_image(int(key))[1], np.uint8) for key in dataset.keys]

    def decode(part: list[np.ndarray]) -> None:
        for payload in part:
            cv2.imdecode(payload, cv2.IMREAD_COLOR_RGB)

    def measure() -> int:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, [payloads[i::threads] for i in range(threads)]))
        return len(payloads)

    return measure


def loader_pass(dataset: FaceDataset, workers: int) -> Callable[[], int]:
    """Returns a pass over an epoch of the project's loader; its workers persist between passes, as in training."""
    loader = SharedMemoryLoader(dataset, EpochSampler(len(dataset), BATCH), workers)
    epochs = iter(range(1_000_000))
    return lambda: sum(len(batch.images) for batch in loader.iter_epoch(next(epochs)))


def torch_pass(dataset: FaceDataset, workers: int) -> Callable[[], int]:
    """Returns a pass over the data through torch's DataLoader in the same batches."""
    loader = DataLoader(
        Batches(dataset), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0,
        collate_fn=lambda batch: batch, drop_last=True,
    )  # fmt: skip
    return lambda: sum(len(images) for images, _ in loader)


def per_image_pass(dataset: FaceDataset, workers: int) -> Callable[[], int]:
    """Returns a pass over part of the data through PerImageFloat."""
    subset = torch.utils.data.Subset(PerImageFloat(dataset), range(min(len(dataset), 10 * BATCH)))
    loader = DataLoader(subset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return lambda: sum(len(images) for images, _ in loader)


def rates(measures: list[Callable[[], int]], passes: int) -> list[float]:
    """Returns the median img/s of each measure; they take turns, so that drift of the machine affects all alike."""
    speeds: list[list[float]] = [[] for _ in measures]
    for turn in range(passes + 1):
        for measure, values in zip(measures, speeds, strict=True):
            start = time.perf_counter()
            images = measure()
            if turn:  # the first pass is warm-up
                values.append(images / (time.perf_counter() - start))
    return [median(values) for values in speeds]


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rec", default="data/faces_demo", help="folder of train.rec (%(default)s)")
    parser.add_argument("--workers", default="0,1,2", help="numbers of worker processes (%(default)s)")
    parser.add_argument("--passes", type=int, default=7, help="measured passes of each (%(default)s)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    dataset = FaceDataset(args.rec)
    print(f"{len(dataset)} images of {args.rec}, {os.cpu_count()} cores, batches of {BATCH}, {args.passes} passes\n")
    print(" workers  cores   decoding only    loader  of decoding  torch's loader  per-image float  published")
    for workers in map(int, args.workers.split(",")):
        cores = max(1, workers)
        os.sched_setaffinity(0, range(min(cores, os.cpu_count() or 1)))  # the training process shares these cores
        passes = [
            decode_pass(dataset, cores),
            loader_pass(dataset, workers),
            torch_pass(dataset, workers),
            per_image_pass(dataset, workers),
        ]
        decode, load, torch_load, usual = rates(passes, args.passes)
        print(
            f"{workers:>8}{cores:>7}{decode:>16,.0f}{load:>10,.0f}{load / decode:>13.2f}{torch_load:>16,.0f}"
            f"{usual:>17,.0f}{load / (PUBLISHED * cores):>10.1f}×"
        )
    print(f"\npublished: speed of the loader divided by {PUBLISHED} img/s per core, that of the published code")


if __name__ == "__main__":
    run_cli(main)
