"""Photos of synthetic people before alignment."""

from pathlib import Path

import cv2
import numpy as np

from data.synthetic.people import Person, Shot
from data.synthetic.photos import Detection, View, render_photo
from utils.datasets.alignment import TEMPLATE


def draw_photo(seed: int) -> tuple[bytes, np.ndarray]:
    """Returns a JPEG of one person, and the true positions of eyes, nose and corners of the mouth, (5, 2)."""
    rng = np.random.default_rng(seed)
    view = View.sample(rng, 0.0)
    photo = render_photo(Person.sample(rng), Detection.sample(rng, Shot.sample(rng), view))
    points = view.to_photo(TEMPLATE[:, 0] + 1j * TEMPLATE[:, 1])
    return photo, np.stack([points.real, points.imag], axis=1)


def decode(photo: bytes) -> np.ndarray:
    """Returns the RGB pixels of a photo."""
    image = cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return image


def write_people(folder: Path, people: int = 2, photos: int = 2) -> list[str]:
    """Writes a folder of photos for each person and returns the paths of the photos relative to `folder`."""
    names = [f"person {p}/{i}.jpg" for p in range(people) for i in range(photos)]
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(draw_photo(seed)[0])
    return names


def surround(photo: bytes, width: int, height: int) -> bytes:
    """Returns a photo at the lower right of a larger picture, as PNG: the detector looks at it in tiles."""
    image = decode(photo)
    large = np.full((height, width, 3), 200, np.uint8)
    large[height - image.shape[0] :, width - image.shape[1] :] = image
    return cv2.imencode(".png", large[..., ::-1])[1].tobytes()


def rotate_exif(photo: bytes, orientation: int) -> bytes:
    """Returns a JPEG with an EXIF orientation."""
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + bytes([0, orientation, 0, 0]) + bytes(4)
    segment = b"Exif\0\0" + tiff
    return photo[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + photo[2:]
