"""Face images and data sets small enough to train on in a moment."""

import pickle
from pathlib import Path

import cv2
import numpy as np

from utils.datasets.recordio.record_format import IndexedRecordWriter, RecordHeader, pack


def draw_face(identity: int, rng: np.random.Generator) -> np.ndarray:
    """Draws a 112×112 RGB image whose identity a network can learn: coarse blocks by identity, plus noise."""
    blocks = np.random.default_rng([7, identity]).integers(40, 216, (7, 7, 3))
    image = np.kron(blocks, np.ones((16, 16, 1))) + rng.normal(0, 20, (112, 112, 3))
    return image.clip(0, 255).astype(np.uint8)


def encode_image(image: np.ndarray, kind: str = ".jpg") -> bytes:
    """Encodes an RGB image as the bytes of an image file."""
    return cv2.imencode(kind, image[:, :, ::-1])[1].tobytes()


def write_data(folder: Path, identities: int = 4, shots: int = 10, pairs: int = 20, seed: int = 3) -> Path:
    """Writes a dataset in the MS1MV2 layout (train.rec, train.idx, property) and a verification set `tiny.bin`."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    n = identities * shots
    with IndexedRecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        writer.write(0, pack(RecordHeader(2, np.array([n + 1, n + 1 + identities]), 0, 0), b""))
        for i in range(n):
            label = i // shots
            header = RecordHeader(0, float(label), i, 0) if i % 2 else RecordHeader(2, np.array([label, 0]), i, 0)
            writer.write(i + 1, pack(header, encode_image(draw_face(label, rng), ".png" if i % 3 == 0 else ".jpg")))
        for label in range(identities):
            ends = np.array([1 + label * shots, 1 + (label + 1) * shots])
            writer.write(n + 1 + label, pack(RecordHeader(2, ends, 0, 0), b""))
    (folder / "property").write_text(f"{identities},112,112")
    same = [bool(i % 2) for i in range(pairs)]
    images = [encode_image(draw_face(100 + (i if s else i + j * 50), rng)) for i, s in enumerate(same) for j in (0, 1)]
    (folder / "tiny.bin").write_bytes(pickle.dumps((images, same)))
    return folder
