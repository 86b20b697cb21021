"""Training images for a benchmark: a record file in the layout of MS1MV2, with few different faces."""

from pathlib import Path

import cv2
import numpy as np

from data.synthetic.build import encode
from data.synthetic.people import Person, Shot
from data.synthetic.procedural import draw
from utils.datasets.alignment import SIZE
from utils.datasets.recordio.record_format import IndexedRecordWriter, RecordHeader, pack

FACES = 64  # different images; the others repeat them


def write_records(folder: Path, images: int, classes: int) -> None:
    """Writes train.rec, train.idx and property. Labels are drawn at random; the last image has the largest one."""
    rng = np.random.default_rng(0)
    faces = [
        encode(".jpg", draw(Person.sample(rng), Shot.sample(rng)), cv2.IMWRITE_JPEG_QUALITY, 95) for _ in range(FACES)
    ]
    labels = rng.integers(0, classes, images)
    labels[-1] = classes - 1
    with IndexedRecordWriter(folder / "train.rec", folder / "train.idx") as records:
        for key, label in enumerate(labels.tolist(), start=1):
            records.write(key, pack(RecordHeader(0, float(label), key, 0), faces[key % FACES]))
    (folder / "property").write_text(f"{classes},{SIZE},{SIZE}\n")
