"""Duplicates: equal files, and nearly equal faces."""

import cv2
import numpy as np

from data.alignment.aligner import align_photo
from data.alignment.detectors import open_detector
from data.alignment.duplicates import MAX_DISTANCE, difference_hash, first_equal, first_similar
from tests.helpers.photos import decode, draw_photo


def flip(value: str, bits: int) -> str:
    """Returns the hash with its lowest bits inverted."""
    return f"{int(value, 16) ^ ((1 << bits) - 1):064x}"


def test_equal_keys_name_the_first():
    assert first_equal(["a", "b", "a", "c", "a", "b"]) == [None, None, 0, None, 0, 1]
    assert first_equal([]) == [] and first_similar([]) == []


def test_similar_hashes_name_the_first_within_the_distance():
    rng = np.random.default_rng(0)
    a, b, c = (rng.bytes(32).hex() for _ in range(3))
    hashes = [a, b, flip(a, MAX_DISTANCE), flip(b, MAX_DISTANCE + 1), c, c]
    assert first_similar(hashes) == [None, None, 0, None, None, 4]


def test_many_hashes_are_compared_in_blocks():
    rng = np.random.default_rng(1)
    hashes = [rng.bytes(32).hex() for _ in range(1300)]
    hashes[1200] = flip(hashes[3], 5)
    assert first_similar(hashes) == [*[None] * 1200, 3, *[None] * 99]


def test_the_comparison_shows_its_progress(monkeypatch, caplog):
    monkeypatch.setattr("utils.logs.progress_bar.LOG_INTERVAL", 0)
    monkeypatch.setattr("utils.logs.logger.log.propagate", True)
    with caplog.at_level("INFO", "pocketnet"):
        first_similar([np.random.default_rng(i).bytes(32).hex() for i in range(600)])
    assert "Comparing faces: 262144 of 360000 comparisons, " in caplog.text


def test_a_copy_of_a_photo_is_similar_and_another_person_is_not():
    detector = open_detector()
    photos = [decode(draw_photo(seed)[0]) for seed in range(6)]
    copies = [
        cv2.convertScaleAbs(cv2.resize(photo, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA), beta=6)
        for photo in photos
    ]
    hashes = [difference_hash(align_photo(photo, detector)[0][0].image) for photo in [*photos, *copies]]
    assert first_similar(hashes) == [*[None] * 6, *range(6)]
