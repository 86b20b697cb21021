"""Command-line options for the user's own photos."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from config import path_argument
from eval.inputs.folder_pairs import make_pairs
from eval.inputs.pairs import PhotoPairs, read_pairs
from utils.errors import UserError
from utils.filesystem import path_exists


def add_photo_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --pairs, --images, --folder, --n-pairs and --seed to the parser."""
    parser.add_argument(
        "--pairs",
        type=path_argument,
        metavar="FILE",
        help="your own pairs: LFW style, or path,path,same; also from a pipe",
    )
    parser.add_argument("--images", type=path_argument, metavar="DIR", help="the folder of the photos of --pairs")
    parser.add_argument(
        "--folder", type=path_argument, metavar="DIR", help="make pairs of the photos in DIR, one folder per person"
    )
    parser.add_argument("--n-pairs", type=int, default=6000, help="number of pairs for --folder (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed for --folder (%(default)s)")


def load_photo_pairs(args: argparse.Namespace) -> PhotoPairs | None:
    """Returns the pairs that the options name, or None without --pairs and --folder. Raises UserError."""
    if args.pairs and args.folder:
        raise UserError("--pairs and --folder: take one of them")
    if args.images and not args.pairs:
        raise UserError("--images: only valid with --pairs")
    if args.n_pairs < 20 or args.seed < 0:
        raise UserError(f"--n-pairs {args.n_pairs} --seed {args.seed}: should be at least 20 and at least 0")
    if args.folder:
        return make_pairs(args.folder, args.n_pairs, args.seed)
    return read_pairs(args.pairs, args.images) if args.pairs else None


@contextmanager
def keep_pairs_readable(args: argparse.Namespace, photos: PhotoPairs | None) -> Iterator[None]:
    """Context manager in which processes started with sys.argv can read the same pairs as this one.

    Pairs from a pipe can be read only once. They are written to a temporary file, which sys.argv names meanwhile.
    """
    if photos is None or not args.pairs or path_exists(args.pairs.is_file):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, f"{photos.name}.csv")
        photos.write_csv(copy)
        original = sys.argv[:]
        sys.argv += ["--pairs", str(copy)]  # the last --pairs counts
        try:
            yield
        finally:
            sys.argv[:] = original
