"""Loading speed beside pure JPEG decoding and beside the usual per-image float pipeline, in one run.

    python benchmarks/loader.py [--rec FOLDER] [--workers 0,1,2]

Each figure is the median of several passes taken in turn, in images a second.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: the modules are found from the project's folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from utils.datasets.face_dataset import FaceDataset
from utils.datasets.sampler import EpochSampler
from utils.datasets.shared_loader import Loader
from utils.errors import run_cli

PUBLISHED = 1840  # img/s a core of the published loader, in batches, on a core of this kind
BATCH = 128


class PerImageFloat(Dataset):
    """The usual pipeline: each image decoded, turned, mirrored, scaled to float and laid out (C, H, W) by itself."""

    def __init__(self, dataset: FaceDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.dataset[index]
        if torch.rand(()) < 0.5:
            image = image[:, ::-1]
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div(255).sub(0.5).div(0.5), label


def decoding(dataset: FaceDataset, threads: int) -> Callable[[], int]:
    """Decoding alone, of payloads in memory, in threads (OpenCV releases Python's lock)."""
    payloads = [np.frombuffer(dataset.reader.read_image(int(key))[1], np.uint8) for key in dataset.keys]

    def decode(part: list[np.ndarray]) -> None:
        for payload in part:
            cv2.imdecode(payload, cv2.IMREAD_COLOR_RGB)

    def measure() -> int:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, [payloads[i::threads] for i in range(threads)]))
        return len(payloads)

    return measure


def loading(dataset: FaceDataset, workers: int) -> Callable[[], int]:
    """An epoch of our loader; the workers live on from pass to pass, as they do in training."""
    loader = Loader(dataset, EpochSampler(len(dataset), BATCH), workers)
    epochs = iter(range(1_000_000))
    return lambda: sum(len(batch.images) for batch in loader.epoch(next(epochs)))


def per_image(dataset: FaceDataset, workers: int) -> Callable[[], int]:
    """A pass over a part of the data through PerImageFloat."""
    part = torch.utils.data.Subset(PerImageFloat(dataset), range(min(len(dataset), 10 * BATCH)))
    loader = DataLoader(part, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return lambda: sum(len(images) for images, _ in loader)


def rates(measures: list[Callable[[], int]], passes: int) -> list[float]:
    """Median img/s of each, the measures taken in turn so that a machine that drifts treats all alike."""
    taken: list[list[float]] = [[] for _ in measures]
    for turn in range(passes + 1):
        for measure, values in zip(measures, taken, strict=True):
            started = time.perf_counter()
            images = measure()
            if turn:  # the first pass warms up
                values.append(images / (time.perf_counter() - started))
    return [median(values) for values in taken]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rec", default="data/faces_demo", help="folder of train.rec (%(default)s)")
    parser.add_argument("--workers", default="0,1,2", help="numbers of worker processes (%(default)s)")
    parser.add_argument("--passes", type=int, default=7, help="passes of each (%(default)s)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    dataset = FaceDataset(args.rec)
    print(f"{len(dataset)} images of {args.rec}, {os.cpu_count()} cores, batches of {BATCH}, {args.passes} passes\n")
    print(" workers  cores  decoding alone    loader  of decoding  per-image float  published")
    for workers in map(int, args.workers.split(",")):
        cores = max(1, workers)
        os.sched_setaffinity(0, range(min(cores, os.cpu_count() or 1)))  # the training process shares these cores
        decode, load, usual = rates(
            [decoding(dataset, cores), loading(dataset, workers), per_image(dataset, workers)], args.passes
        )
        print(
            f"{workers:>8}{cores:>7}{decode:>16,.0f}{load:>10,.0f}{load / decode:>13.2f}{usual:>17,.0f}"
            f"{load / (PUBLISHED * cores):>10.1f}×"
        )
    print(f"\npublished: the loader over {PUBLISHED} img/s a core, the published code's on a core of this kind")


if __name__ == "__main__":
    run_cli(main)
