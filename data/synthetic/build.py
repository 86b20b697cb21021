"""What the programs that make data sets share: a folder made whole or not at all, drawing on all cores, image files."""

import argparse
import json
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from utils.errors import UserError

Drawing = Callable[..., list[bytes]]  # a function of a module, which other processes can find


def check_between(option: str, value: int, low: int, high: int) -> None:
    """Raise UserError for an argument that is too small or too large."""
    if not low <= value <= high:
        raise UserError(f"{option} {value}: should be from {low} to {high}")


def parse_arguments(parser: argparse.ArgumentParser, seed: int) -> argparse.Namespace:
    """The command line, with the options that every such program has behind its own."""
    parser.add_argument("--seed", type=int, default=seed, help="another seed, other people (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--force", action="store_true", help="make it anew where it is there already")
    args = parser.parse_args()
    check_between("--workers", args.workers, 1, 256)
    return args


def make_folder(out: Path, made: Mapping[str, object], write: Callable[[Path], None], force: bool) -> bool:
    """Have `write` fill a folder that becomes `out`, and return True; False where the same stands there already.

    `made` tells all that the content depends on; it is kept in made.json.
    """
    try:
        if _stands(out, made, force):
            return False
        out.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of its own until all is there: whoever interrupts this finds nothing half made.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".making-", ignore_cleanup_errors=True) as temporary:
            new = Path(temporary, "new")
            new.mkdir()
            write(new)
            (new / "made.json").write_text(json.dumps(made, indent=1) + "\n")
            if out.exists():
                out.rename(Path(temporary, "old"))
            new.rename(out)
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}; choose another --out") from error
    return True


def _stands(out: Path, made: Mapping[str, object], force: bool) -> bool:
    """Tell whether what should be made stands in `out`; raises UserError where something else does."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / "made.json").read_text())
    except (OSError, ValueError):
        found = None
    # Another program's set answers to other keys: even --force does not replace it.
    if not isinstance(found, dict) or found.keys() != made.keys():
        raise UserError(f"{out}: holds something else than this makes; choose another --out")
    if force:
        return False
    if found != made:
        differing = ", ".join(f"{key} {found[key]}, not {made[key]}" for key in made if found[key] != made[key])
        raise UserError(f"{out}: made otherwise ({differing}); --force makes it anew")
    return True


def draw_all(draw: Drawing, jobs: Iterable[tuple[Any, ...]], workers: int, bar: tqdm) -> Iterator[list[bytes]]:
    """What `draw` makes of each job's arguments, job by job, in that many processes."""
    if workers == 1:
        for photos in starmap(draw, jobs):
            bar.update(len(photos))
            yield photos
        return
    # spawn: the same on every system, and safe with OpenCV's threads
    with multiprocessing.get_context("spawn").Pool(workers, _start_worker) as pool:
        for photos in pool.imap(partial(_do_job, draw), jobs):
            bar.update(len(photos))
            yield photos


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    cv2.setNumThreads(1)  # the cores have a process each


def _do_job(draw: Drawing, job: tuple[Any, ...]) -> list[bytes]:
    return draw(*job)


def encode(kind: str, image: np.ndarray, *parameters: int) -> bytes:
    """An RGB image as the bytes of a file of that kind, ".jpg" or ".png"."""
    return cv2.imencode(kind, image[..., ::-1], parameters)[1].tobytes()


def decode(photo: bytes) -> np.ndarray:
    """The RGB image of such a file."""
    return np.asarray(cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR_RGB))
