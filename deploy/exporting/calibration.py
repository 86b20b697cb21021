"""Faces that int8 is calibrated with."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.alignment.folder import list_photos
from data.alignment.sheet import spread
from eval.inputs.sets import VerificationSet
from utils.datasets.alignment import SIZE
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.photos import PhotoFiles, open_photo
from utils.datasets.verification.bins import decode_images
from utils.errors import UserError, one_line
from utils.filesystem import path_exists

N_FACES = 300


def load_calibration_faces(folder: Path, sets: list[VerificationSet]) -> NDArray[np.uint8]:
    """Returns up to 300 faces (N, 112, 112, 3) RGB, evenly spaced over the train.rec of a folder, or over its photos.

    Leaves out images of the verification sets, which would make the proof too good. Raises UserError if none is left,
    or a photo is not an aligned face.
    """
    if not path_exists(folder.is_dir):
        raise UserError(
            f"{one_line(folder)}: no such folder of faces to calibrate int8 with",
            fix="name one with train.rec or aligned faces: --calibration FOLDER",
        )
    if path_exists((folder / "train.rec").exists):
        dataset = FaceDataset(folder)
        faces = np.stack([dataset[row][0] for row in spread(len(dataset), N_FACES)])
    else:
        faces = _load_photos(folder)
    known = {image.tobytes() for eval_set in sets for image in eval_set.images}
    faces = faces[[face.tobytes() not in known for face in faces]]
    if not len(faces):
        raise UserError(
            f"{one_line(folder)}: all its faces are in the verification set", fix="calibrate with others: --calibration"
        )
    return faces


def _load_photos(folder: Path) -> NDArray[np.uint8]:
    names = list_photos(folder, folder / "faces.log")
    paths = [folder / names[row] for row in spread(len(names), N_FACES)]
    resized: list[int] = []
    faces = decode_images(
        PhotoFiles(paths), name=lambda index: one_line(paths[index]), resized=resized, open_with=open_photo
    )
    if resized:
        raise UserError(
            f"{one_line(paths[resized[0]])}: is not an aligned face of {SIZE}×{SIZE} pixels",
            fix="align the photos first: python data/align.py",
        )
    return faces
