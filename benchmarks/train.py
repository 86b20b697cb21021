"""Measures training: the engine at several settings against a plain loop, which does what the published code does.

    python benchmarks/train.py [--config FILE] [--batch N] [--setting "field=value …"] [--teacher NAME] [--json FILE]

Every variant is a process of its own, which trains with the run's own loop, on images made for the purpose (or those in
rec=FOLDER). They take turns; the figures are medians over the turns. "wait" is the part of the time in which training
waits for its images. "floor" is the part of the time that a step would take at least, in float32 and with operations
that are not merged; benchmarks/training/floors.py says how it is counted.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from datetime import date
from itertools import islice
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from backbones.build import build_backbone
from benchmarks.measures import describe_machine
from benchmarks.training.floors import Ceilings, Work, count_work, floor_seconds, measure_ceilings
from benchmarks.training.kernels import Profile
from benchmarks.training.records import write_records
from benchmarks.training.variants import PROFILED_STEPS, Variant, VariantProcess
from config import CommandParser, load_config
from utils.distributed.process_group import select_device
from utils.errors import run_cli
from utils.filesystem import write_atomic

CONFIGS = ["config/config_PocketNetS128.py"]
SETTINGS = {
    "cpu": ["", "compile=True"],
    "cuda": ["", "precision=tf32", "precision=bf16", "precision=bf16 compile=True"],
}
BATCHES = {"cpu": [32], "cuda": [128, 512]}
WARM_UP = 3  # steps of each variant before its first turn, besides the very first one
CLASSES = 85_742  # as MS1MV2
KINDS = 12  # rows of the table of kinds of operations
HEADINGS = "variant                                    batch    img/s  × plain   wait  memory  floor   start"


@dataclass(frozen=True)
class Row:
    """Figures of one variant."""

    network: str
    variant: str
    batch: int
    images_per_second: float
    times_plain: float
    waited: float  # part of the time
    peak_memory: int  # bytes
    floor: float  # part of the time
    start_seconds: float  # to the end of the first step
    profile: Profile


def main() -> None:
    """Runs the benchmark and prints its tables."""
    args = parse_arguments()
    device = select_device(args.device)
    ceilings = measure_ceilings(device)
    print(
        f"{describe_machine(device)}: {ceilings.multiply_adds / 1e9:,.0f} G multiply-adds/s of a matrix product in "
        f"float32, {ceilings.bytes / 1e9:,.1f} GB/s of a copy. Medians of {args.turns} turns of {args.steps} steps."
    )
    batches = args.batch or BATCHES[device.type]
    variants = make_variants(args.setting or SETTINGS[device.type], args.teacher)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        images = max(batches) * (args.turns * args.steps + WARM_UP + PROFILED_STEPS + 4)
        write_records(Path(folder), images, CLASSES)
        data = [f"rec={folder}", "num_classes=0", "num_image=0", f"device={args.device}"]
        for config_file in args.config:
            work = count_work(build_backbone(load_config(config_file)))
            print(f"\n{Path(config_file).stem}: {describe_work(work, ceilings)}\n\n{HEADINGS}", flush=True)
            for batch in batches:
                overrides = [*data, f"batch_size={batch}", *args.changes]
                rows += measure(variants, config_file, overrides, batch, floor_seconds(work, ceilings), args)
    if args.json:
        report = {
            "date": date.today().isoformat(),
            "machine": describe_machine(device),
            "ceilings": asdict(ceilings),
            "rows": [asdict(row) for row in rows],
        }
        write_atomic(args.json, lambda file: file.write(json.dumps(report, indent=1).encode()))


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = CommandParser(__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=CONFIGS, metavar="FILE", help="networks (%(default)s)")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="batch sizes")
    parser.add_argument("--setting", action="append", metavar="FIELDS", help="of the engine: field=value …; repeatable")
    parser.add_argument("--teacher", metavar="NAME", help="network to distil from as well, such as iresnet100")
    parser.add_argument("--turns", type=int, default=5, help="turns of each variant (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the figures")
    parser.add_argument("changes", nargs="*", metavar="field=value", help="config field of every variant")
    return parser.parse()


def make_variants(settings: Sequence[str], teacher: str | None) -> list[Variant]:
    """Returns the plain loop and the engine at each setting, then the same with a teacher."""
    engine = [Variant(f"engine {text}".strip(), settings=tuple(text.split())) for text in settings]
    variants = [Variant("plain loop", is_plain=True), *engine]
    if not teacher:
        return variants
    return [*variants, *(replace(v, name=f"{v.name}, {teacher} teaches", teacher=teacher) for v in variants)]


def measure(
    variants: list[Variant], config_file: str, overrides: list[str], batch: int, floor: float, args: argparse.Namespace
) -> list[Row]:
    """Measures variants in turn, prints and returns their figures. floor: least seconds for one image."""
    with ExitStack() as stack:
        processes = []
        for variant in variants:  # one after the other: their start is measured too
            processes.append(stack.enter_context(closing(VariantProcess(variant, config_file, overrides))))
            processes[-1].run(WARM_UP)
        turns = [[process.run(args.steps) for process in processes] for _ in range(args.turns)]
        profiles = [process.profile() for process in processes]
    rows: list[Row] = []
    plain = 0.0  # images a second of the plain loop with the same teacher
    for i, variant in enumerate(variants):
        seconds = median(turn[i].seconds for turn in turns)
        plain = batch / seconds if variant.is_plain else plain
        rows.append(
            Row(
                Path(config_file).stem, variant.name, batch, batch / seconds, batch / seconds / plain,
                median(turn[i].waited for turn in turns) / seconds, turns[-1][i].peak_memory, floor * batch / seconds,
                processes[i].start_seconds, profiles[i],
            )
        )  # fmt: skip
        print(format_row(rows[-1]), flush=True)
    print_profiles(rows)
    return rows


def format_row(row: Row) -> str:
    """Returns a line of the table under HEADINGS."""
    return (
        f"{row.variant:42}{row.batch:>6}{row.images_per_second:>9,.1f}{row.times_plain:>8.2f}×{row.waited:>7.1%}"
        f"{row.peak_memory / (1 << 30):>6.2f}G{row.floor:>7.0%}{row.start_seconds:>7.0f} s"
    )


def print_profiles(rows: Sequence[Row]) -> None:
    """Prints the share of each kind of operation in the time of all, the largest first."""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.profile))
    largest = sorted(kinds, key=lambda kind: -max(row.profile.get(kind, 0) for row in rows))
    print(f"\n{'share of the time of a step':34}" + "".join(f"{chr(ord('a') + i):>9}" for i in range(len(rows))))
    for kind in islice(largest, KINDS):
        print(f"{kind:34}" + "".join(f"{row.profile.get(kind, 0):>9.1%}" for row in rows))
    print("; ".join(f"{chr(ord('a') + i)}: {row.variant}" for i, row in enumerate(rows)), flush=True)


def describe_work(work: list[Work], ceilings: Ceilings) -> str:
    """Returns the work of a training step on one image, and the speeds that it allows."""
    multiply_adds, moved = sum(w.multiply_adds for w in work), sum(w.bytes for w in work)
    return (
        f"{multiply_adds / 1e6:,.0f} M multiply-adds, {moved / 1e6:,.0f} MB and {len(work):,} operations an image; "
        f"at most {ceilings.multiply_adds / multiply_adds:,.0f} img/s by arithmetic, {ceilings.bytes / moved:,.0f} by "
        f"traffic, {1 / floor_seconds(work, ceilings):,.0f} by each operation's larger one"
    )


if __name__ == "__main__":
    run_cli(main)
