"""Measures the evaluation of a verification set, and PyTorch in batches of ten as in the published code.

    python benchmarks/evaluation.py --bin data/faces_emore/lfw.bin --weights output/PocketNetS128/295672backbone.pth
        --config config/config_PocketNetS128.py

The project's run loads the set, embeds every image and its horizontal flip, and computes all measures. For comparison
PyTorch embeds --sample images in float32, contiguous, ten at a time: half of them before that run and half after it.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from backbones.build import build_backbone
from config import CommandParser, add_config_arguments, load_config
from eval.inference.embedding import embed, make_runtime
from eval.inputs.sets import load_bin_set
from eval.scoring import compute_score
from utils.checkpoints.weights import load_weights
from utils.datasets.transforms import normalise
from utils.distributed.process_group import init_distributed, to_device
from utils.errors import run_cli


@torch.no_grad()
def eager_seconds(backbone: nn.Module, images: np.ndarray) -> float:
    """Returns the seconds that PyTorch takes for (n, 112, 112, 3) uint8 images and their horizontal flips."""
    start = time.perf_counter()
    for first in range(0, len(images), 10):
        pixels = normalise(torch.from_numpy(images[first : first + 10])).contiguous()
        backbone(pixels)
        backbone(pixels.flip(3))
    return time.perf_counter() - start


def main() -> None:
    """Runs the benchmark and prints its results."""
    parser = CommandParser(__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--bin", type=Path, required=True, help="a verification set, such as lfw.bin")
    parser.add_argument("--weights", type=Path, required=True, help="a checkpoint")
    parser.add_argument("--sample", type=int, default=600, help="images that PyTorch embeds (%(default)s)")
    args = parser.parse()
    config = load_config(args.config, args.overrides)
    with init_distributed(device="cpu") as world:
        plain = build_backbone(config).eval()
        load_weights(plain, args.weights)
        sample = load_bin_set(args.bin, world).images[: args.sample]
        eager_seconds(plain, sample[:20])
        torch_seconds = eager_seconds(plain, sample[: len(sample) // 2])

        start = time.perf_counter()
        evaluation_set = load_bin_set(args.bin, world)
        loaded = time.perf_counter()
        runtime = make_runtime(to_device(plain, world), config, world, len(evaluation_set.images))
        converted = time.perf_counter()
        direct, flipped = embed(runtime, evaluation_set.images)
        embedded = time.perf_counter()
        score = compute_score(direct, flipped, evaluation_set.pairs, evaluation_set.issame)
        end = time.perf_counter()

        plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        torch_seconds += eager_seconds(plain, sample[len(sample) // 2 :])
    images = evaluation_set.pairs.size  # the published code embeds an image once per pair
    print(
        f"{args.bin.name}: {len(evaluation_set.pairs)} pairs, {len(evaluation_set.images)} distinct images, "
        f"{torch.get_num_threads()} threads"
    )
    print(
        f"load {loaded - start:.2f} s, prepare {type(runtime).__name__} {converted - loaded:.2f} s, "
        f"embed {embedded - converted:.2f} s, measure {end - embedded:.2f} s: {end - start:.2f} s"
    )
    print(f"accuracy {score.accuracy:.5f} ± {score.std:.5f}")
    project, eager = images / (end - start), len(sample) / torch_seconds
    print(f"images of pairs a second, with flips: {project:.0f}; PyTorch: {eager:.0f}; ratio {project / eager:.1f}")
    network = len(evaluation_set.images) / (embedded - converted)
    print(f"network only, distinct images a second: {network:.0f}; ratio {network / eager:.1f}")


if __name__ == "__main__":
    run_cli(main)
