"""Packs photos of people for training: python data/pack.py SRC OUT [--val 0.1]

Writes OUT with train.rec, train.idx and property in the layout of MS1MV2, and people.csv, which names the person of
each label. SRC is a folder with one folder per person, a .tar of WebDataset's form (KEY.jpg with KEY.cls or KEY.json)
or a folder of them, or a CSV of path,label. The photos are aligned faces of 112×112 pixels as JPEG, PNG, BMP or WebP;
their bytes are copied unchanged. --val holds people out of training and writes pairs of their photos to val.bin.
"""

import argparse
import shlex
import sys
from pathlib import Path

if not __package__:  # run as a script: put the repository first on the path, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.packing.names import write_names
from data.packing.sources import find_people
from data.packing.val_set import draw_val_pairs, split_people, write_val_set
from data.packing.writer import create_folder, write_training_set
from utils.errors import UserError, one_line, quantity, run_cli


def main() -> None:
    """Parses the command line and packs the photos."""
    parser = argparse.ArgumentParser(description="Pack aligned photos of people for training.")
    parser.add_argument(
        "source", type=Path, metavar="SRC", help="a folder with a folder per person, a .tar or a folder of them, a .csv"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("--val", type=float, default=0, help="fraction of the people to hold out (none)")
    parser.add_argument("--pairs", type=int, default=6000, help="verification pairs, at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the people and pairs (%(default)s)")
    args = parser.parse_args()
    if not 0 <= args.val < 1:
        raise UserError(f"--val {args.val}: should be a fraction of the people, at least 0 and less than 1")
    for option, value, least in (("--pairs", args.pairs, 20), ("--seed", args.seed, 0)):
        if value < least:
            raise UserError(f"{option} {value}: should be at least {least}")
    with create_folder(args.out) as folder:
        train, val = split_people(find_people(args.source), args.val, args.seed)
        pairs = draw_val_pairs(val, args.pairs, args.seed) if val else []
        write_training_set(folder, train)
        write_names(folder / "people.csv", train, val)
        if val:
            write_val_set(folder / "val.bin", pairs)
    print(f"{one_line(args.out)}: {quantity(sum(map(len, train.values())), 'photo')} of {len(train):,} people", end="")
    print(f"; val.bin: {len(pairs):,} pairs of {len(val):,} others" if val else "")
    verification = "val_targets=val" if val else "eval_step=0"
    fields = shlex.join([f"rec={args.out}", "num_classes=0", verification, f"output=output/{args.out.name}"])
    print(f"train with: ./train.sh {one_line(fields)}")


if __name__ == "__main__":
    run_cli(main)
