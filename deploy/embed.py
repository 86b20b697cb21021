"""Embeds the faces of a folder of photos: python -m deploy.embed DIR --out faces.npz [--model PATH]

Finds and aligns the face of each photo. The file holds `embeddings` (N, D), unit vectors of float32, and `photos` (N,),
paths relative to DIR, and serves python -m deploy.search. Photos without a face, or with several, are named, also in
faces.log, and left out. A photo of 112×112 pixels counts as an aligned face, as data/align.py writes them.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from config import CommandParser, path_argument
from data.alignment.folder import list_photos
from deploy.arguments import add_model_arguments, load_embedder
from deploy.embedder import FaceEmbedder
from deploy.gallery import Gallery
from utils.errors import UserError, run_cli
from utils.filesystem import ensure_writable_folder, path_exists
from utils.logs.logger import init_logging, log
from utils.logs.progress_bar import ProgressReporter

_CHUNK = 1024  # photos that are aligned before they are embedded


def main() -> None:
    """Parses the command line, embeds the faces and writes the file."""
    parser = CommandParser("Embed the faces of a folder of photos.")
    parser.add_argument("folder", type=path_argument, metavar="DIR", help="photos, with or without a folder per person")
    parser.add_argument("--out", type=path_argument, required=True, metavar="FILE", help="the .npz file to write")
    add_model_arguments(parser)
    args = parser.parse()
    if not path_exists(args.folder.is_dir):
        raise UserError(f"{args.folder}: no such folder")
    if args.out.suffix != ".npz" or path_exists(args.out.is_dir):
        raise UserError(f"--out {args.out}: should be a file that ends in .npz")
    embedder = load_embedder(args)
    try:
        ensure_writable_folder(args.out.parent)
        init_logging(args.out.with_suffix(".log"))
        photos = list_photos(args.folder, args.out)
        gallery = embed_folder(embedder, args.folder, photos)
        gallery.save(args.out)
    except OSError as error:
        raise UserError(f"--out {args.out}: {error.strerror or error}") from None
    left_out = len(photos) - len(gallery.photos)
    note = f"; {left_out} left out" if left_out else ""
    print(f"{args.out}: {len(gallery.photos):,} faces of {gallery.n_people:,} people{note}")


def embed_folder(embedder: FaceEmbedder, folder: Path, photos: list[str]) -> Gallery:
    """Embeds the faces of photos, given relative to a folder. Logs those that cannot be used.

    Raises UserError if there is none left.
    """
    names: list[str] = []
    embeddings: list[NDArray[np.float32]] = []
    cv2.setNumThreads(1)  # there is a thread for each core
    with ThreadPoolExecutor(os.cpu_count()) as pool, ProgressReporter(len(photos), "Embedding", "photos") as progress:
        for start in range(0, len(photos), _CHUNK):
            chunk = photos[start : start + _CHUNK]
            faces: list[NDArray[np.uint8]] = []
            for name, face in zip(chunk, pool.map(lambda name: _align(embedder, folder / name), chunk), strict=True):
                progress.update()
                if isinstance(face, UserError):
                    log.warning(f"{face}: left out")
                else:
                    names.append(name)
                    faces.append(face)
            if faces:
                embeddings.append(embedder.embed_aligned(np.stack(faces)))
    if not embeddings:
        raise UserError(f"{folder}: no photo with one face", fix="--largest takes one of several faces")
    model = embedder.model
    return Gallery(np.concatenate(embeddings), np.array(names), str(model.path.resolve()), model.sha256)


def _align(embedder: FaceEmbedder, photo: Path) -> NDArray[np.uint8] | UserError:
    """Returns the aligned face of a photo, or why there is none."""
    try:
        return embedder.align(photo)
    except UserError as error:
        return error


if __name__ == "__main__":
    run_cli(main)
