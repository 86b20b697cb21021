"""Measures speed and memory of a step of the header only: forward, backward and SGD; replicated and sharded.

    python benchmarks/header.py [--classes 85742] [--ranks 1] [--batch 128] [--embedding-size 128] [--sample-rate 1]
    python benchmarks/header.py --formula                    (only the table of memory by formula, for docs/scaling.md)

Each variant runs in its own processes, on GPUs if there are any, else with one thread each. Memory is the growth of a
rank's peak from before the header is built, printed with the value of the formula. Embeddings and labels are random.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

from utils.distributed.collectives import all_reduce_mean
from utils.distributed.data_parallel import average_gradients, wrap_ddp
from utils.distributed.process_group import (
    LAUNCHER_FOLDER_ENV,
    LOOPBACK_ENVIRONMENT,
    World,
    init_distributed,
    to_device,
)
from utils.errors import UserError, run_cli
from utils.losses.arcface import ArcFace, ArcFaceMargin
from utils.losses.partial_fc import ShardedHeader

S, M = 64.0, 0.5
GIB = 1 << 30


def step_seconds(variant: str, args: argparse.Namespace, classes: int, world: World) -> list[float]:
    """Returns the seconds of each measured step of a new header."""
    if variant == "replicated":
        header = wrap_ddp(to_device(ArcFace(args.embedding_size, classes, S, M), world), world)
    else:
        header = ShardedHeader(args.embedding_size, classes, ArcFaceMargin(M), S, world, args.sample_rate)
    optimizer = torch.optim.SGD(header.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    generator = torch.Generator().manual_seed(world.rank)
    embeddings = torch.randn(args.batch, args.embedding_size, generator=generator).to(world.device).requires_grad_()
    labels = torch.randint(0, classes, (args.batch,), generator=generator).to(world.device)
    times = []
    for _ in range(args.steps + 2):
        start = time.perf_counter()
        output = header(embeddings, labels)  # logits, or the loss itself
        (F.cross_entropy(output, labels) if variant == "replicated" else output).backward()
        del output
        average_gradients(header)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        embeddings.grad = None
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times[2:]  # the first two are warm-up


def measure(rank: int, variant: str, args: argparse.Namespace, folder: Path, results: mp.SimpleQueue) -> None:
    """Puts (images per second, bytes of memory), averaged over ranks, in the queue. Run in a process per rank."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": args.ranks, "GROUP_WORLD_SIZE": 1}
    os.environ.update({name: str(value) for name, value in variables.items()})
    os.environ.update(LOOPBACK_ENVIRONMENT | {LAUNCHER_FOLDER_ENV: str(folder)})
    torch.set_num_threads(1)
    with init_distributed() as world:
        step_seconds(variant, args, args.ranks, world)  # libraries allocate memory at their first use
        before = peak_bytes(world)
        rate = args.batch * args.ranks / median(step_seconds(variant, args, args.classes, world))
        result = all_reduce_mean(torch.tensor([rate, peak_bytes(world) - before], device=world.device), world)
        if world.is_main:
            results.put(result.tolist())


def peak_bytes(world: World) -> int:
    """Returns the peak memory of this process on its device."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def header_tensor_bytes(
    header: str, size: int, classes: int, processes: int, batch: int, sample_rate: float = 1.0
) -> float:
    """Returns the bytes of a process's header at the peak of a step with SGD, by the formula of docs/scaling.md.

    header: replicated or sharded. size: embedding size. batch: images per process.
    """
    if header == "replicated":
        kernel, logits = 4.0 * size * classes, 4.0 * batch * classes
        return 2 * kernel + max(4 * logits + kernel, 5 * kernel)
    columns, images = -(-classes // processes), processes * batch
    kernel, sampled, logits = (4.0 * columns * n for n in (size, size * sample_rate, images * sample_rate))
    temporary = max(logits + 2 * sampled, 3 * sampled)
    if sample_rate < 1:  # the gradient has all columns
        temporary = max(temporary, kernel + 3 * sampled)
    return 2 * kernel + temporary


def formula_table() -> str:
    """Returns the table of GiB per rank by formula, for 128 images per rank."""
    lines = [f"{'classes':>12}{'size':>6}{'ranks':>7}{'replicated':>12}{'sharded':>10}{'sharded, 0.1':>14}"]
    for classes in (85_742, 1_000_000, 10_000_000):
        for size in (128, 256):
            for ranks in (1, 4, 8, 64):
                variants = [("replicated", 1.0), ("sharded", 1.0), ("sharded", 0.1)]
                needed = [
                    header_tensor_bytes(variant, size, classes, ranks, 128, rate) / GIB for variant, rate in variants
                ]
                lines.append(f"{classes:>12,}{size:>6}{ranks:>7}{needed[0]:>12.2f}{needed[1]:>10.2f}{needed[2]:>14.2f}")
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in {"classes": 85742, "ranks": 1, "batch": 128, "embedding-size": 128, "steps": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="(%(default)s)")
    parser.add_argument("--sample-rate", type=float, default=1.0, help="of the sharded header (%(default)s)")
    parser.add_argument(
        "--variants", nargs="+", choices=["replicated", "sharded"], default=["replicated", "sharded"], help="(both)"
    )
    parser.add_argument("--formula", action="store_true", help="print only the table of memory by formula")
    args = parser.parse_args()
    if min(args.classes, args.ranks, args.batch, args.embedding_size, args.steps) < 1:
        raise UserError("--classes, --ranks, --batch, --embedding-size and --steps: should be at least 1")
    if not 0 < args.sample_rate <= 1 or args.classes < args.ranks:
        raise UserError("--sample-rate: should be above 0 and at most 1; --classes: should not be fewer than --ranks")
    if torch.cuda.is_available() and args.ranks > torch.cuda.device_count():
        raise UserError(f"--ranks {args.ranks}: this machine has {torch.cuda.device_count()} GPUs")
    if args.formula:
        print(formula_table())
        return
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    print(f"{args.classes:,} classes, embeddings of {args.embedding_size}, {args.ranks} × {args.batch} images, {name}")
    for variant in args.variants:
        results = mp.get_context("spawn").SimpleQueue()
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(measure, (variant, args, Path(folder), results), nprocs=args.ranks)
        rate, used = results.get()
        sizes = (args.embedding_size, args.classes, args.ranks, args.batch, args.sample_rate)
        needed = header_tensor_bytes(variant, *sizes)
        print(f"{variant:>8}{rate:>10.1f} img/s{used / GIB:>8.2f} GiB a rank, by formula {needed / GIB:.2f}")


if __name__ == "__main__":
    run_cli(main)
