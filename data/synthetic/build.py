"""Shared by the programs that make datasets: atomic output folders, drawing on all cores, and image encoding."""

import argparse
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from utils.errors import UserError
from utils.temporary_folder import temporary_folder

DrawFunction = Callable[..., list[bytes]]  # must be a module-level function, which other processes can import


def check_between(option: str, value: int, low: int, high: int) -> None:
    """Raises UserError unless low <= value <= high; `option` is the command-line option to name."""
    if not low <= value <= high:
        raise UserError(f"{option} {value}: should be from {low} to {high}")


def parse_arguments(parser: argparse.ArgumentParser, seed: int) -> argparse.Namespace:
    """Adds the options that all these programs share, and parses the command line. `seed` is the default seed."""
    parser.add_argument("--seed", type=int, default=seed, help="random seed; another gives other people (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--force", action="store_true", help="make it again where it exists")
    args = parser.parse_args()
    check_between("--workers", args.workers, 1, 256)
    return args


def make_folder(out: Path, settings: Mapping[str, object], write: Callable[[Path], None], force: bool) -> bool:
    """Lets `write` fill a new folder, then renames it to `out`. An interrupted run leaves `out` as it was.

    `settings` holds everything that the content depends on, and is stored in made.json. Returns False without writing
    where `out` was made with the same settings and `force` is not given, else True. Raises UserError where `out` was
    made with other settings or by something else, or cannot be written.
    """
    try:
        if _is_up_to_date(out, settings, force):
            return False
        out.parent.mkdir(parents=True, exist_ok=True)
        # Write to a temporary folder, so that an interrupted run leaves no incomplete dataset.
        with temporary_folder(out.parent, ".making-") as temporary:
            new = temporary / "new"
            new.mkdir()
            write(new)
            (new / "made.json").write_text(json.dumps(settings, indent=1) + "\n")
            if out.exists():
                out.rename(temporary / "old")
            new.rename(out)
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}", fix="choose another --out") from error
    return True


def _is_up_to_date(out: Path, settings: Mapping[str, object], force: bool) -> bool:
    """Whether `out` was already made with these settings. Raises UserError where it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        stored = json.loads((out / "made.json").read_text())
    except (OSError, ValueError):
        stored = None
    # The dataset of another program has other settings: not even --force replaces it.
    if not isinstance(stored, dict) or stored.keys() != settings.keys():
        raise UserError(f"{out}: was not made by this program", fix="choose another --out")
    if force:
        return False
    if stored != settings:
        changed = ", ".join(
            f"{key} {stored[key]}, not {settings[key]}" for key in settings if stored[key] != settings[key]
        )
        raise UserError(f"{out}: was made with other settings ({changed})", fix="--force makes it again")
    return True


def draw_all(draw: DrawFunction, jobs: Iterable[tuple[Any, ...]], workers: int, bar: tqdm) -> Iterator[list[bytes]]:
    """Yields draw(*job) for each job in order, computed by `workers` processes. Advances the bar by image."""
    if workers == 1:
        for photos in starmap(draw, jobs):
            bar.update(len(photos))
            yield photos
        return
    # spawn: the same on every system, and safe with OpenCV's threads
    with multiprocessing.get_context("spawn").Pool(workers, _start_worker) as pool:
        for photos in pool.imap(partial(_run_job, draw), jobs):
            bar.update(len(photos))
            yield photos


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    cv2.setNumThreads(1)  # each core has a process of its own


def _run_job(draw: DrawFunction, job: tuple[Any, ...]) -> list[bytes]:
    return draw(*job)


def encode(suffix: str, image: np.ndarray, *parameters: int) -> bytes:
    """Encodes an RGB image (H, W, 3) as a file of the type ".jpg" or ".png". parameters: OpenCV's, as key, value."""
    return cv2.imencode(suffix, image[..., ::-1], parameters)[1].tobytes()


def decode(photo: bytes) -> np.ndarray:
    """Decodes an image file to RGB, (H, W, 3) uint8."""
    return np.asarray(cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR_RGB))
