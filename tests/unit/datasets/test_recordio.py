"""Record files against those that MXNet wrote (tests/golden/rec), round trips, and files that are damaged."""

import gc
import hashlib
import json
import multiprocessing
import os
import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.records import MAGIC, overwrite, random_payloads, write_records
from utils.datasets.recordio import reader as record_reader
from utils.datasets.recordio.index import RecordError
from utils.datasets.recordio.reader import IndexedRecordReader
from utils.datasets.recordio.record_format import IndexedRecordWriter, RecordHeader, pack, unpack
from utils.errors import UserError

GOLDEN = Path(__file__).parents[2] / "golden" / "rec"


def part(cflag, payload, length=None):
    length = len(payload) if length is None else length
    return MAGIC + struct.pack("<I", cflag << 29 | length) + payload + bytes(-len(payload) % 4)


def error_of(function, *named):
    """Return the message of the RecordError that `function` raises: one line that holds all of `named`."""
    with pytest.raises(RecordError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    for name in named:
        assert str(name) in message, message
    return message


def read_error(rec, idx, key, offset, *named):
    with IndexedRecordReader(rec, idx) as reader:
        return error_of(lambda: reader.read(key), rec, f"record {key} at byte {offset}", *named)


def open_error(rec, idx, *named):
    return error_of(lambda: IndexedRecordReader(rec, idx), *named)


# ---- files of MXNet


@pytest.fixture(scope="module")
def golden_payloads():
    return [bytes.fromhex(text) for text in json.loads((GOLDEN / "parts.json").read_text())]


def test_payloads_of_golden_parts(golden_payloads):
    with IndexedRecordReader(GOLDEN / "parts.rec", GOLDEN / "parts.idx") as reader:
        assert [reader.read(key) for key in reader.keys] == golden_payloads
        assert len(reader) == len(golden_payloads)
        assert reader.keys.dtype == np.int64


def test_golden_parts_are_written_byte_for_byte(golden_payloads, tmp_path):
    rec, idx = write_records(tmp_path, golden_payloads)
    assert rec.read_bytes() == (GOLDEN / "parts.rec").read_bytes()
    assert idx.read_bytes() == (GOLDEN / "parts.idx").read_bytes()


def test_golden_images():
    with np.load(GOLDEN / "expected.npz") as expected:
        labels = expected["labels"]
    with IndexedRecordReader(GOLDEN / "train.rec", GOLDEN / "train.idx") as reader:
        header, payload = reader.read_image(0)
        assert header.flag == 2
        first, last = (int(label) for label in header.label)
        assert payload == b""
        images = [reader.read_image(key) for key in range(1, first)]
        assert [np.ravel(header.label)[0] for header, _ in images] == labels.tolist()
        assert {header.flag for header, _ in images} > {0}  # labels are both numbers and arrays
        assert all(payload[:3] == b"\xff\xd8\xff" or payload[:4] == b"\x89PNG" for _, payload in images)
        assert reader.labels(np.arange(1, first)).tolist() == labels.tolist()
        assert reader.labels(reader.keys)[0] == first
        assert len(reader) == last


def test_golden_images_are_written_byte_for_byte(tmp_path):
    with IndexedRecordReader(GOLDEN / "train.rec", GOLDEN / "train.idx") as reader:
        records = {int(key): pack(*reader.read_image(key)) for key in reader.keys}
    rec, idx = write_records(tmp_path, records)
    assert rec.read_bytes() == (GOLDEN / "train.rec").read_bytes()
    assert idx.read_bytes() == (GOLDEN / "train.idx").read_bytes()


# ---- round trips


KEYS = {
    "in order": np.arange(400),
    "from one": np.arange(400) + 1,
    "shuffled": np.random.default_rng(0).permutation(400),
    "with gaps": np.arange(400) ** 2,
    "large": np.random.default_rng(0).permutation(400) * 10**15,
}


@pytest.mark.parametrize("seed, keys", list(enumerate(KEYS.values())), ids=list(KEYS))
def test_round_trip(seed, keys, tmp_path):
    payloads = list(random_payloads(seed, len(keys)))
    rec, idx = write_records(tmp_path, dict(zip(keys.tolist(), payloads, strict=True)))
    with IndexedRecordReader(rec, idx) as reader:
        assert reader.keys.tolist() == keys.tolist()
        assert [reader.read(key) for key in keys] == payloads
        assert [reader.read(key) for key in keys[::-1].tolist()] == payloads[::-1]


@pytest.mark.parametrize("seed", range(3))
def test_labels(seed, tmp_path, monkeypatch):
    """Numbers and arrays of labels, in single parts and, as the payload has magic words, in several."""
    monkeypatch.setattr(record_reader, "_CHUNK", 64)
    rng = np.random.default_rng(seed)
    expected = rng.integers(0, 100_000, 300).astype(np.float32)
    records = [
        pack(RecordHeader(0, label if n == 0 else np.array([label] + [7.0] * (n - 1)), 0, 0), payload)
        for label, n, payload in zip(expected, rng.integers(0, 4, 300), random_payloads(seed, 300), strict=True)
    ]
    with IndexedRecordReader(*write_records(tmp_path, records)) as reader:
        labels = reader.labels(reader.keys)
        assert labels.dtype == np.float32
        assert np.array_equal(labels, expected)
        some = rng.integers(0, 300, 200)
        assert np.array_equal(reader.labels(some), expected[some])
        assert reader.labels([]).shape == (0,)


@pytest.mark.parametrize("label", [0, 3.0, True, np.float32(0.1), np.int64(93430), [2.0], np.arange(5), (1, 2)])
def test_image_header_round_trip(label):
    header, payload = unpack(pack(RecordHeader(9, label, 2**64 - 1, 5), b"image"))
    assert payload == b"image"
    assert header.flag == (np.size(label) if np.ndim(label) else 0)
    assert np.array_equal(header.label, np.asarray(label, np.float32))
    assert (header.id, header.id2) == (2**64 - 1, 5)


def test_image_header_bytes():
    assert pack(RecordHeader(0, 1.5, 2, 3), b"x") == struct.pack("<IfQQ", 0, 1.5, 2, 3) + b"x"
    assert pack(RecordHeader(0, np.array([1.5, 2]), 2, 3), b"x") == struct.pack("<IfQQff", 2, 0, 2, 3, 1.5, 2) + b"x"


def test_offsets_beyond_4_gb(tmp_path):
    """The file is sparse: two records at its begin, a hole, two records behind 5 GB."""
    records = [pack(RecordHeader(0, float(n), n, 0), b"payload" * n) for n in range(4)]
    rec, idx = write_records(tmp_path, records[:2])
    far, _ = write_records(tmp_path, records[2:], "far")
    start = 5 * 2**30
    os.truncate(rec, start)
    overwrite(rec, start, far.read_bytes())
    idx.write_bytes(idx.read_bytes() + b"2\t%d\n3\t%d\n" % (start, start + len(part(0, records[2]))))
    with IndexedRecordReader(rec, idx) as reader:
        assert [reader.read(key) for key in range(4)] == records
        assert reader.labels(reader.keys).tolist() == [0, 1, 2, 3]
    overwrite(rec, start, b"\0")
    read_error(rec, idx, 2, start)


def test_index_with_windows_line_ends(tmp_path):
    rec, idx = write_records(tmp_path, [b"one", b"two"])
    idx.write_bytes(idx.read_bytes().replace(b"\n", b"\r\n"))
    with IndexedRecordReader(rec, idx) as reader:
        assert reader.read(1) == b"two"


def test_index_without_last_newline(tmp_path):
    rec, idx = write_records(tmp_path, [bytes(8 * n) for n in range(1, 30)])
    text = idx.read_bytes()
    idx.write_bytes(text[:-1])
    with IndexedRecordReader(rec, idx) as reader:
        assert reader.read(28) == bytes(8 * 29)
    idx.write_bytes(text[:-2])  # the last offset has lost a digit
    open_error(rec, idx, idx, "line 29", "key 28", "the file is cut short")


def test_reader_is_read_only_and_closes(tmp_path):
    rec, idx = write_records(tmp_path, [b"one"])
    reader = IndexedRecordReader(rec, idx)
    with pytest.raises(ValueError, match="read-only"):
        reader.keys[0] = 1
    assert reader.read(0) == b"one"
    reader.close()
    reader.close()
    error_of(lambda: reader.read(0), rec, "closed")


def test_open_by_relative_path(tmp_path, monkeypatch):
    rec, idx = write_records(tmp_path, [b"one"])
    monkeypatch.chdir(tmp_path)
    reader = IndexedRecordReader(rec.name, idx.name)
    monkeypatch.chdir("/")
    assert reader.read(0) == b"one"
    reader.close()


# ---- processes


def _receive(reader):
    """Initialises a worker process. A forked one has the parent's memory map, a spawned one a pickled reader."""
    global worker_reader
    worker_reader = reader


def _digests(keys):
    digests = [hashlib.sha256(worker_reader.read(key)).hexdigest() for key in keys]
    return digests, worker_reader._pid == os.getpid(), worker_reader._map is not None


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_at_once(method, tmp_path):
    records = list(random_payloads(1, 500))
    with IndexedRecordReader(*write_records(tmp_path, records)) as reader:
        assert reader.read(3) == records[3]  # so the parent has a map when it forks
        parents = reader._map
        orders = [np.random.default_rng(seed).permutation(500).tolist() for seed in range(6)]
        with multiprocessing.get_context(method).Pool(3, _receive, (reader,)) as pool:
            waiting = pool.map_async(_digests, orders, chunksize=1)
            assert all(reader.read(key) == records[key] for key in range(500))
            results = waiting.get(timeout=300)
        assert reader._map is parents
    for order, (digests, own, mapped) in zip(orders, results, strict=True):
        assert digests == [hashlib.sha256(records[key]).hexdigest() for key in order]
        assert own
        assert mapped


def test_pickle_holds_no_map(tmp_path):
    records = [b"one", b"two"]
    with IndexedRecordReader(*write_records(tmp_path, records)) as reader:
        assert reader.read(0) == b"one"
        copy = pickle.loads(pickle.dumps(reader))
    assert copy._map is None
    assert copy.read(1) == b"two"
    copy.close()


# ---- the file


def test_error_is_the_users():
    assert issubclass(RecordError, UserError)


def test_missing_files(tmp_path):
    rec, idx = write_records(tmp_path, [b"one"])
    open_error(tmp_path / "no.rec", idx, tmp_path / "no.rec", "No such file")
    open_error(rec, tmp_path / "no.idx", tmp_path / "no.idx", "No such file")
    error_of(lambda: IndexedRecordWriter(tmp_path / "no" / "a.rec", idx), tmp_path / "no" / "a.rec", "No such file")


def test_file_gone_before_first_read(tmp_path):
    rec, idx = write_records(tmp_path, [b"one"])
    reader = IndexedRecordReader(rec, idx)
    rec.unlink()
    error_of(lambda: reader.read(0), rec, "No such file")


def test_file_truncated_anywhere(tmp_path):
    """Every record of a file cut at any byte is read in full or is an error; the last one is an error."""
    payloads = [b"12345", MAGIC * 2, b"", b"1234" + MAGIC + b"567", b"89"]
    rec, idx = write_records(tmp_path, payloads)
    for size in reversed(range(rec.stat().st_size)):
        os.truncate(rec, size)
        try:
            reader = IndexedRecordReader(rec, idx)
        except RecordError as error:
            assert str(rec) in str(error) and f"{size} bytes" in str(error)
            continue
        with reader:
            for key, payload in enumerate(payloads[:-1]):
                assert reader.read(key) == payload
            error_of(lambda: reader.read(4), rec, f"record 4 at byte {rec_offset(idx, 4)}", f"byte {size}")  # noqa: B023


def rec_offset(idx, key):
    return dict(map(int, line.split(b"\t")) for line in idx.read_bytes().splitlines())[key]


@pytest.mark.parametrize("read", ["read", "labels"])
def test_file_that_shrinks_while_in_use(read, tmp_path):
    """An access beyond the present end of a mapped file would kill the process with SIGBUS."""
    rec, idx = write_records(tmp_path, [pack(RecordHeader(0, 1.0, 0, 0), bytes(10_000))] * 5)
    size = rec.stat().st_size
    with IndexedRecordReader(rec, idx) as reader:
        assert len(reader.read(4)) == 10_024
        os.truncate(rec, 15_000)
        error_of(lambda: reader.read(4) if read == "read" else reader.labels([4]), rec, f"from {size} to 15000 bytes")


def test_file_that_shrinks_before_first_read(tmp_path):
    rec, idx = write_records(tmp_path, [bytes(10_000)])
    with IndexedRecordReader(rec, idx) as reader:
        os.truncate(rec, 0)
        error_of(lambda: reader.read(0), rec, "from 10008 to 0 bytes")


# ---- the index


def test_empty_index(tmp_path):
    rec, idx = write_records(tmp_path, [])
    open_error(rec, idx, idx, "empty")


@pytest.mark.parametrize(
    "line",
    ["", "1", "1\t", "\t16", "1 16", "1\t16\t3", "one\t16", "1\t16.0", "1\t+16", "1\t\t16", "1\t" + "9" * 19, "\r"],
)
def test_malformed_index_line(line, tmp_path):
    rec, idx = write_records(tmp_path, [b"one", b"two", b"three"])
    idx.write_text(f"0\t0\n{line}\n2\t24\n", newline="")
    open_error(rec, idx, idx, "line 2", repr(line.rstrip("\r")), "key<TAB>offset", "copy it again")


def test_negative_numbers_in_index(tmp_path):
    rec, idx = write_records(tmp_path, [b"one", b"two"])
    idx.write_text("0\t0\n1\t-12\n")
    open_error(rec, idx, idx, "line 2", r"1\t-12", "negative")
    idx.write_text("-1\t0\n1\t12\n")
    open_error(rec, idx, idx, "line 1", r"-1\t0", "negative")


def test_binary_index(tmp_path):
    rec, idx = write_records(tmp_path, [b"one"])
    idx.write_bytes(os.urandom(10_000) + b"\n")
    open_error(rec, idx, idx, "line 1")
    open_error(rec, rec, rec, "line 1")


def test_long_line_is_cut_in_the_message(tmp_path):
    rec, idx = write_records(tmp_path, [b"one"])
    idx.write_bytes(b"x" * 10_000)
    assert len(open_error(rec, idx, idx, "line 1")) < 300 + len(str(idx))


def test_index_points_past_the_end(tmp_path):
    rec, idx = write_records(tmp_path, [b"one", b"two"])
    for offset in (20, 24, 28, 10**17):
        idx.write_text(f"0\t0\n7\t{offset}\n")
        open_error(rec, idx, idx, rec, "line 2", f"record 7 at byte {offset}", "24 bytes", "at or past its end")


def test_index_points_amid_a_record(tmp_path):
    rec, idx = write_records(tmp_path, [b"one", b"0123456789ab", b"two"])
    idx.write_text("0\t0\n1\t14\n")
    open_error(rec, idx, idx, rec, "line 2", "record 1 at byte 14", "no record begins there")
    idx.write_text("0\t0\n1\t20\n")
    read_error(rec, idx, 1, 20, "magic 0x33323130 instead of 0xced7230a", idx)


def test_duplicate_key(tmp_path):
    rec, idx = write_records(tmp_path, [b"one", b"two", b"three"])
    idx.write_text("5\t0\n3\t12\n5\t24\n")
    open_error(rec, idx, idx, "line 3", "key 5", "offset 24", "line 1", "offset 0")


@pytest.mark.parametrize("keys", [[0, 1, 2], [10, 30, 20]])
@pytest.mark.parametrize("unknown", [-1, 3, 15, 31, 2**70, -(2**70)])
def test_unknown_key(keys, unknown, tmp_path):
    rec, idx = write_records(tmp_path, dict.fromkeys(keys, b"one"))
    named = rec, idx, f"no record {unknown}", f"3 keys from {min(keys)} to {max(keys)}"
    with IndexedRecordReader(rec, idx) as reader:
        error_of(lambda: reader.read(unknown), *named)
        if abs(unknown) < 2**63:
            error_of(lambda: reader.labels([keys[0], unknown]), *named)


def test_index_cut_at_the_end_of_a_line(tmp_path):
    rec, idx = write_records(tmp_path, list(random_payloads(5, 60)))
    lines = idx.read_bytes().splitlines(keepends=True)
    for count in (1, 30, 59):
        idx.write_bytes(b"".join(lines[:count]))
        left = rec.stat().st_size - int(lines[count].split()[1])
        open_error(rec, idx, idx, rec, f"{left} bytes of records follow it", f"python data/reindex.py --force {rec}")


def test_index_without_its_first_lines(tmp_path):
    rec, idx = write_records(tmp_path, [b"one", b"two", b"three"])
    lines = idx.read_bytes().splitlines(keepends=True)
    idx.write_bytes(b"".join(lines[1:]))
    open_error(rec, idx, idx, rec, "its first record is at byte 12", f"python data/reindex.py --force {rec}")


def test_what_follows_the_last_record_need_not_be_a_record(tmp_path):
    """Space that was set aside is no record that the index lacks."""
    rec, idx = write_records(tmp_path, [b"one", b"two"])
    os.truncate(rec, 4096)
    with IndexedRecordReader(rec, idx) as reader:
        assert reader.read(1) == b"two"


def test_keys_at_the_same_offset(tmp_path):
    rec, idx = write_records(tmp_path, [b"one", b"two", b"three"])
    idx.write_text("0\t0\n" + "".join(f"{key}\t12\n" for key in range(1, 11)) + "11\t24\n")
    open_error(rec, idx, idx, "line 3", "keys 1 and 2 have the same offset 12", "9 of 12 lines repeat an offset")


@pytest.mark.parametrize("name", ["a.rec", "a.idx"])
def test_what_is_no_regular_file(name, tmp_path):
    rec, idx = write_records(tmp_path, [b"one"])
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: is not a regular file \(a pipe\)"):
        IndexedRecordReader(rec, idx)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match=rf"{name}: is not a regular file \(a device\)"):
        IndexedRecordReader(rec, idx)


# ---- the records


def raw(folder, *parts):
    """Write a file of a sound record 0 at byte 0, record 1 of `parts` at byte 12, and a sound record 2."""
    rec, idx = folder / "a.rec", folder / "a.idx"
    data = part(0, b"one") + b"".join(parts)
    rec.write_bytes(data + part(0, b"two"))
    idx.write_text(f"0\t0\n1\t12\n2\t{len(data)}\n")
    return rec, idx


def test_wrong_magic(tmp_path):
    rec, idx = raw(tmp_path, b"\x0b" + part(0, b"payload")[1:])
    read_error(rec, idx, 1, 12, "no record begins here", "magic 0xced7230b instead of 0xced7230a")


def test_wrong_magic_of_a_later_part(tmp_path):
    rec, idx = raw(tmp_path, part(1, b"1234"), b"\x0b" + part(3, b"payload")[1:])
    read_error(rec, idx, 1, 12, "byte 24 should begin its part 2", "magic 0xced7230b")


@pytest.mark.parametrize("cflag", [2, 3, 4, 7])
def test_continuation_where_a_record_should_begin(cflag, tmp_path):
    rec, idx = raw(tmp_path, part(cflag, b"payload"))
    read_error(rec, idx, 1, 12, "a first part should be here", f"cflag {cflag}")


@pytest.mark.parametrize("cflag", [0, 1, 4, 7])
def test_missing_final_part(cflag, tmp_path):
    rec, idx = raw(tmp_path, part(1, b"1234"), part(2, b""), part(cflag, b"next"))
    read_error(rec, idx, 1, 12, "the final part is missing: at byte 32", f"cflag {cflag}")


def test_missing_final_part_at_the_end_of_the_file(tmp_path):
    rec, idx = raw(tmp_path, part(1, b"1234"), part(2, b"5678"))
    os.truncate(rec, 36)
    idx.write_text("0\t0\n1\t12\n")
    read_error(rec, idx, 1, 12, "the final part is missing before the end of the file at byte 36")


def test_length_beyond_the_file(tmp_path):
    rec, idx = raw(tmp_path, part(0, b"payload", 2**29 - 1))
    tracemalloc.start()
    read_error(rec, idx, 1, 12, "a payload of 536870911 bytes from byte 20", "end of the file at byte 40")
    with IndexedRecordReader(rec, idx) as reader:
        error_of(lambda: reader.labels([0, 1]), rec, "record 0 at byte 0", "3 bytes are too few")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("length", [0, 1, 4, 5, 6, 9, 10, 12, 16, 20])
def test_wrong_length_within_the_file(length, tmp_path):
    rec, idx = raw(tmp_path, part(0, b"payload!", length))
    read_error(rec, idx, 1, 12, f"it ends at byte {20 + length}, but no record does")


def test_wrong_length_of_a_part_that_is_not_the_last(tmp_path):
    rec, idx = raw(tmp_path, part(1, b"1234", 3), part(3, b""))
    read_error(rec, idx, 1, 12, "the part at byte 12 of 3 bytes, not a multiple of four")


def test_parts_that_add_up_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(record_reader, "LENGTH_LIMIT", 64)
    rec, idx = raw(tmp_path, part(1, bytes(40)), part(3, bytes(20)))
    read_error(rec, idx, 1, 12, "add up to 64 bytes")


def test_damage_anywhere_in_a_header_is_found(tmp_path):
    """Each bit of magic and length of each part is turned: the payloads stay right, or there is an error.

    The payloads need no padding: a length that includes its padding is the same as that of a payload that ends so.
    """
    payloads = [b"one!", b"1234" + MAGIC + b"5678", b"", MAGIC + b"1234" + MAGIC, b"last"]
    rec, idx = write_records(tmp_path, payloads)
    sound = rec.read_bytes()
    begins = [at for at in range(0, len(sound), 4) if sound[at : at + 4] == MAGIC]
    assert len(begins) == 8
    for bit in (bit for at in begins for bit in range(8 * at, 8 * at + 64)):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        rec.write_bytes(damaged)
        errors = 0
        with IndexedRecordReader(rec, idx) as reader:
            for key, payload in enumerate(payloads):
                try:
                    assert reader.read(key) == payload
                except RecordError as error:
                    errors += 1
                    assert f"{rec}: record {key} at byte {rec_offset(idx, key)}" in str(error)
        assert errors > 0, bit


def test_garbage_is_an_error(tmp_path):
    """Random words after the magic never hang, and never give more bytes than the file holds."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        words = b"".join(MAGIC if rng.random() < 0.3 else rng.bytes(3) + b"\0" for _ in range(50))
        rec, idx = raw(tmp_path, MAGIC, words)
        with IndexedRecordReader(rec, idx) as reader:
            try:
                assert len(reader.read(1)) <= len(words)
            except RecordError as error:
                assert "record 1 at byte 12" in str(error)


# ---- image headers


def test_image_header_cut_short(tmp_path):
    rec, idx = raw(tmp_path, part(0, bytes(23)))
    with IndexedRecordReader(rec, idx) as reader:
        for read in (reader.read_image, lambda key: reader.labels([key])):
            error_of(lambda: read(1), rec, "record 1 at byte 12", "23 bytes are too few for an image header of 24")  # noqa: B023
    error_of(lambda: unpack(bytes(23)), "image record: 23 bytes")
    error_of(lambda: unpack(bytes(23), source="a.png"), "a.png: 23 bytes")


@pytest.mark.parametrize("count", [3, 2**32 - 1])
def test_labels_beyond_the_record(count, tmp_path):
    record = struct.pack("<IfQQff", count, 0, 0, 0, 1, 2)
    rec, idx = raw(tmp_path, part(0, record))
    with IndexedRecordReader(rec, idx) as reader:
        for read in (reader.read_image, lambda key: reader.labels([key])):
            error_of(lambda: read(1), rec, "record 1 at byte 12", f"announces {count} labels", "only 32 bytes")  # noqa: B023


@pytest.mark.parametrize(
    "header",
    [
        RecordHeader(0, [], 0, 0),
        RecordHeader(0, 1.0, -1, 0),
        RecordHeader(0, 1.0, 0, 2**64),
        RecordHeader(0, 1e300, 0, 0),
    ],
)
def test_pack_refuses(header):
    error_of(lambda: pack(header, b""), "image header")


# ---- the writer


def test_writer_refuses(tmp_path):
    rec = tmp_path / "a.rec"
    with IndexedRecordWriter(rec, tmp_path / "a.idx") as writer:
        writer.write(3, b"one")
        error_of(lambda: writer.write(3, b"two"), rec, "record 3 at byte 12", "written already")
        error_of(lambda: writer.write(-1, b"two"), rec, "record -1 at byte 12", "negative")
        error_of(lambda: writer.write(4, bytes(2**29)), rec, "record 4 at byte 12", "536870912 bytes")
        writer.write(4, b"two")
        writer.close()
    with IndexedRecordReader(rec, tmp_path / "a.idx") as reader:
        assert [reader.read(key) for key in reader.keys] == [b"one", b"two"]


def test_a_file_replaced_before_another_process_opens_it_is_an_error(tmp_path):
    """Even by one of the same size: the index is of the first."""
    with IndexedRecordWriter(tmp_path / "a.rec", tmp_path / "a.idx") as writer:
        writer.write(0, b"first")
    reader = IndexedRecordReader(tmp_path / "a.rec", tmp_path / "a.idx")
    (tmp_path / "b.rec").write_bytes((tmp_path / "a.rec").read_bytes().replace(b"first", b"other"))
    (tmp_path / "b.rec").replace(tmp_path / "a.rec")
    with pytest.raises(RecordError, match=r"a\.rec: was replaced or written to while in use"):
        reader.read(0)


@pytest.mark.parametrize("added", [0, 3], ids=["of the same size", "of a larger size"])
@pytest.mark.parametrize("read", ["read", "labels"])
def test_a_file_changed_while_in_use_is_an_error(read, added, tmp_path):
    """Overwrites the file as `cp other.rec a.rec` does."""
    rec, idx = write_records(tmp_path, [pack(RecordHeader(0, 1.0, 0, 0), b"first")] * 3)
    other, _ = write_records(tmp_path, [pack(RecordHeader(0, 2.0, 0, 0), b"other")] * (3 + added), "other")
    os.utime(rec, (1, 1))  # long ago, for a clock that ticks slowly
    with IndexedRecordReader(rec, idx) as reader:
        assert reader.read_image(2)[1] == b"first"
        with other.open("rb") as source, rec.open("r+b") as target:
            target.write(source.read())
        again = {"read": lambda: reader.read(2), "labels": lambda: reader.labels([2])}[read]
        error_of(again, f"{rec}: was written to while in use; copy it again")
        with multiprocessing.get_context("fork").Pool(1, _receive, (reader,)) as pool:  # it opens the file for itself
            error_of(lambda: pool.apply(_digests, ([2],)), f"{rec}: was replaced or written to while in use")


def test_a_file_that_is_touched_while_in_use_is_read_on(tmp_path):
    rec, idx = write_records(tmp_path, [pack(RecordHeader(0, 1.0, 0, 0), b"first")] * 3)
    with IndexedRecordReader(rec, idx) as reader:
        assert reader.read_image(2)[1] == b"first"
        for second in (1, 2):
            os.utime(rec, (second, second))
            assert reader.read_image(2)[1] == b"first" and reader.labels([1]) == [1]
        with multiprocessing.get_context("fork").Pool(1, _receive, (reader,)) as pool:
            assert pool.apply(_digests, ([0, 1, 2],))[1]
        os.truncate(rec, 40)
        error_of(lambda: reader.read(2), rec, "shrank from")


def test_a_file_replaced_by_a_copy_is_read_by_new_processes(tmp_path):
    rec, idx = write_records(tmp_path, [b"first"] * 3)
    with IndexedRecordReader(rec, idx) as reader:
        (tmp_path / "copy").write_bytes(rec.read_bytes())
        (tmp_path / "copy").replace(rec)
        assert [reader.read(key) for key in range(3)] == [b"first"] * 3


@pytest.mark.parametrize("where", [0, 0.25, 0.5, 1])
def test_other_content_is_found_wherever_it_is(where, tmp_path):
    """Changed bytes in a large file are noticed at any offset."""
    rng = np.random.default_rng(0)
    rec, idx = write_records(tmp_path, [rng.bytes(30_000) for _ in range(200)])
    size = rec.stat().st_size
    os.utime(rec, (1, 1))
    with IndexedRecordReader(rec, idx) as reader:
        first = reader.read(0)
        with rec.open("r+b") as file:
            file.seek(int(where * (size - 40_000)))
            file.write(rng.bytes(40_000))
        error_of(lambda: reader.read(0), rec, "was written to while in use")
        assert first


def test_an_open_file_is_read_to_the_end_after_it_is_replaced(tmp_path):
    rec, idx = write_records(tmp_path, [b"first"] * 3)
    other, _ = write_records(tmp_path, [b"other"] * 3, "other")
    with IndexedRecordReader(rec, idx) as reader:
        assert reader.read(0) == b"first"
        other.replace(rec)
        assert [reader.read(key) for key in range(3)] == [b"first"] * 3
        rec.unlink()
        assert reader.read(2) == b"first"


def test_no_file_is_left_open(tmp_path):
    rec, idx = write_records(tmp_path, [b"one"])
    gc.collect()  # files of earlier tests
    opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    readers = [IndexedRecordReader(rec, idx) for _ in range(3)]
    assert [reader.read(0) for reader in readers] == [b"one"] * 3
    assert len(os.listdir("/proc/self/fd")) > opened  # noqa: PTH208
    readers.pop().close()
    readers.clear()  # nor by one that is never closed
    assert len(os.listdir("/proc/self/fd")) == opened  # noqa: PTH208
