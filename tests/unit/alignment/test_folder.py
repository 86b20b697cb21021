"""Folders of photos, some of which end the process that reads them."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.alignment import worker
from data.alignment.detector import Face
from data.alignment.folder import align_folder
from data.alignment.record import JOURNAL, KILLED
from tests.helpers.faces import encode_image
from utils.errors import UserError


class KillingDetector:
    """Finds no face. Ends its process on photos 50 pixels wide, and once on photos 60 pixels wide."""

    name = "killer 1"

    def find(self, image: NDArray[np.uint8]) -> list[Face]:
        first = Path("was killed once")
        if image.shape[1] == 50 or (image.shape[1] == 60 and not first.exists()):
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return []

    def landmarks(self, image: NDArray[np.uint8], face: Face) -> None: ...


def start_killing_worker(detector: None, all_faces: bool) -> None:
    worker._worker = worker.AlignWorker(KillingDetector(), all_faces)


def start_no_worker(detector: None, all_faces: bool) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def photos(tmp_path, monkeypatch) -> list[str]:
    """Names of photos of several widths in tmp_path/photos."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("data.alignment.folder.open_detector", lambda path: KillingDetector())
    monkeypatch.setattr("data.alignment.folder._AHEAD", 3)
    (tmp_path / "photos").mkdir()
    widths = [40, 40, 60, 40, 40, 50, 40, 40]
    for i, width in enumerate(widths):
        (tmp_path / "photos" / f"{i}.png").write_bytes(encode_image(np.zeros((40, width, 3), np.uint8), ".png"))
    return [f"{i}.png" for i in range(len(widths))]


def test_a_photo_that_ends_its_process_is_left_out(tmp_path, photos, monkeypatch):
    monkeypatch.setattr("data.alignment.folder.start_worker", start_killing_worker)
    records = align_folder(tmp_path / "photos", tmp_path / "out", photos, None, False, workers=2)
    assert [record.photo for record in records] == photos
    assert {record.photo: record.error for record in records if record.error} == {"5.png": KILLED}
    assert (tmp_path / "was killed once").exists()
    # The next start does not read it again: with processes that cannot start, it would fail.
    monkeypatch.setattr("data.alignment.folder.start_worker", start_no_worker)
    assert align_folder(tmp_path / "photos", tmp_path / "out", photos, None, False, workers=2) == records
    assert len((tmp_path / "out" / JOURNAL).read_text().splitlines()) == 1 + len(photos)
    os.utime(tmp_path / "photos" / "5.png", (1, 1))  # a changed file is tried again
    with pytest.raises(UserError, match="a process of the alignment cannot start, as when memory runs out"):
        align_folder(tmp_path / "photos", tmp_path / "out", photos, None, False, workers=2)
