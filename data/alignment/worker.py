"""Aligns single photos in a process of its own."""

import hashlib
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import cv2

from data.alignment.aligner import AlignedFace, align_photo
from data.alignment.detector import Detector
from data.alignment.detectors import open_detector
from data.alignment.duplicates import difference_hash
from data.alignment.record import FaceRecord, PhotoRecord
from utils.datasets.photos import open_photo
from utils.errors import UserError
from utils.filesystem import open_regular_file, write_atomic


@dataclass(frozen=True)
class Job:
    """A photo to be aligned."""

    source: Path
    out: Path
    photo: str  # relative to the source folder
    target: str  # the file to write, relative to the output folder, without its suffix


class AlignWorker:
    """Aligns photos with a detector of its own."""

    def __init__(self, detector: Detector, all_faces: bool) -> None:
        self.detector = detector
        self.all_faces = all_faces

    def __call__(self, job: Job) -> PhotoRecord:
        """Aligns a photo, writes its faces and returns its record. Raises OSError if a face cannot be written."""
        path, size, mtime = job.source / job.photo, 0, 0
        try:
            with open_regular_file(path) as file:
                stat = os.fstat(file.fileno())
                size, mtime = stat.st_size, stat.st_mtime_ns
                encoded = file.read()
            with open_photo(encoded) as image:
                aligned, found = align_photo(image, self.detector, self.all_faces)
        except UserError as error:
            return PhotoRecord(job.photo, size, mtime, error=str(error))
        except OSError as error:
            return PhotoRecord(job.photo, size, mtime, error=error.strerror or str(error))
        faces = []
        for number, face in enumerate(aligned, start=1):
            name = f"{job.target}-{number}.png" if self.all_faces else f"{job.target}.png"
            content = cv2.imencode(".png", face.image[..., ::-1])[1].tobytes()
            write_atomic(job.out / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
            faces.append(_record_face(name, face))
        digest = hashlib.sha256(encoded).hexdigest()
        taken = {id(face.face) for face in aligned}
        others = [face.box.tolist() for face in found if id(face) not in taken]
        return PhotoRecord(job.photo, size, mtime, digest, len(found), faces=faces, others=others)


def _record_face(name: str, face: AlignedFace) -> FaceRecord:
    left, top, width, height = map(float, face.face.box)
    return FaceRecord(
        name, left, top, width, height, face.face.score, face.scale, face.sharpness, difference_hash(face.image),
        face.is_tiny, face.is_blurred,
    )  # fmt: skip


_worker: AlignWorker  # of this process


def start_worker(detector: Path | None, all_faces: bool) -> None:
    """Opens the detector of this process, which has one thread for OpenCV: there is a process for each core."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one ends the others
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    cv2.setNumThreads(1)
    _worker = AlignWorker(open_detector(detector), all_faces)


def _exit_with_parent(parent: int) -> None:
    """Ends this process when its parent has ended, also by a signal that it could not handle."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def run_job(job: Job) -> PhotoRecord:
    """Aligns a photo with the worker of this process."""
    return _worker(job)
