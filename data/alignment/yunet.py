"""YuNet (Wu et al., Machine Intelligence Research 2023), a detector with five landmarks, from an ONNX file."""

import hashlib
import math
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data.alignment.detector import Face, suppress_overlaps
from data.alignment.tiles import make_tiles
from utils.errors import UserError
from utils.filesystem import open_regular_file

MIN_SCORE = 0.6
MAX_SIDE = 1280  # pixels; larger photos and tiles are scaled down. It sees faces from 7 to 14 pixels
_MIN_TILE = 2 * MAX_SIDE  # so that nothing is scaled by less than a quarter


class YuNet:
    """YuNet in OpenCV."""

    def __init__(self, path: Path) -> None:
        """Loads the network. Raises UserError if the file is not YuNet."""
        try:
            with open_regular_file(path) as file:
                content = file.read()
            network = np.frombuffer(content, np.uint8)
            level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # OpenCV 5 warns of defaults
            self._detector = cv2.FaceDetectorYN.create("onnx", network, np.zeros(0, np.uint8), (128, 128), MIN_SCORE)
            cv2.utils.logging.setLogLevel(level)
            self.find(np.zeros((128, 128, 3), np.uint8))
        except OSError as error:
            raise UserError(f"--detector {path}: {error.strerror}") from None
        except cv2.error:
            raise UserError(
                f"--detector {path}: OpenCV cannot run it as YuNet", fix="leave out --detector for the default detector"
            ) from None
        self.name = f"YuNet {hashlib.sha256(content).hexdigest()[:12]}"

    def find(self, image: NDArray[np.uint8]) -> list[Face]:
        """Returns the faces in an RGB image (H, W, 3), best first, each once."""
        tiles = make_tiles(image.shape[1], image.shape[0], _MIN_TILE)
        faces = [face for tile in tiles for face in self._find_in_tile(image, *tile)]
        return suppress_overlaps(faces) if len(tiles) > 1 else sorted(faces, key=lambda face: -face.score)

    def _find_in_tile(self, image: NDArray[np.uint8], left: int, top: int, side: int) -> list[Face]:
        """Returns the faces in a square of the image, which may reach beyond its right and lower edges."""
        part = image[top : top + side, left : left + side]
        scale = min(1.0, MAX_SIDE / max(part.shape[:2]))
        if scale < 1:
            size = [max(1, round(length * scale)) for length in part.shape[1::-1]]
            part = cv2.resize(part, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        self._detector.setInputSize(part.shape[1::-1])
        rows = self._detector.detect(cv2.cvtColor(part, cv2.COLOR_RGB2BGR))[1]
        rows = np.zeros((0, 15)) if rows is None else rows.astype(np.float64)
        rows = rows[[all(map(math.isfinite, row)) for row in rows]] if len(rows) else rows
        offset = np.array([left, top, 0, 0])
        return [
            Face(row[:4] / scale + offset, float(row[14]), row[4:14].reshape(5, 2) / scale + offset[:2]) for row in rows
        ]

    def landmarks(self, image: NDArray[np.uint8], face: Face) -> NDArray[np.float64] | None:
        """Returns the five points that YuNet has found with the face."""
        return face.points
