"""YuNet, from an ONNX file that is not part of the project."""

import os
import shutil

import cv2
import numpy as np
import pytest

from data.alignment.aligner import align_photo
from data.alignment.detectors import open_detector
from tests.helpers.paths import SHARED
from tests.helpers.photos import decode, draw_photo
from utils.datasets.alignment import TEMPLATE, similarity
from utils.errors import UserError

FILE = SHARED / "data" / "detector" / "yunet_n_dynamic.onnx"
needs_yunet = pytest.mark.skipif(not FILE.is_file(), reason=f"no {FILE.name}")


@needs_yunet
def test_people_are_found_and_aligned(tmp_path):
    path = tmp_path / os.fsdecode(b"d\xe9tector.onnx")  # a name that is not UTF-8
    shutil.copy(FILE, path)
    detector, errors = open_detector(path), []
    assert detector.name.startswith("YuNet ")
    for seed in range(12):
        photo, true = draw_photo(seed)
        image = decode(photo)
        aligned, found = align_photo(image, detector)
        assert len(aligned) == 1 and aligned[0].face in found
        matrix = similarity(true)
        points = aligned[0].face.points @ matrix[:, :2].T + matrix[:, 2]
        errors.append(np.linalg.norm(points - TEMPLATE, axis=1))
    assert np.median(errors) < 6  # less at home on drawn faces than the default detector
    large = np.zeros((2000, 3000, 3), np.uint8)  # scaled down for the detector
    large[500 : 500 + image.shape[0], 900 : 900 + image.shape[1]] = image
    (face, *_), _ = align_photo(large, detector)
    assert np.abs(face.face.centre - aligned[0].face.centre - (900, 500)).max() < 20


@needs_yunet
def test_small_faces_of_a_large_photo_are_found():
    """A row of people whose heads are about 60 pixels wide, 15 once the whole photo is scaled down."""
    large, width = np.zeros((1000, 5400, 3), np.uint8), 450
    for seed in range(12):
        image = cv2.resize(decode(draw_photo(seed)[0]), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)[
            :900, :width
        ]
        large[50 : 50 + image.shape[0], width * seed : width * seed + image.shape[1]] = image
    people = [int(face.centre[0] // width) for face in open_detector(FILE).find(large)]
    assert len({*people}) >= 10 and len(people) == len({*people})  # each once


@needs_yunet
def test_a_damaged_file_is_one_line(tmp_path):
    content = FILE.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\0" * 1000):
        (tmp_path / "damaged.onnx").write_bytes(damaged)
        with pytest.raises(UserError, match="OpenCV cannot run it as YuNet; leave out --detector"):
            open_detector(tmp_path / "damaged.onnx")
