"""Record files go both ways between utils/datasets/recordio and the real MXNet 1.9.1 (make test-mxnet).

MXNet needs an environment of its own: python3.11 -m venv .venv-mxnet, then pip install -r requirements-mxnet.txt there.
Another interpreter than .venv-mxnet/bin/python is named by the variable POCKETNET_MXNET_PYTHON.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from data.packing.sources import find_people
from data.packing.writer import write_training_set
from tests.helpers.paths import ROOT
from tests.helpers.photo_sets import write_faces
from utils.datasets.recordio.reader import IndexedRecordReader
from utils.datasets.recordio.record_format import IndexedRecordWriter, RecordHeader, pack, unpack

PYTHON = ROOT / os.environ.get("POCKETNET_MXNET_PYTHON", ".venv-mxnet/bin/python")

pytestmark = pytest.mark.skipif(
    not PYTHON.is_file(), reason=f"no MXNet environment: {PYTHON} is not there (requirements-mxnet.txt)"
)


def peer(task, folder):
    command = [PYTHON, Path(__file__).parents[1] / "helpers" / "mxnet_peer.py", task, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A folder of files that MXNet wrote, and the records in them."""
    folder = tmp_path_factory.mktemp("mxnet")
    peer("write", folder)
    records = json.loads((folder / "peer.json").read_text())
    return folder, [record | {"payload": bytes.fromhex(record["payload"])} for record in records]


def packed(record):
    if record["label"] is None:
        return record["payload"]
    return pack(RecordHeader(0, record["label"], record["id"], record["id2"]), record["payload"])


def test_we_read_what_mxnet_writes(theirs):
    folder, records = theirs
    with IndexedRecordReader(folder / "peer.rec", folder / "peer.idx") as reader:
        assert reader.keys.tolist() == [record["key"] for record in records]
        for record in records:
            if record["label"] is None:
                assert reader.read(record["key"]) == record["payload"]
                continue
            header, payload = reader.read_image(record["key"])
            assert payload == record["payload"]
            assert np.array_equal(header.label, np.asarray(record["label"], np.float32))
            assert (header.id, header.id2) == (record["id"], record["id2"])
        images = [record for record in records if record["label"] is not None]
        labels = reader.labels([record["key"] for record in images])
        assert labels.tolist() == [np.float32(np.ravel(record["label"])[0]) for record in images]


def test_we_write_the_bytes_that_mxnet_writes_and_mxnet_reads_them(theirs, tmp_path):
    folder, records = theirs
    with IndexedRecordWriter(tmp_path / "peer.rec", tmp_path / "peer.idx") as writer:
        for record in records:
            writer.write(record["key"], packed(record))
    assert (tmp_path / "peer.rec").read_bytes() == (folder / "peer.rec").read_bytes()
    assert (tmp_path / "peer.idx").read_bytes() == (folder / "peer.idx").read_bytes()
    (tmp_path / "peer.json").write_bytes((folder / "peer.json").read_bytes())
    peer("read", tmp_path)


def test_mxnet_sees_a_difference(theirs, tmp_path):
    folder, records = theirs
    with IndexedRecordWriter(tmp_path / "peer.rec", tmp_path / "peer.idx") as writer:
        for record in records:
            writer.write(record["key"], packed(record | {"payload": record["payload"] + b"."}))
    (tmp_path / "peer.json").write_bytes((folder / "peer.json").read_bytes())
    with pytest.raises(AssertionError, match="the payload differs"):
        peer("read", tmp_path)


def test_mxnet_unpacks_to_the_same(theirs):
    """pack and unpack undo each other on every record that MXNet packed."""
    for record in theirs[1]:
        if record["label"] is not None:
            header, payload = unpack(packed(record))
            assert packed(record) == pack(header, payload)


def test_mxnet_reads_a_packed_set(tmp_path):
    """Record 0 holds the ends of the image keys and of the people's keys; a person's record those of its images."""
    photos = list(write_faces(tmp_path / "photos", people=3, photos=2).values())
    write_training_set(tmp_path, find_people(tmp_path / "photos"))
    expected = [{"key": 0, "label": [7, 10], "payload": b""}]
    expected += [{"key": 1 + i, "label": i // 2, "payload": photo} for i, photo in enumerate(photos)]
    expected += [{"key": 7 + i, "label": [1 + 2 * i, 3 + 2 * i], "payload": b""} for i in range(3)]
    records = [record | {"id": record["key"], "id2": 0, "payload": record["payload"].hex()} for record in expected]
    (tmp_path / "peer.json").write_text(json.dumps(records))
    for suffix in (".rec", ".idx"):
        shutil.copy(tmp_path / f"train{suffix}", tmp_path / f"peer{suffix}")
    peer("read", tmp_path)
