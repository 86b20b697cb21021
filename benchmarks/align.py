"""Measures the alignment of photos on one core, by its parts.

Run from the root of the project:

    python benchmarks/align.py --photos FOLDER [--detector FILE] [--limit 300]

Each part runs over all photos before the next one starts. The photos are read once before the clock starts.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
from numpy.typing import NDArray

from data.alignment.aligner import align_photo
from data.alignment.detector import Detector, choose_face
from data.alignment.detectors import open_detector
from data.alignment.folder import list_photos
from utils.datasets.photos import open_photo
from utils.errors import run_cli

T = TypeVar("T")
R = TypeVar("R")


def measure(name: str, function: Callable[[T], R], inputs: Sequence[T]) -> list[R]:
    """Calls the function for every input, prints the milliseconds of one call, and returns the results."""
    start = time.perf_counter()
    results = [function(value) for value in inputs]
    seconds = time.perf_counter() - start
    print(f"{name:24}{1000 * seconds / len(inputs):8.2f} ms{len(inputs) / seconds:10,.0f} a second")
    return results


def benchmark(photos: list[bytes], detector: Detector) -> None:
    """Prints the times of all parts and of the whole alignment."""

    def decode(photo: bytes) -> NDArray[np.uint8]:
        with open_photo(photo) as image:
            return image

    def align(photo: bytes) -> int:
        with open_photo(photo) as image:
            aligned, _ = align_photo(image, detector)
        return sum(len(cv2.imencode(".png", face.image)[1]) for face in aligned)

    images = measure("decode", decode, photos)
    found = measure("find faces", detector.find, images)
    chosen = [
        (image, choose_face(faces, image.shape[1], image.shape[0]))
        for image, faces in zip(images, found, strict=True)
        if faces
    ]
    measure("landmarks", lambda pair: detector.landmarks(*pair), chosen)
    sizes = measure("all, encoded as PNG", align, photos)
    print(f"{sum(map(bool, sizes))} of {len(photos)} photos have a face")


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description="Measure the alignment of photos on one core.")
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photos")
    parser.add_argument("--detector", type=Path, help="YuNet as ONNX file (default: BlazeFace)")
    parser.add_argument("--limit", type=int, default=300, help="number of photos (%(default)s)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    names = list_photos(args.photos, args.photos / "none")[: args.limit]
    benchmark([(args.photos / name).read_bytes() for name in names], open_detector(args.detector))


if __name__ == "__main__":
    run_cli(main)
