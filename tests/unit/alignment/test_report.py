"""The notes of an alignment's report, and its contact sheet."""

import cv2
import numpy as np

from data.alignment.record import FaceRecord, PhotoRecord
from data.alignment.report import MAX_OTHERS, find_notes, summarise, write_sheet
from data.alignment.sheet import COLUMNS, MARGIN, SIDE
from tests.helpers.photos import decode

BOX = 40, 30, 20, 20  # left, top, width, height


def record(photo: str, *hashes: str, others: int = 0) -> PhotoRecord:
    faces = [
        FaceRecord(f"{photo}-{i}.png", *BOX, 0.9, 1.0, 100.0, value, is_tiny=False, is_blurred=False)
        for i, value in enumerate(hashes)
    ]
    boxes = [[100.0, 30.0, 20.0, 20.0]] * others
    return PhotoRecord(f"{photo}.png", 1, 1, photo, len(faces) + others, faces=faces, others=boxes)


def test_every_face_that_was_taken_is_compared():
    rng = np.random.default_rng(0)
    a, b, c, d = (rng.bytes(32).hex() for _ in range(4))
    records = [record("1", a, b), record("2", c, b, a), record("3", d, d), record("4", d)]
    notes = find_notes(records)
    assert notes["2.png"] == ["3 faces", "nearly the same as 1.png"]
    assert notes["3.png"] == ["2 faces"]  # a photo is no duplicate of itself
    assert notes["4.png"] == ["nearly the same as 3.png"]
    assert "nearly the same: 2, for example 2.png" in summarise(records, notes)


def colours(sheet: np.ndarray) -> list[tuple[int, ...]]:
    """Returns the colours in the middle of the tiles of the sheet's rows, from the second row on."""
    middles = [MARGIN + i * (SIDE + MARGIN) + SIDE // 2 for i in range(COLUMNS)]
    return [tuple(map(int, sheet[40 + SIDE // 2, x])) for x in middles]


def test_the_faces_that_were_not_taken_are_shown(tmp_path):
    photo = np.full((100, 200, 3), 90, np.uint8)
    photo[30:50, 40:60], photo[30:50, 100:120] = (0, 200, 0), (0, 0, 200)  # taken, and not taken
    cv2.imwrite(str(tmp_path / "1.png"), photo[..., ::-1])
    cv2.imwrite(str(tmp_path / "1-0.png"), np.full((112, 112, 3), (0, 200, 0), np.uint8))
    for others in (1, MAX_OTHERS + 3):
        records = [record("1", "0" * 64, others=others)]
        write_sheet(tmp_path / "sheet.png", tmp_path, tmp_path, records, find_notes(records))
        shown = colours(decode((tmp_path / "sheet.png").read_bytes()))
        assert shown.count((0, 200, 0)) == 1 and shown.count((0, 0, 200)) == min(others, MAX_OTHERS)
