"""The options of a command that name a person's own photos."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from config import typed_path
from eval.inputs.folder_pairs import make_pairs
from eval.inputs.pairs import PhotoPairs, read_pairs
from utils.errors import UserError
from utils.filesystem import path_exists


def add_photo_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name a person's own photos."""
    parser.add_argument(
        "--pairs",
        type=typed_path,
        metavar="FILE",
        help="your own pairs: LFW style, or path,path,same; also from a pipe",
    )
    parser.add_argument("--images", type=typed_path, metavar="DIR", help="the folder that the photos of --pairs lie in")
    parser.add_argument(
        "--folder", type=typed_path, metavar="DIR", help="make pairs of the photos in it, a folder a person"
    )
    parser.add_argument("--n-pairs", type=int, default=6000, help="how many pairs --folder makes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs that --folder makes (%(default)s)")


def photo_pairs(args: argparse.Namespace) -> PhotoPairs | None:
    """The pairs that those options name; None where they name none."""
    if args.pairs and args.folder:
        raise UserError("--pairs and --folder: take one of them")
    if args.images and not args.pairs:
        raise UserError("--images: goes with --pairs")
    if args.n_pairs < 20 or args.seed < 0:
        raise UserError(f"--n-pairs {args.n_pairs} --seed {args.seed}: should be from 20 and from 0")
    if args.folder:
        return make_pairs(args.folder, args.n_pairs, args.seed)
    return read_pairs(args.pairs, args.images) if args.pairs else None


@contextmanager
def readable_again(args: argparse.Namespace, photos: PhotoPairs | None) -> Iterator[None]:
    """For the time of the block, let processes that are started with this command's arguments read the same pairs: what
    came from a pipe is gone, and stands in a temporary file that the arguments name."""
    if photos is None or not args.pairs or path_exists(args.pairs.is_file):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, f"{photos.name}.csv")
        photos.write(copy)
        before = sys.argv[:]
        sys.argv += ["--pairs", str(copy)]  # the last one counts
        try:
            yield
        finally:
            sys.argv[:] = before
