"""Where the bytes of a photo are, and the check that training can read them."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.datasets.alignment import SIZE
from utils.datasets.image_header import read_image_size
from utils.errors import UserError
from utils.filesystem import open_regular_file


@dataclass(frozen=True, slots=True)
class Photo:
    """A file, or a range of bytes in a tar file. Holds no image, so that millions of photos fit in memory."""

    file: Path
    member: str = ""  # name in the tar file; empty: the photo is the file itself
    offset: int = 0  # of the first byte
    size: int = -1  # bytes; -1: up to the end of the file

    def __str__(self) -> str:
        return f"{self.file}: {self.member}" if self.member else str(self.file)

    def read_face(self) -> bytes:
        """Returns the encoded image. Raises OSError, and UserError unless it is an aligned face that can be decoded."""
        with open_regular_file(self.file) as file:
            file.seek(self.offset)
            photo = file.read(self.size)
        if problem := find_problem(photo):
            raise UserError(f"{self}: {problem}", fix=f"training needs aligned faces of {SIZE}×{SIZE} pixels")
        return photo


def find_problem(photo: bytes) -> str:
    """Returns why training cannot read an encoded image, or "" if it can."""
    size = read_image_size(photo)
    if not size:
        return "not a JPEG, PNG, BMP or WebP image" if photo else "empty"
    if size != (SIZE, SIZE):
        return f"an image of {size[0]}×{size[1]} pixels"
    try:
        image = cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    return "damaged: it cannot be decoded" if image is None or image.shape != (SIZE, SIZE, 3) else ""
