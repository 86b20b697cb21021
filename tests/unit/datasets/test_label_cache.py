"""Labels of large files are read once, and again where the file or what was remembered has changed."""

import os

import numpy as np
import pytest

from tests.helpers.faces import write_data
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.recordio import label_cache
from utils.datasets.recordio.index import RecordError
from utils.datasets.recordio.reader import IndexedRecordReader


@pytest.fixture
def reads(monkeypatch, tmp_path):
    """The number of times that labels were read; files of any size count as large."""
    count, read = [], IndexedRecordReader.labels_of_complete
    monkeypatch.setattr(label_cache, "MIN_RECORDS", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(IndexedRecordReader, "labels_of_complete", lambda *args: count.append(1) or read(*args))
    return count


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def test_labels_are_read_once(reads, data):
    first, second = FaceDataset(data), FaceDataset(data)
    assert np.array_equal(first.label_values, second.label_values) and len(set(first.label_values)) > 1
    assert len(reads) == 1


def test_a_changed_file_is_read_again(reads, data):
    assert len(FaceDataset(data).label_values)
    os.utime(data / "train.rec", (0, 0))
    assert len(FaceDataset(data).label_values)
    assert len(reads) == 2


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"text"])
def test_a_damaged_memory_is_replaced(reads, data, tmp_path, content):
    expected = FaceDataset(data).label_values
    (file,) = (tmp_path / "cache/pocketnet").iterdir()
    size = file.stat().st_size
    file.write_bytes(content)
    assert np.array_equal(FaceDataset(data).label_values, expected)
    assert len(reads) == 2 and file.stat().st_size == size


def test_a_cache_that_cannot_be_written(reads, data, tmp_path):
    (tmp_path / "cache").write_text("a file in its place")
    assert len(FaceDataset(data).label_values) and len(FaceDataset(data).label_values)
    assert len(reads) == 2


def test_errors_are_not_remembered(reads, data, tmp_path):
    lines = (data / "train.idx").read_text().splitlines()
    (data / "train.idx").write_text("\n".join(lines[:5] + lines[6:]) + "\n")
    for _ in range(2):
        with pytest.raises(RecordError, match="is not in it"):
            FaceDataset(data).label_values  # noqa: B018
    assert not (tmp_path / "cache").exists()


def test_small_files_are_not_remembered(data, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(FaceDataset(data).label_values)
    assert not (tmp_path / "cache").exists()
