"""Aligns all photos of a folder, in several processes, and goes on where an earlier alignment ended."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from data.alignment.detectors import open_detector
from data.alignment.record import JOURNAL, KILLED, Journal, PhotoRecord
from data.alignment.worker import Job, run_job, start_worker
from utils.datasets.people_folder import describe_left_out, suffix_of
from utils.datasets.photos import IMAGE_SUFFIXES
from utils.errors import UserError, one_line
from utils.filesystem import LOCK_FILE, ensure_writable_folder, path_exists, walk_files
from utils.logs.logger import log
from utils.logs.progress_bar import ProgressReporter

LOG = "align.log"
_AHEAD = 8  # photos that wait for each process

PoolStarter = Callable[[int], AbstractContextManager[ProcessPoolExecutor]]  # takes the number of photos in work


def check_folders(source: Path, out: Path) -> None:
    """Raises UserError if the source is no folder, or `out` is the source or holds files of something else."""
    if not path_exists(source.is_dir):
        raise UserError(f"{one_line(source)}: no such folder")
    if out.resolve() == source.resolve():
        raise UserError(f"{one_line(out)}: is the folder of the photos", fix="name another folder for the faces")
    ours = {LOG, LOCK_FILE}
    if path_exists(out.is_dir) and not (out / JOURNAL).exists() and {path.name for path in out.iterdir()} - ours:
        raise UserError(f"{one_line(out)}: is not empty, and no earlier alignment", fix="name another folder")


def list_photos(source: Path, out: Path) -> list[str]:
    """Returns the paths of all photos below a folder, relative to it, sorted. Leaves out hidden files and `out`.

    Follows links to folders. Logs files that are no photos and folders that cannot be read. Raises UserError if there
    are no photos.
    """
    photos: list[str] = []
    left_out: Counter[str] = Counter()

    def warn(error: OSError) -> None:
        log.warning(f"{error.filename}: {error.strerror}: left out")

    for path in walk_files(source, skip=[out], on_error=warn):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            photos.append(str(path.relative_to(source)))
        else:
            left_out[suffix_of(path)] += 1
    for note in describe_left_out(source, left_out):
        log.warning(note)
    if not photos:
        raise UserError(f"{one_line(source)}: no photos ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(photos)


def align_folder(
    source: Path, out: Path, photos: list[str], detector: Path | None, all_faces: bool, workers: int
) -> list[PhotoRecord]:
    """Aligns the photos, given relative to `source`, into `out`, and returns their records in order.

    detector: YuNet as ONNX file, or None for BlazeFace. Raises UserError, and OSError if a face cannot be written.
    """
    settings = {"detector": open_detector(detector).name, "all_faces": all_faces, "source": str(source.resolve())}
    journal = Journal(ensure_writable_folder(out), settings)
    targets = _targets(photos)
    left = [photo for photo in photos if not journal.is_done(photo, source / photo)]
    journal.keep({*photos} - {*left})
    if len(left) < len(photos):
        log.info(f"{out}: {len(photos) - len(left)} of {len(photos)} photos are aligned already")
    for folder in sorted({(out / targets[photo]).parent for photo in left}):
        folder.mkdir(parents=True, exist_ok=True)
    jobs = (Job(source, out, photo, targets[photo]) for photo in left)
    with journal, ProgressReporter(len(left), "Aligning", "photos") as progress:
        try:
            start_pool = partial(_start_pool, detector, all_faces, workers)
            for record in _run_jobs(jobs, workers * _AHEAD, start_pool):
                journal.add(record)
                progress.update()
        except KeyboardInterrupt:
            log.info(
                f"Interrupted: {len(journal.records)} of {len(photos)} photos are aligned; the same command goes on"
            )
            raise
    return [journal.records[photo] for photo in photos]


def _run_jobs(jobs: Iterable[Job], limit: int, start_pool: PoolStarter) -> Iterator[PhotoRecord]:
    """Yields the records of the jobs in order. At most `limit` are in work at a time, however many there are.

    Where a process ends, as one that runs out of memory or into a fault of a decoder, the photos in work are aligned
    again, one at a time. A photo that ends its process then is recorded as unreadable.
    """
    jobs, in_work = iter(jobs), deque[Job]()
    while True:
        try:
            with start_pool(limit) as pool:
                futures = {}
                while True:
                    for job in islice(jobs, limit - len(in_work)):
                        in_work.append(job)
                        futures[job] = pool.submit(run_job, job)
                    if not in_work:
                        return
                    yield futures.pop(in_work[0]).result()
                    in_work.popleft()
        except BrokenProcessPool:
            if limit == 1:
                yield _record_killer(in_work.popleft())
                continue
            log.warning(
                f"A process ended, as when memory runs out: the {len(in_work)} photos from {in_work[0].photo} to "
                f"{in_work[-1].photo} are aligned one at a time. If that happens often, use fewer --workers"
            )
        yield from _run_jobs(in_work, 1, start_pool)
        in_work.clear()


def _record_killer(job: Job) -> PhotoRecord:
    """Logs and records a photo that ended the process that read it."""
    log.warning(f"{job.source / job.photo}: {KILLED}")
    stat = (job.source / job.photo).stat()
    return PhotoRecord(job.photo, stat.st_size, stat.st_mtime_ns, error=KILLED)


@contextmanager
def _start_pool(detector: Path | None, all_faces: bool, workers: int, limit: int) -> Iterator[ProcessPoolExecutor]:
    """Context manager around processes that align photos, no more than are in work. Raises UserError."""
    pool = ProcessPoolExecutor(min(workers, limit), get_context("spawn"), start_worker, (detector, all_faces))
    try:
        if limit == 1:  # tells a process that cannot start from one that a photo ends
            try:
                pool.submit(os.getpid).result()
            except BrokenProcessPool:
                raise UserError("a process of the alignment cannot start, as when memory runs out") from None
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _targets(photos: list[str]) -> dict[str, str]:
    """Returns the file for each photo, without .png: its own path, with the suffix, or a number, where two would clash.

    Names that differ in case alone clash too: not every file system tells them apart.
    """
    stems = Counter(str(Path(photo).with_suffix("")).casefold() for photo in photos)
    taken = {"sheet"}  # sheet.png is the contact sheet
    targets = {}
    for photo in photos:
        path = Path(photo)
        stem = target = str(path.with_suffix(""))
        if stems[stem.casefold()] > 1 or stem.casefold() in taken:
            target = stem = f"{stem}-{path.suffix[1:].lower()}"
        number = 1
        while target.casefold() in taken:
            number += 1
            target = f"{stem}-{number}"
        taken.add(target.casefold())
        targets[photo] = target
    return targets
