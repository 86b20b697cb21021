"""The command data/reindex.py, which rebuilds the index of a record file from its records."""

import os
import shutil
import sys

import numpy as np
import pytest

from data.reindex import read_keys, write_index
from tests.helpers.commands import run_command
from tests.helpers.faces import write_data
from tests.helpers.paths import GOLDEN, ROOT, SHARED
from tests.helpers.records import MAGIC, overwrite, random_payloads, write_records
from utils.datasets.recordio.reader import IndexedRecordReader
from utils.datasets.recordio.record_format import RecordHeader, pack
from utils.errors import UserError


def reindexed(rec):
    keys, offsets, _ = read_keys(rec)
    made = rec.with_suffix(".made")
    write_index(made, keys, offsets)
    return made.read_bytes()


@pytest.mark.parametrize("name", ["train", "parts"])
def test_files_of_mxnet(name, tmp_path):
    rec = shutil.copy(GOLDEN / "rec" / f"{name}.rec", tmp_path / "a.rec")
    assert reindexed(tmp_path / "a.rec") == (GOLDEN / "rec" / f"{name}.idx").read_bytes(), rec


def test_a_file_of_photos(tmp_path):
    folder = SHARED / "data" / "faces_cfp"
    if not folder.exists():
        pytest.skip(f"the photos are not at {folder}")
    (tmp_path / "a.rec").symlink_to(folder / "train.rec")
    assert reindexed(tmp_path / "a.rec") == (folder / "train.idx").read_bytes()


def test_our_own_files(tmp_path):
    """Files with a header record, with ids that are not keys, and with records in several parts."""
    folder = write_data(tmp_path / "data", identities=3, shots=4)
    assert reindexed(folder / "train.rec") == (folder / "train.idx").read_bytes()
    rec, idx = write_records(tmp_path, list(random_payloads(3, 400)))
    assert reindexed(rec) == idx.read_bytes()


@pytest.mark.parametrize("keys", [range(50), range(1, 51), range(0, 5000, 100), [9, 3, 7, 10**17]])
def test_the_ids_of_a_plain_file_are_its_keys(keys, tmp_path):
    payloads = random_payloads(1, 100)
    records = {key: pack(RecordHeader(0, 1.0, key, 0), payload) for key, payload in zip(keys, payloads, strict=False)}
    assert any(MAGIC in record for record in records.values())
    rec, idx = write_records(tmp_path, records)
    assert reindexed(rec) == idx.read_bytes()


@pytest.mark.parametrize("ids", [[0, 0, 0], [5, 6, 5], [1, 2, 2**64 - 1]])
def test_ids_that_are_no_keys_give_way_to_counting(ids, tmp_path):
    rec, idx = write_records(tmp_path, [pack(RecordHeader(0, 1.0, id_, 0), b"image") for id_ in ids])
    assert reindexed(rec) == idx.read_bytes()


def test_a_header_record_means_keys_without_gaps(tmp_path):
    """The ids are distinct but do not start at 1: record 0 holds the end of the image keys."""
    header = pack(RecordHeader(2, np.array([4.0, 4.0]), 7000, 0), b"")
    rec, idx = write_records(
        tmp_path, [header, *(pack(RecordHeader(0, 1.0, id_, 0), b"image") for id_ in (500, 501, 502))]
    )
    assert reindexed(rec) == idx.read_bytes()


def test_the_command(tmp_path):
    folder = write_data(tmp_path / "data", identities=2, shots=2)
    intact = (folder / "train.idx").read_bytes()
    (folder / "train.idx").unlink()
    done = run_command(ROOT, sys.executable, "data/reindex.py", folder, new_interpreter=True)
    assert (done.returncode, done.stderr) == (0, "") and "7 records of train.rec" in done.stdout
    assert (folder / "train.idx").read_bytes() == intact
    done = run_command(ROOT, sys.executable, "-m", "data.reindex", folder / "train.rec")
    assert done.returncode == 2 and done.stderr == f"error: {folder}/train.idx: already exists; --force replaces it\n"
    (folder / "train.idx").write_bytes(b"another")
    assert run_command(ROOT, sys.executable, "-m", "data.reindex", folder, "--force").returncode == 0
    assert (folder / "train.idx").read_bytes() == intact
    assert sorted(os.listdir(folder)) == ["property", "tiny.bin", "train.idx", "train.rec"]  # noqa: PTH208


def test_damage_is_named_and_an_old_index_stays(tmp_path):
    folder = write_data(tmp_path / "data", identities=2, shots=2)
    with IndexedRecordReader(folder / "train.rec", folder / "train.idx") as reader:
        at = int(reader.location(3).split()[-1])
    overwrite(folder / "train.rec", at, b"\0")
    intact = (folder / "train.idx").read_bytes()
    done = run_command(ROOT, sys.executable, "data/reindex.py", folder, "--force")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert f"error: {folder}/train.rec: byte {at}: no record is there" in done.stderr
    assert (folder / "train.idx").read_bytes() == intact


def test_the_index_is_written_through_no_link(tmp_path):
    """Neither through a link at its name nor at a guessable name of its temporary file."""
    rec, idx = write_records(tmp_path, [b"one"])
    intact = idx.read_bytes()
    (tmp_path / "precious").write_text("precious")
    for name in ("a.made", f".a.made.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    assert reindexed(rec) == intact
    assert (tmp_path / "precious").read_text() == "precious" and not (tmp_path / "a.made").is_symlink()


@pytest.mark.parametrize("cut", [1, 4, 9, 500])
def test_a_file_cut_short(cut, tmp_path):
    rec, _ = write_records(tmp_path, [b"one", pack(RecordHeader(0, 1.0, 1, 0), bytes(1000))])
    os.truncate(rec, rec.stat().st_size - cut)
    with pytest.raises(UserError, match=r"a\.rec: byte 12: its 1024 bytes run beyond the end of the file at byte \d+;"):
        read_keys(rec)
    os.truncate(rec, 16)
    with pytest.raises(UserError, match="byte 12: the file ends at byte 16, in the middle of a record"):
        read_keys(rec)
    os.truncate(rec, 0)
    with pytest.raises(UserError, match="is empty"):
        read_keys(rec)


def test_what_is_no_record_file(tmp_path):
    os.mkfifo(tmp_path / "train.rec")
    for name, log_capture in [
        ("none.rec", "No such file"),
        ("a.idx", "is an index"),
        ("train.rec", "a pipe"),
        (".", "a pipe"),
    ]:
        done = run_command(ROOT, sys.executable, "data/reindex.py", tmp_path / name)
        assert done.returncode == 2 and log_capture in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
