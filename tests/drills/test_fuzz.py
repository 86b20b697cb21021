"""Files of strangers, damaged in thousands of ways: each ends in a clear error or in a right result.

Each test fuzzes in a process of its own, with a limit on its memory and on its time: a crash, a hang or a memory bomb
fails one test here and ends nothing else. What was read last stays in the test's folder. One by hand:

    python -m tests.drills.test_fuzz bins FOLDER
"""

import io
import json
import os
import pickle
import random
import re
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from backbones.augment_cells import AugmentCell
from backbones.genotypes import SEARCH_SPACE, SOFTMAX_CASIA, parse_genotype, to_json, to_text
from tests.helpers.faces import encode_image, write_data
from tests.helpers.paths import ROOT
from tests.helpers.pickles import memory_bytes, read_data_pickle, zip_checkpoint
from tests.helpers.training import CPU, small_config
from utils.checkpoints.weights import load_weights, read_weights, save_atomic
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.image_dataset import MAX_CLASSES
from utils.datasets.recordio.reader import IndexedRecordReader
from utils.datasets.recordio.record_format import IndexedRecordWriter, RecordHeader, pack
from utils.datasets.training_data import load_training_data
from utils.datasets.verification.bins import load_bin, read_bin
from utils.errors import UserError
from utils.logs.meters import MeanMeter
from utils.losses.arcface import ArcFace
from utils.training.arcface_task import ArcFaceTask
from utils.training.checkpointing.progress import TrainProgress
from utils.training.checkpointing.resume import resolve_resume
from utils.training.checkpointing.state import TrainingState
from utils.training.checkpointing.step_ranges import StepRanges
from utils.training.optimizer_step import OptimizerStep

MINUTES = 5  # that a test may take on a busy machine; alone, one takes a quarter of one
PEAK = 512 << 20  # bytes of memory that reading any file here may take
CEILING = 4 << 30  # bytes of addresses, so that a bomb ends its process and not the machine
MAGIC = bytes.fromhex("0a23d7ce")
EXTREMES = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**29 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]


class Target(NamedTuple):
    """One way in for a stranger's bytes."""

    read: Callable[[bytes], None]  # raises UserError, and AssertionError where the result is wrong
    names: str  # what every error names
    sound: list[bytes]  # whole files, which are damaged
    words: list[bytes]  # what the format is made of
    cases: list[bytes]  # bombs, and what once went wrong
    examples: int


# ------------------------------------------------------------------------------------------------- damage


@st.composite
def damaged(draw: st.DrawFn, target: Target) -> bytes:
    """A sound file with up to four kinds of damage; at times just anything."""
    if draw(st.integers(0, 9)) == 0:
        return b"".join(draw(st.lists(st.sampled_from(target.words) | st.binary(max_size=8), max_size=20)))
    data = bytearray(draw(st.sampled_from(target.sound)))
    for _ in range(draw(st.sampled_from([1, 1, 2, 4]))):
        draw(st.sampled_from(DAMAGES))(draw, data, draw(st.integers(0, len(data))), target.words)
    return bytes(data)


def flip(draw, data, at, words):
    for byte in data[at : at + 1]:
        data[at] = byte ^ 1 << draw(st.integers(0, 7))


def replace(draw, data, at, words):
    new = draw(st.binary(min_size=1, max_size=8))
    data[at : at + len(new)] = new


def replace_by_a_word(draw, data, at, words):
    new = draw(st.sampled_from(words))
    data[at : at + len(new)] = new


def exchange_words(draw, data, at, words):
    old, new = draw(st.sampled_from(words)), draw(st.sampled_from(words))
    if (found := data.find(old, at)) >= 0:
        data[found : found + len(old)] = new


def insert(draw, data, at, words):
    data[at:at] = draw(st.sampled_from(words) | st.binary(min_size=1, max_size=8))


def delete(draw, data, at, words):
    del data[at : at + draw(st.integers(1, 64))]


def truncate(draw, data, at, words):
    del data[at:]


def duplicate(draw, data, at, words):
    data[at:at] = data[at : at + draw(st.integers(1, 256))]


def swap(draw, data, at, words):
    size, other = draw(st.integers(1, 64)), draw(st.integers(0, len(data)))
    first, second = sorted((at, other))
    a, b = data[first : min(first + size, second)], data[second : second + size]
    data[second : second + size], data[first : first + len(a)] = a, b


def set_an_extreme(draw, data, at, words):
    size = draw(st.sampled_from([1, 2, 4, 8]))
    number = draw(st.sampled_from(EXTREMES)) % 256**size
    data[at : at + size] = number.to_bytes(size, draw(st.sampled_from(["little", "big"])))


DAMAGES = [
    flip, replace, replace_by_a_word, exchange_words, insert, delete, truncate, duplicate, swap, set_an_extreme
]  # fmt: skip


# ----------------------------------------------------------------------------------------------- the fuzzer


def fuzz(target: Target) -> Counter[str]:
    """Reads every case and the damaged files. Counts what came of them."""
    outcomes: Counter[str] = Counter()
    peak = memory_bytes("VmHWM") + PEAK

    def read(content: bytes) -> None:
        try:
            target.read(content)
            outcomes["results"] += 1
        except UserError as error:
            check_message(error, target.names)
            outcomes["errors"] += 1
        assert memory_bytes("VmHWM") < peak, "too much memory"

    @settings(
        max_examples=target.examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # to shrink would take longer than a hang may
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(target))
    def read_damaged(content: bytes) -> None:
        read(content)

    for content in [*target.sound, *target.cases]:
        read(content)
    read_damaged()
    return outcomes


def check_message(error: UserError, names: str) -> None:
    message = str(error)
    assert names in message and message.isprintable() and len(message) < 1000, ascii(message)


def attempt(action: Callable[[], object], names: str) -> object:
    """The action's result, or None where it ends in a clear error."""
    try:
        return action()
    except UserError as error:
        check_message(error, names)
        return None


# --------------------------------------------------------------------------------------------- record files


def payload_at(content: bytes, at: int) -> bytes | None:
    """The record at this offset by the letter of the format; None where there is none."""
    parts: list[bytes] = []
    while len(content) >= at + 8:
        magic, word = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        cflag, length = word >> 29, word & (1 << 29) - 1
        part = content[at + 8 : at + 8 + length]
        if magic != MAGIC or len(part) < length or cflag not in ((2, 3) if parts else (0, 1)):
            return None
        parts.append(part)
        at += 8 + (length + 3) // 4 * 4
        if cflag in (0, 3):
            return MAGIC.join(parts)
    return None


def index_of(text: bytes) -> dict[int, int]:
    """Keys and offsets of an index file."""
    lines = text.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")
    matches = [re.fullmatch(rb"(\d+)\t(\d+)", line) for line in lines]
    assert all(matches)
    return {int(match[1]): int(match[2]) for match in matches if match}


def write_records(folder: Path, records: list[bytes]) -> tuple[Path, Path]:
    rec, idx = folder / "train.rec", folder / "train.idx"
    with IndexedRecordWriter(rec, idx) as writer:
        for key, record in enumerate(records):
            writer.write(key, record)
    return rec, idx


def records(folder: Path) -> Iterator[Target]:
    payloads = [
        b"12345", MAGIC * 2, b"", b"1234" + MAGIC + b"567", pack(RecordHeader(0, 7.0, 1, 0), b"an image"),
        pack(RecordHeader(2, np.array([3.0, 4.0]), 2, 0), MAGIC + b"another"), bytes(40),
    ]  # fmt: skip
    rec, idx = write_records(folder, payloads)
    sound, sound_index = rec.read_bytes(), idx.read_bytes()
    offsets = [*index_of(sound_index).values(), len(sound)]

    def read_record_file(content: bytes) -> None:
        rec.write_bytes(content)
        with IndexedRecordReader(rec, idx) as reader:
            for key, (resume_point, end) in enumerate(pairwise(offsets)):
                payload = attempt(partial(reader.read, key), f"{rec}: record {key} at byte {resume_point}")
                assert payload is None or payload == payload_at(content, resume_point)
                if content[resume_point : end + 8] == sound[resume_point : end + 8]:  # whole, up to the next one's head
                    assert payload == payloads[key]
                check_label(reader, content, key, resume_point)

    def check_label(reader: IndexedRecordReader, content: bytes, key: int, at: int) -> None:
        label = attempt(partial(reader.labels, [key]), str(rec))
        if label is not None:
            record = payload_at(content, at)
            assert record is not None
            flag, number = struct.unpack_from("<If", record)
            expected = struct.unpack_from("<f", record, 24) if flag else [number]
            np.testing.assert_array_equal(label, np.float32(expected))

    def read_index_file(text: bytes) -> None:
        rec.write_bytes(sound)
        idx.write_bytes(text)
        with IndexedRecordReader(rec, idx) as reader:
            expected = index_of(text)
            assert reader.keys.tolist() == list(expected)
            for key, offset in expected.items():
                payload = attempt(partial(reader.read, key), f"{rec}: record {key} at byte {offset}")
                assert payload is None or payload == payload_at(sound, offset)
            assert attempt(partial(reader.read, max(expected) + 1), str(rec)) is None

    lengths = [struct.pack("<I", cflag << 29 | n) for cflag in range(8) for n in (0, 1, 4, 8, 2**29 - 1)]
    endless = (MAGIC + struct.pack("<I", 1 << 29)) + (MAGIC + struct.pack("<I", 2 << 29)) * 100_000
    yield Target(read_record_file, str(rec), [sound], [MAGIC, *lengths], [b"", endless, MAGIC * 100_000], 1000)
    bombs = [b"1\t" + b"9" * 10**7, b"9" * 10**7 + b"\t1\n", b"\n" * 10**6, b"1\t0\n" * 10**6, b"0\t" * 10**6, b"\0"]
    words = [b"\t", b"\n", b"\r\n", b"-", b" ", b"0", b"12", b"99999999999999999999", "٣".encode(), b"1\t0\n"]
    yield Target(read_index_file, str(idx), [sound_index], words, [b"", *bombs], 1000)


# -------------------------------------------------------------------------------------------------- images


def png(width: int, height: int, rows: int) -> bytes:
    """A black PNG that announces a size and has so many rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(rows * (1 + (width + 7) // 8)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def with_size(image: bytes, head: bytes, behind: int, size: bytes) -> bytes:
    """The image with another size written at so many bytes behind a head in it."""
    at = image.index(head) + behind
    return image[:at] + size + image[at + len(size) :]


def image_bombs() -> list[bytes]:
    """Small files that announce or decode to gigabytes."""
    black, size = np.zeros((112, 112, 3), np.uint8), struct.pack("<HH", 30_000, 30_000)
    progressive = cv2.imencode(".jpg", black, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    return [
        png(60_000, 60_000, 0),
        png(32_000, 32_000, 10),
        png(12_000, 12_000, 12_000),
        png(2**17, 1, 1),  # resized, as a face would be, it is 4 GB
        png(1, 2**17, 2**17),
        with_size(encode_image(black), b"\xff\xc0", 5, struct.pack(">HH", 32_000, 32_000)),
        with_size(progressive, b"\xff\xc2", 5, struct.pack(">HH", 32_000, 32_000)),
        with_size(png(1, 1, 1), b"IDAT", -4, b"\x98\xf1\x3f\x59"),  # a chunk of 2.5 GB
        with_size(encode_image(black, ".bmp"), b"BM", 18, struct.pack("<ii", 32_000, -32_000)),
        with_size(encode_image(black, ".webp"), b"VP8L", 9, struct.pack("<I", 16_382 << 14 | 16_382)),
        b"GIF89a%b\x80%b,%b%b\0\x02\x02\x4c\x01\0;" % (size, bytes(8), bytes(4), size),
    ]


def flat(colour: int, kind: str, size: int = 112) -> bytes:
    return encode_image(np.full((size, size, 3), colour, np.uint8), kind)


def faces(folder: Path) -> Iterator[Target]:
    """Training data: images and labels of record files, and the file `property`."""
    end = pack(RecordHeader(2, np.array([6.0, 6.0]), 0, 0), b"")
    shown = [flat(9, ".png"), flat(99, ".jpg"), png(112, 112, 112), flat(199, ".webp"), flat(9, ".png", 100)]
    labels = [0.0, np.array([1.0, 5.0]), 2.0, 1.0, 0.0]
    people = [pack(RecordHeader(0, label, 0, 0), image) for label, image in zip(labels, shown, strict=True)]
    rec, idx = write_records(folder, [end, *people])
    sound, offsets = rec.read_bytes(), list(index_of(idx.read_bytes()).values())
    (folder / "property").unlink(missing_ok=True)  # of an earlier run

    def read_training_data(content: bytes) -> None:
        rec.write_bytes(content)
        dataset = FaceDataset(folder)
        for index, key in enumerate(dataset.keys.tolist()):
            face = attempt(partial(dataset.__getitem__, index), f"{rec}: record {key} at byte")
            if face is not None:
                check_face(*face, payload_at(content, offsets[key]))
        classes = dataset.count_classes()
        assert 1 <= classes <= MAX_CLASSES
        for few in (2, classes):
            attempt(partial(dataset.check_labels, few), str(rec))

    def check_face(image: np.ndarray, label: int, record: bytes | None) -> None:
        assert record is not None
        flag, number = struct.unpack_from("<If", record)
        assert label == int(struct.unpack_from("<f", record, 24)[0] if flag else number)
        pixels = cv2.imdecode(np.frombuffer(record[24 + 4 * flag :], np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(image, pixels)
        assert image.shape == (112, 112, 3)

    def with_last(label: float, image: bytes) -> bytes:
        record = pack(RecordHeader(0, label, 0, 0), image)
        return sound[: offsets[-1]] + MAGIC + struct.pack("<I", len(record)) + record + bytes(-len(record) % 4)

    numbers = [float("nan"), float("inf"), -float("inf"), 1e30, -1.0, 1.5, 2.0**24]
    cases = [with_last(0.0, image) for image in image_bombs()] + [with_last(n, shown[0]) for n in numbers]
    cases += [sound[:32] + struct.pack("<f", n) + sound[36:] for n in numbers]  # the end of the images' keys
    words = [MAGIC, b"\xff\xc0", b"\xff\xd8\xff", b"\xff", b"RIFF", b"VP8X", b"BM", struct.pack("<f", float("nan"))]
    yield Target(read_training_data, str(rec), [sound], words, cases, 1000)

    def read_property(text: bytes) -> None:
        (folder / "property").write_bytes(text)
        assert 1 <= dataset.count_classes() <= MAX_CLASSES

    write_records(folder, [end, *people])
    dataset = FaceDataset(folder)
    words = [b",", b"-", b"0", b"9999", b"\n", "٣²".encode()]
    yield Target(read_property, str(folder / "property"), [b"85742,112,112"], words, [b"", b"9" * 10**7], 300)


# ---------------------------------------------------------------------------------------- verification sets


def pickled(images: list[bytes], flags: list[bool]) -> list[bytes]:
    """A set as different programs write it."""
    arrays = [np.frombuffer(image, np.uint8) for image in images]
    sets = [(images, flags), (arrays, np.array(flags)), ([bytearray(i) for i in images], [np.bool_(f) for f in flags])]
    objects = np.array(images, object), np.array(flags, object)
    sets += [(images, [float(flag) for flag in flags]), (images, np.array(flags, np.float64)), objects]
    python2 = b"](" + b"".join(b"U" + bytes([len(image)]) + image for image in images) + b"e](\x88\x89e\x86."
    return [pickle.dumps(content, protocol) for content in sets for protocol in (0, 2, 5)] + [python2]


def called(module: bytes, name: bytes, *arguments: bytes) -> bytes:
    return b"c" + module + b"\n" + name + b"\n(" + b"".join(arguments) + b"tR"


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def bins(folder: Path) -> Iterator[Target]:
    path = folder / "set.bin"
    images = [png(8, 8, 8), png(112, 112, 112), png(9, 30, 30), png(1, 1, 1)]

    def read_set(content: bytes) -> None:
        path.write_bytes(content)
        encoded, issame = read_bin(path)
        assert len(encoded) == 2 * len(issame) > 0 and issame.dtype == bool
        assert all(type(image) is bytes for image in encoded)
        if content.startswith(b"\x80") and b"_codecs" not in content:  # else with escapes, or as UTF-8
            assert all(image in content for image in encoded)
        decoded, again = load_bin(path)
        assert decoded.shape == (len(encoded), 112, 112, 3) and decoded.dtype == np.uint8
        assert again.tolist() == issame.tolist()

    deep = b")" + b"\x85" * 500_000  # tuples in tuples
    number = b"\x8b" + struct.pack("<i", 10**6) + b"\x11" * 10**6  # of a million bytes
    dtype = called(b"numpy", b"dtype", text(b"u1"))
    array = b"cnumpy.core.multiarray\n_reconstruct\n)R"
    small = b"U" + bytes([len(images[0])]) + images[0]
    cases = [
        called(b"numpy", b"dtype", deep) + b".",  # its hash overflows the stack
        called(b"numpy", b"dtype", b")" + b"\x85" * 5000) + b".",  # nor can it be printed
        called(b"_codecs", b"encode", text(b"a"), deep) + b".",
        number + b"q\x01" + array + b"(K\x01(" + b"h\x01" * 4 + b"t" + dtype + b"\x89U\x01atb.",  # a product of hours
        array + b"(K\x01(J\xff\xff\xff\xffJ\xff\xff\xff\xfft" + dtype + b"\x89U\x01atb.",  # a shape of (-1, -1)
        b"](" + small + b"q\x01" + b"h\x01" * 149_999 + b"e](" + b"\x88" * 75_000 + b"e\x86.",  # 5 GB decoded
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
        b"](" + small * 2 + b"e](\x88e\x86" + b"r\xff\xff\xff\x7f.",  # a memo of 2^31 places
        b"I" + b"9" * 10**7 + b"\n.",
        *(pickle.dumps(([image, image], [True])) for image in image_bombs()),
    ]
    words = b"( ) ] e a t R b N . B u1 O8 I01".split()
    words += [bytes([code]) for code in (0x85, 0x86, 0x88, 0x93, 0x94, 0x95)]
    words += [b"\x80\x02", b"\x80\x05", b"q\x01", b"h\x01", b"K\x01", b"C\x04", b"U\x03abc", b"\n", array, dtype, small]
    words += [b"cnumpy\ndtype\n", b"c_codecs\nencode\n", b"cos\nsystem\n"]
    yield Target(read_set, str(path), pickled(images, [True, False]), words, cases, 2000)


# ------------------------------------------------------------------------------------------------ genotypes


def genotypes(folder: Path) -> Iterator[Target]:
    built = set()

    def read_genotype(content: bytes) -> None:
        genotype = parse_genotype(content.decode("utf-8", "surrogateescape"))
        log_capture = to_text(genotype)
        assert (
            parse_genotype(log_capture) == parse_genotype(to_json(genotype)) == parse_genotype(genotype) == genotype
            and to_text(parse_genotype(log_capture)) == log_capture
        )
        if log_capture not in built:
            built.add(log_capture)
            check_cells(genotype)

    def check_cells(genotype) -> None:
        state = torch.zeros(1, 1, 8, 8)
        for reduction, concat, side in ((False, genotype.normal_concat, 8), (True, genotype.reduce_concat, 4)):
            cell = AugmentCell(genotype, 1, 1, 2, False, reduction).eval()  # two channels a node
            assert cell(state, state).shape == (1, 2 * len(concat), side, side)

    small = "Genotype(normal=[[('dw_conv_3x3', 0), ('none', 1)], [('max_pool_3x3', 2)]], normal_concat=range(2, 4), "
    small += "reduce=[[('skip_connect', 0)]], reduce_concat=[2])"
    sound = [log_capture.encode() for log_capture in (small, small, to_json(parse_genotype(small)), SOFTMAX_CASIA)]
    words = [*SEARCH_SPACE, *"[](),'\"0125-{}é😀\n\r\f", "[2]", "range(2, 4)", "range(0, 3)", "normal", "reduce_concat"]
    words += ["null", "True", "1e999", "lambda: ", "\\N{a}"]
    normal = "Genotype(normal={}, normal_concat=[2], reduce=[[('none', 0)]], reduce_concat=[2])"
    values = ["range(0, 10**9)", "[[('none', 10**10**10)]]", "[x]", "[y := 1]", "{1: 2}", "f'{1}'", "*a", "\ud800"]
    values += ["9" * 5000, "0x" + "f" * 5000, "0x" + "f" * 10**7, "-" * 900 + "1", "[" * 150 + "]" * 150, "(" * 10**6]
    values += ["f(a=" * 90, "{1:" * 90, "a." * 30_000 + "a", "a<" * 30_000 + "a", "a and " * 10**6 + "a"]
    json_ = '{{"normal":{}, "normal_concat":0, "reduce":0, "reduce_concat":0}}'
    json_values = ["[" * 900 + "]" * 900, "[" * 10**6 + "]" * 10**6, "9" * 5000, "9" * 10**6, '{"normal":' * 10**5]
    cases = ["\ufeff" + small, *map(normal.format, values), *map(json_.format, json_values)]
    sources = [case.encode("utf-8", "surrogatepass") for case in cases]
    yield Target(read_genotype, "genotype", sound, [word.encode() for word in words], sources, 2000)


# ---------------------------------------------------------------------------------------------- checkpoints

HUGE = b"\x8a\x08" + struct.pack("<q", 10**12)  # as a pickle has a number


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3))


def saved(zip_file: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(module().state_dict(), buffer, _use_new_zipfile_serialization=zip_file)
    return buffer.getvalue()


def with_pickle(content: bytes) -> bytes:
    return zip_checkpoint(content, *(value.numpy().tobytes() for value in module().state_dict().values()))


WORDS = b"( ) } ] u t R Q tR N . 1.bias weight meta cuda:0 _rebuild_sparse_tensor _rebuild_parameter".split()
WORDS += b"FloatStorage LongStorage UntypedStorage HalfStorage QUInt8Storage ComplexFloatStorage".split()
WORDS += [b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"q\x01", b"h\x01", b"\x85", b"\x86", b"\x88", HUGE]
WORDS += [b"K\x00", b"K\x01", b"K\x03", b"J\xff\xff\xff\xff"]
WORDS += [b"cos\nsystem\n", b"cbuiltins\nbytearray\n", b"ctorch\nSize\n"]


def checkpoints(folder: Path) -> Iterator[Target]:
    """What is read of a file: of the file damaged, and of the pickle in it."""
    path = folder / "1header.pth"

    def read_checkpoint(content: bytes) -> None:
        path.write_bytes(content)
        weights = read_weights(path)
        assert isinstance(weights, dict)
        for value in weights.values():
            assert isinstance(value, torch.Tensor) and value.layout is torch.strided and value.device.type == "cpu"
            storage, resume_point = value.untyped_storage(), value.storage_offset()
            last = resume_point + sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
            assert value.numel() == 0 or 0 <= resume_point <= last < storage.nbytes() // value.element_size()
            torch.empty(0, dtype=torch.uint8).set_(storage).sum()  # every byte can be read

    inner = read_data_pickle(saved(True))
    pickles = [
        inner.replace(b"K\x06t", HUGE + b"t"),
        inner.replace(b"K\x03K\x02\x86", HUGE * 2 + b"\x86"),
        inner[:-1] + b"r\xff\xff\xff\x7f.",  # a memo of 2^31 places
        b"\x80\x02}q\x00.",
        b"\x80\x02cbuiltins\nbytearray\n" + HUGE + b"\x85R.",
        b"\x80\x02" + b"]" * 10**5,
    ]
    files = [saved(True), saved(False)]
    yield Target(read_checkpoint, str(path), files, WORDS, [b"", zip_checkpoint(inner, *[b""] * 6), *pickles], 1000)
    yield Target(lambda inside: read_checkpoint(with_pickle(inside)), str(path), [inner], WORDS, pickles, 1000)


def networks(folder: Path) -> Iterator[Target]:
    """What is loaded into a network, and checkpoints that torch alone does not survive."""
    path = folder / "1header.pth"
    network, inner = module(), read_data_pickle(saved(True))

    def load(content: bytes) -> None:
        path.write_bytes(content)
        load_weights(network, path)
        loaded = network.state_dict()
        for key, value in read_weights(path).items():
            expected = value.to(loaded[key].dtype)
            torch.testing.assert_close(loaded[key], expected, rtol=0, atol=0, equal_nan=True)

    deep = b"\x80\x02})" + b"\x85" * 500_000 + b"K\x01s."  # a key of tuples in tuples: its hash overflows the stack
    large = inner.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x006")  # its first storage is the seventh record
    large = large.replace(b"K\x06t", b"J" + struct.pack("<i", 250 * 10**6) + b"t")
    cases = [with_pickle(inner.replace(b"1.bias", b"\n\x1b[2Jx")), with_pickle(deep), deep]
    cases.append(zip_checkpoint(large, *[b""] * 6, inflated=1000))
    yield Target(load, str(path), [saved(True), saved(False)], WORDS, cases, 300)


# ----------------------------------------------------------------------------------------------------- runs


def runs(folder: Path) -> Iterator[Target]:
    """A checkpoint.pth from which a run goes on, and the pickle in it."""
    data = write_data(folder / "data")
    config = small_config(folder, data)
    loader, _ = load_training_data(config, CPU)
    made = OptimizerStep(ArcFaceTask(nn.BatchNorm1d(3), ArcFace(3, 2)), loader.dataset.keys, config, CPU)
    state = TrainingState(made.task, made, MeanMeter(CPU), loader, config, CPU)
    content = state.state_dict(TrainProgress(7, StepRanges.from_list([5]), 16))
    path = Path(config.output, "checkpoint.pth")
    save_atomic(path, content)
    sound = path.read_bytes()

    def go_on(content: bytes) -> None:
        path.write_bytes(content)
        resume_point = resolve_resume(config, ArcFaceTask, loader, CPU)
        task = ArcFaceTask(nn.BatchNorm1d(3), ArcFace(3, 2))
        update, means = OptimizerStep(task, loader.dataset.keys, config, CPU), MeanMeter(CPU)
        state = TrainingState(task, update, means, loader, config, CPU)
        state.load_state_dict(resume_point)
        zero = torch.zeros(())
        means.add({"Loss": zero, **dict.fromkeys(means.sums, zero)}, zero.bool())
        assert all(type(mean) is float for mean in means.compute_and_reset().values())
        again = state.state_dict(resume_point.progress)
        assert again and again["position"]["step"] == resume_point.progress.step and again["bad_steps"] >= 0

    inner = read_data_pickle(sound)
    with zipfile.ZipFile(io.BytesIO(sound)) as file:
        names = [name for name in file.namelist() if "/data/" in name]
        storages = [file.read(name) for name in sorted(names, key=lambda name: int(name.rpartition("/")[2]))]
    words = [*WORDS, *(part.encode() for part in ("step", "ends", "seen", "ranks", "means", "sums", "random", "way"))]
    words += [b"K\x07", b"K\x05", b"K\x10", b"N", b"\x88", b"]", b"}", b"ArcFaceTask", b"backbone", b"header"]

    def go_on_from_another(seed: bytes) -> None:
        buffer = io.BytesIO()
        torch.save(altered(content, random.Random(seed)), buffer)
        go_on(buffer.getvalue())

    yield Target(go_on, str(folder), [sound], words, [b"", zip_checkpoint(inner, *storages, inflated=1000)], 200)
    yield Target(lambda inside: go_on(zip_checkpoint(inside, *storages)), str(folder), [inner], words, [], 400)
    yield Target(go_on_from_another, str(folder), [bytes(range(8))], [b"a", b"b"], [], 1000)


STRANGE = [
    None, -1, 0, 2**63, 1.5, float("nan"), "", "a\n\x1b[2J", b"ab", [], [1], {}, {"a": 1},
    torch.zeros(3), torch.zeros(()), torch.zeros(0), torch.zeros((), dtype=torch.complex64),
    torch.zeros(1).expand(10**6), torch.full((3,), torch.nan),
]  # fmt: skip


def altered(state: Any, rng: random.Random) -> Any:
    """A copy of nested dicts and lists with a part of it exchanged, or missing, at any depth."""
    if isinstance(state, dict | list) and state and rng.random() < 0.85:
        key = rng.choice(list(state) if isinstance(state, dict) else range(len(state)))
        copy = state.copy()
        if rng.random() < 0.1:
            del copy[key]
        else:
            copy[key] = altered(state[key], rng)
        return copy
    return rng.choice(STRANGE)


# ------------------------------------------------------------------------------------------------ the tests

FORMATS = {made.__name__: made for made in (records, faces, bins, genotypes, checkpoints, networks, runs)}


@pytest.mark.parametrize("name", FORMATS)
def test_every_file_ends_in_a_clear_error_or_a_right_result(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.drills.test_fuzz", name, tmp_path],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path / "hypothesis")},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60 * MINUTES,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}, the last input is in {tmp_path}\n{done.stderr[-4000:]}"
    for outcomes in map(json.loads, done.stdout.splitlines()):
        assert outcomes["errors"] > 50 and outcomes["results"] > 10, outcomes  # else nothing has been tried


def main(name: str, folder: Path) -> None:
    ceiling = memory_bytes("VmSize") + CEILING
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
    folder.mkdir(exist_ok=True)
    for target in FORMATS[name](folder):
        print(json.dumps(fuzz(target)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
