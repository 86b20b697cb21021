"""A whole verification run beside PyTorch in batches of ten, as published.

    python benchmarks/evaluation.py --bin data/faces_emore/lfw.bin --weights output/PocketNetS128/295672backbone.pth
        --config config/config_PocketNetS128.py

Ours: load the set, embed every image and its mirror image, all measures. Beside it the embeddings alone of --sample
images by PyTorch: float32, contiguous, ten at a time, half of them before our run and half after it.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

if not __package__:  # run as a script: the modules are found from the project's folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from backbones import build_backbone
from config import CommandParser, add_config_arguments, load_config
from eval.inference.embedding import embed, make_runtime
from eval.inputs.sets import bin_set
from eval.scoring import measure
from utils.checkpoints.weights import load_weights
from utils.datasets.transforms import normalise
from utils.distributed.process_group import init_distributed, to_device
from utils.errors import run_cli


@torch.no_grad()
def eager(backbone: nn.Module, images: np.ndarray) -> float:
    """Seconds for images and mirror images (n, 112, 112, 3)."""
    start = time.perf_counter()
    for first in range(0, len(images), 10):
        pixels = normalise(torch.from_numpy(images[first : first + 10])).contiguous()
        backbone(pixels)
        backbone(pixels.flip(3))
    return time.perf_counter() - start


def main() -> None:
    parser = CommandParser(__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--bin", type=Path, required=True, help="a verification set, such as lfw.bin")
    parser.add_argument("--weights", type=Path, required=True, help="a checkpoint")
    parser.add_argument("--sample", type=int, default=600, help="images of PyTorch's turn (%(default)s)")
    args = parser.parse()
    config = load_config(args.config, args.overrides)
    with init_distributed(device="cpu") as world:
        plain = build_backbone(config).eval()
        load_weights(plain, args.weights)
        sample = bin_set(args.bin, world).images[: args.sample]
        eager(plain, sample[:20])
        by_torch = eager(plain, sample[: len(sample) // 2])

        start = time.perf_counter()
        held = bin_set(args.bin, world)
        loaded = time.perf_counter()
        runtime = make_runtime(to_device(plain, world), config, world, len(held.images))
        converted = time.perf_counter()
        direct, flipped = embed(runtime, held.images)
        embedded = time.perf_counter()
        score = measure(direct, flipped, held.pairs, held.issame)
        end = time.perf_counter()

        plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        by_torch += eager(plain, sample[len(sample) // 2 :])
    images = held.pairs.size  # as published each is embedded as often as it is met
    print(
        f"{args.bin.name}: {len(held.pairs)} pairs, {len(held.images)} distinct images, "
        f"{torch.get_num_threads()} threads"
    )
    print(
        f"load {loaded - start:.2f} s, prepare {type(runtime).__name__} {converted - loaded:.2f} s, "
        f"embed {embedded - converted:.2f} s, measure {end - embedded:.2f} s: {end - start:.2f} s"
    )
    print(f"accuracy {score.accuracy:.5f} ± {score.std:.5f}")
    ours, theirs = images / (end - start), len(sample) / by_torch
    print(f"images of pairs a second, each both ways: {ours:.0f}; PyTorch: {theirs:.0f}; ratio {ours / theirs:.1f}")
    network = len(held.images) / (embedded - converted)
    print(f"of the network alone, distinct images: {network:.0f}; ratio {network / theirs:.1f}")


if __name__ == "__main__":
    run_cli(main)
