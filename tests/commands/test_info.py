"""data/info.py: what is in a training set, and its bad records."""

import pickle
import sys

import numpy as np
import pytest

from tests.helpers.commands import run_command
from tests.helpers.faces import draw_face, encode_image
from tests.helpers.paths import ROOT
from tests.helpers.photos import decode
from tests.helpers.records import overwrite, write_records
from utils.datasets.recordio.record_format import RecordHeader, pack


def run_info(folder, *options, **how):
    return run_command(ROOT, sys.executable, "data/info.py", folder, *options, **how)


def write_set(folder, counts, extra=()):
    """Writes a plain set: counts[i] images of label i, every third a PNG, then extra (label, content)."""
    rng = np.random.default_rng(0)
    records = []
    for label, count in enumerate(counts):
        for i in range(count):
            face = encode_image(draw_face(label, rng), ".jpg" if i % 3 else ".png")
            records.append((float(label), face))
    folder.mkdir(exist_ok=True)
    packed = [pack(RecordHeader(0, label, i, 0), face) for i, (label, face) in enumerate([*records, *extra])]
    write_records(folder, packed, "train")
    return [face for _, face in records]


def test_a_good_set(tmp_path):
    faces = write_set(tmp_path, [1, 2, 3, 9, 0, 12, 12])
    (tmp_path / "property").write_text("7,112,112")
    done = run_info(tmp_path, "--sheet", tmp_path / "sheet.png", new_interpreter=True)
    assert done.returncode == 0, done.stderr
    sizes = sorted(map(len, faces))
    assert done.stdout.splitlines() == [
        f"39 images of 6 people, {sum(sizes) / 1e6:.1f} MB",
        "property: 7 people, 1 of them without images",
        "pixels: 112×112 39",
        "formats: jpg 25, png 14",
        f"bytes of an image: {sizes[0]:,} to {sizes[-1]:,}, median {sizes[19]:,}",
        "images of a person: 1 to 12, median 6",
        "              1         1 ██████████████",
        "            2–3         2 ███████████████████████████",
        "            4–7         0",
        "           8–15         3 ████████████████████████████████████████",
        "people with fewer than 5 images: 3 (labels 0, 1, 2)",
        "bad records: 0",
    ]
    sheet = decode((tmp_path / "sheet.png").read_bytes())
    assert sheet.shape == (6 * (40 + 150), 8 + 12 * 120, 3)
    first = decode(faces[0])
    np.testing.assert_array_equal(sheet[40:152, 8:120], first)  # the only image of person 0


@pytest.fixture
def bad_set(tmp_path):
    """Good faces of two people, then a text, a small image, half an image, a bad label, and two damaged records."""
    rng = np.random.default_rng(1)
    face = encode_image(draw_face(0, rng))
    extra = [
        (0.0, b"text"),
        (1.0, encode_image(draw_face(0, rng)[:100])),
        (1.0, face[: len(face) // 4]),
        (-1.0, face),
        (1.0, face),
    ]
    write_set(tmp_path, [6, 6], extra)
    last = int((tmp_path / "train.idx").read_text().splitlines()[-1].split("\t")[1])
    overwrite(tmp_path / "train.rec", last, b"xxxx")
    return tmp_path


def test_bad_records_are_named(bad_set):
    done = run_info(bad_set, "--sheet", bad_set / "sheet.png")
    assert done.returncode == 2
    assert done.stderr == f"error: {bad_set}/train.rec: 5 bad records; training ends at each of them\n"
    lines = done.stdout.splitlines()
    assert lines[0].startswith("17 images of 2 people, ") and "bad records: 5" in lines
    assert lines[1] == "pixels: 112×112 14, 112×100 1"
    named = [line.partition(" at byte ") for line in lines[lines.index("bad records: 5") + 1 :]]
    assert [name for name, *_ in named] == [f"  {bad_set}/train.rec: record {key}" for key in range(12, 17)]
    assert [problem.partition(": ")[2] for *_, problem in named][:4] == [
        "not a JPEG, PNG, BMP or WebP image",
        "an image of 112×100 pixels",
        "damaged: it cannot be decoded",
        "label -1 is not the number of a class",
    ]
    assert "no record begins here" in lines[-1]
    assert decode((bad_set / "sheet.png").read_bytes()).shape[0] == 3 * (40 + 150)


def test_a_set_of_bad_records_alone(tmp_path):
    write_set(tmp_path, [], [(0.0, b"text"), (0.0, b"")])
    done = run_info(tmp_path, "--sheet", tmp_path / "sheet.png")
    assert done.returncode == 2 and "2 bad records" in done.stderr
    lines = ["2 images of 0 people, 0.0 MB", "pixels: none", "formats: none", "bytes of an image: 0 to 4, median 2"]
    assert done.stdout.splitlines()[:5] == [*lines, "bad records: 2"]


def test_a_set_of_one(tmp_path):
    (face,) = write_set(tmp_path, [1])
    (tmp_path / "property").write_text("1,112,112")
    done = run_info(tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(f"1 image of 1 person, {len(face) / 1e6:.1f} MB\n")


def test_a_verification_set(tmp_path):
    """Images of several pairs count once; the sheet shows both images of a pair beside each other."""
    rng = np.random.default_rng(2)
    faces = [encode_image(draw_face(i // 2, rng), ".jpg" if i % 2 else ".png") for i in range(20)]
    images = [*faces, faces[0], faces[3], faces[1], faces[4]]
    path = tmp_path / "val.bin"
    path.write_bytes(pickle.dumps((images, [True] * 10 + [False] * 2)))
    done = run_info(path, "--sheet", tmp_path / "sheet.png", new_interpreter=True)
    assert done.returncode == 0, done.stderr
    sizes = sorted(map(len, faces))
    assert done.stdout.splitlines() == [
        f"12 pairs of 20 images, {sum(sizes) / 1e6:.1f} MB",
        "of one person: 10 pairs, 83.3%",
        "pixels: 112×112 20",
        "formats: png 10, jpg 10",
        f"bytes of an image: {sizes[0]:,} to {sizes[-1]:,}, median {np.median(sizes):,.0f}",
        "bad images: 0",
    ]
    sheet = decode((tmp_path / "sheet.png").read_bytes())
    assert sheet.shape == (2 * 40 + 3 * 150, 8 + 12 * 120, 3)
    for row, column, face in ((40, 0, 0), (40, 1, 1), (40 + 150, 7, 19), (2 * 40 + 2 * 150, 3, 4)):
        top, left = row, 8 + 120 * column
        np.testing.assert_array_equal(sheet[top : top + 112, left : left + 112], decode(faces[face]))


def test_bad_images_of_a_verification_set(tmp_path):
    face = encode_image(draw_face(0, np.random.default_rng(0)))
    path = tmp_path / "val.BIN"
    path.write_bytes(pickle.dumps(([face, face, face, face[: len(face) // 4]], [1, 0])))
    done = run_info(path, "--sheet", tmp_path / "sheet.png")
    assert done.returncode == 2 and done.stderr == f"error: {path}: 1 bad image; evaluation ends at each of them\n"
    assert done.stdout.splitlines()[-2:] == ["bad images: 1", "  image 3 of 4, in pair 1: cannot be decoded"]
    assert decode((tmp_path / "sheet.png").read_bytes()).shape[0] == 3 * (40 + 150)
    path.write_bytes(b"text")
    done = run_info(path)
    assert done.returncode == 2 and f"error: {path}: not a verification set, or cut short" in done.stderr


def test_problems_with_files_are_one_line(tmp_path):
    done = run_info(tmp_path / "none")
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path}/none/train.rec: No such file")
    write_set(tmp_path, [3, 3])
    done = run_info(tmp_path, "--sheet", tmp_path / "none" / "sheet.png")
    assert done.returncode == 2
    assert done.stderr == f"error: --sheet {tmp_path}/none/sheet.png: No such file or directory\n"
    lines = (tmp_path / "train.idx").read_text().splitlines(keepends=True)
    (tmp_path / "train.idx").write_text("".join(lines[:2] + lines[3:]))
    done = run_info(tmp_path)
    assert done.returncode == 2 and "is not in it" in done.stderr
    (tmp_path / "train.idx").unlink()
    done = run_info(tmp_path)
    assert done.returncode == 2 and f"python data/reindex.py {tmp_path}" in done.stderr
