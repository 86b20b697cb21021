"""Command-line options for the user's own photos."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from config import path_argument
from data.alignment.opener import AligningOpener
from eval.inputs.folder_pairs import make_pairs
from eval.inputs.pairs import PhotoPairs, read_pairs
from utils.errors import UserError
from utils.filesystem import path_exists


def add_photo_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --pairs, --images, --folder, --n-pairs, --seed, --align and --detector to the parser."""
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
    parser.add_argument("--align", action="store_true", help="find and align the face of each of your photos first")
    parser.add_argument(
        "--detector", type=path_argument, metavar="FILE", help="YuNet as ONNX file for --align (default: BlazeFace)"
    )


def load_photo_pairs(args: argparse.Namespace) -> PhotoPairs | None:
    """Returns the pairs that the options name, or None without --pairs and --folder. Raises UserError."""
    if args.pairs and args.folder:
        raise UserError("--pairs and --folder: take one of them")
    if args.images and not args.pairs:
        raise UserError("--images: only valid with --pairs")
    if args.n_pairs < 20 or args.seed < 0:
        raise UserError(f"--n-pairs {args.n_pairs} --seed {args.seed}: should be at least 20 and at least 0")
    if (args.align or args.detector) and not (args.pairs or args.folder):
        raise UserError("--align: only valid with --pairs or --folder")
    if args.folder:
        pairs = make_pairs(args.folder, args.n_pairs, args.seed)
    elif args.pairs:
        pairs = read_pairs(args.pairs, args.images)
    else:
        return None
    return pairs.aligned(AligningOpener(args.detector)) if args.align or args.detector else pairs


@contextmanager
def keep_pairs_readable(args: argparse.Namespace, photos: PhotoPairs | None) -> Iterator[None]:
    """Context manager in which processes started with sys.argv can read the same pairs as this one.

    Pairs from a pipe can be read only once. They are written to a temporary file, which sys.argv names meanwhile.
    """
    if photos is None or not args.pairs or path_exists(args.pairs.is_file):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "pairs.csv")  # the name that read_pairs gives to pairs from a pipe
        photos.write_csv(copy)
        original = sys.argv[:]
        sys.argv += ["--pairs", str(copy)]  # the last --pairs counts
        try:
            yield
        finally:
            sys.argv[:] = original
