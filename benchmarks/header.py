"""A step of the header alone, forward, backward and SGD: images a second and memory, whole and split over processes.

    python benchmarks/header.py [--classes 85742] [--ranks 1] [--batch 128] [--embedding-size 128] [--sample-rate 1]
    python benchmarks/header.py --reckon                             (the memory by formula alone, for docs/scaling.md)

Each way runs in processes of its own, on GPUs where there are any, else with one thread each. Memory is what a rank's
peak grows by from before the header is built; beside it what the formula says. Embeddings and labels are random.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: the modules are found from the project's folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

from utils.distributed.collectives import all_reduce_mean
from utils.distributed.process_group import LOOPBACK_ENVIRONMENT, World, init_distributed, to_device, wrap_ddp
from utils.doctor.step_memory import header_tensor_bytes
from utils.errors import EXIT_CODE_FILE, UserError, run_cli
from utils.losses.arcface import ArcFace
from utils.losses.partial_fc import ShardedArcFace

S, M = 64.0, 0.5
GIB = 1 << 30


def seconds(way: str, args: argparse.Namespace, classes: int, world: World) -> list[float]:
    """What each step of a new header takes."""
    if way == "whole":
        header = wrap_ddp(to_device(ArcFace(args.embedding_size, classes, S, M), world), world)
    else:
        header = ShardedArcFace(args.embedding_size, classes, S, M, world, args.sample_rate)
    optimizer = torch.optim.SGD(header.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    generator = torch.Generator().manual_seed(world.rank)
    embeddings = torch.randn(args.batch, args.embedding_size, generator=generator).to(world.device).requires_grad_()
    labels = torch.randint(0, classes, (args.batch,), generator=generator).to(world.device)
    taken = []
    for _ in range(args.steps + 2):
        start = time.perf_counter()
        made = header(embeddings, labels)  # logits, or the loss itself
        (F.cross_entropy(made, labels) if way == "whole" else made).backward()
        del made
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        embeddings.grad = None
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return taken[2:]  # the first two warm up


def measure(rank: int, way: str, args: argparse.Namespace, folder: Path, results: mp.SimpleQueue) -> None:
    """In a process of its own: puts (images a second, peak bytes), means over the ranks, in the queue."""
    of_process = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": args.ranks, "GROUP_WORLD_SIZE": 1}
    os.environ.update({name: str(value) for name, value in of_process.items()})
    os.environ.update(LOOPBACK_ENVIRONMENT | {EXIT_CODE_FILE: str(folder / "code")})
    torch.set_num_threads(1)
    with init_distributed() as world:
        seconds(way, args, args.ranks, world)  # what libraries load and reserve at their first use is not the header's
        before = peak(world)
        rate = args.batch * args.ranks / median(seconds(way, args, args.classes, world))
        found = all_reduce_mean(torch.tensor([rate, peak(world) - before], device=world.device), world)
        if world.is_main:
            results.put(found.tolist())


def peak(world: World) -> int:
    """The most bytes that this process has held, on its device."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def table() -> str:
    """GiB a rank by formula, for 128 images a rank."""
    lines = [f"{'classes':>12}{'size':>6}{'ranks':>7}{'whole':>10}{'split':>10}{'split, 0.1':>12}"]
    for classes in (85_742, 1_000_000, 10_000_000):
        for size in (128, 256):
            for ranks in (1, 4, 8, 64):
                ways = [("whole", 1.0), ("split", 1.0), ("split", 0.1)]
                needed = [header_tensor_bytes(way, size, classes, ranks, 128, rate) / GIB for way, rate in ways]
                lines.append(f"{classes:>12,}{size:>6}{ranks:>7}{needed[0]:>10.2f}{needed[1]:>10.2f}{needed[2]:>12.2f}")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in {"classes": 85742, "ranks": 1, "batch": 128, "embedding-size": 128, "steps": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="(%(default)s)")
    parser.add_argument("--sample-rate", type=float, default=1.0, help="of the split header (%(default)s)")
    parser.add_argument("--ways", nargs="+", choices=["whole", "split"], default=["whole", "split"], help="(both)")
    parser.add_argument("--reckon", action="store_true", help="print the memory by formula, measure nothing")
    args = parser.parse_args()
    if min(args.classes, args.ranks, args.batch, args.embedding_size, args.steps) < 1:
        raise UserError("--classes, --ranks, --batch, --embedding-size and --steps: should be at least 1")
    if not 0 < args.sample_rate <= 1 or args.classes < args.ranks:
        raise UserError("--sample-rate: should be above 0 and at most 1; --classes: should not be fewer than --ranks")
    if torch.cuda.is_available() and args.ranks > torch.cuda.device_count():
        raise UserError(f"--ranks {args.ranks}: this machine has {torch.cuda.device_count()} GPUs")
    if args.reckon:
        print(table())
        return
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    print(f"{args.classes:,} classes, embeddings of {args.embedding_size}, {args.ranks} × {args.batch} images, {name}")
    for way in args.ways:
        results = mp.get_context("spawn").SimpleQueue()
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(measure, (way, args, Path(folder), results), nprocs=args.ranks)
        rate, used = results.get()
        sizes = (args.embedding_size, args.classes, args.ranks, args.batch, args.sample_rate)
        needed = header_tensor_bytes(way, *sizes)
        print(f"{way:>8}{rate:>10.1f} img/s{used / GIB:>8.2f} GiB a rank, by formula {needed / GIB:.2f}")


if __name__ == "__main__":
    run_cli(main)
