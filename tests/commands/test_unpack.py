"""data/unpack.py: a training set becomes folders of photos, and back."""

import csv
import json
import os
import sys

import numpy as np
import pytest

from tests.helpers.commands import run_command
from tests.helpers.faces import draw_face, encode_image, write_data
from tests.helpers.paths import ROOT
from tests.helpers.photo_sets import run_pack, write_faces, write_tar
from tests.helpers.records import write_records
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.image_header import SUFFIXES
from utils.datasets.recordio.record_format import RecordHeader, pack


def run_unpack(source, out, **how):
    return run_command(ROOT, sys.executable, "data/unpack.py", source, out, **how)


def test_pack_and_unpack_undo_each_other(tmp_path):
    photos = write_faces(tmp_path / "photos", people=3, photos=2)
    assert run_pack(tmp_path / "photos", tmp_path / "set").returncode == 0
    done = run_unpack(tmp_path / "set", tmp_path / "out", new_interpreter=True)
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 'out'}: 6 images of 3 people\n", done.stderr
    files = sorted(path for path in (tmp_path / "out").rglob("*.*"))
    assert [str(path.relative_to(tmp_path / "out")) for path in files] == [
        "p00/00000001.jpg",
        "p00/00000002.png",
        "p01/00000003.jpg",
        "p01/00000004.png",
        "p02/00000005.jpg",
        "p02/00000006.png",
    ]
    assert [path.read_bytes() for path in files] == list(photos.values())
    assert run_pack(tmp_path / "out", tmp_path / "again").returncode == 0
    for name in ("train.rec", "train.idx", "property", "people.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "set" / name).read_bytes()
    (tmp_path / "set" / "people.csv").unlink()
    assert run_unpack(tmp_path / "set", tmp_path / "labels").returncode == 0
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["00000", "00001", "00002"]


def test_the_names_of_people_are_restored(tmp_path):
    """Those of a CSV too, numbers by value, and any that a folder can have."""
    photos = write_faces(tmp_path, people=12, photos=1)
    names = ["10", "9", "Zoë, Dr", os.fsdecode(b"Ren\xe9"), "two\nlines", "a b", *"cdefgh"]
    lines = [[photo, name] for photo, name in zip(photos, names, strict=True)]
    with (tmp_path / "set.csv").open("w", newline="", errors="surrogateescape") as file:
        csv.writer(file).writerows(lines)
    done = run_pack(tmp_path / "set.csv", tmp_path / "set")
    assert done.returncode == 0 and run_unpack(tmp_path / "set", tmp_path / "out").returncode == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names}
    assert next((tmp_path / "out" / "9").iterdir()).read_bytes() == photos["p01/0.jpg"]
    assert run_pack(tmp_path / "out", tmp_path / "again").returncode == 0
    for name in ("train.rec", "people.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "set" / name).read_bytes()


def test_names_that_are_no_folder(tmp_path):
    """Nothing is written outside OUT, nor to a hidden folder: the label is the name."""
    photos = write_faces(tmp_path / "photos", people=8, photos=1)
    bad = ["../x", "/etc/x", "a/b", ".", "..", ".hidden", "é" * 128]
    members = {f"{i}.jpg": photo for i, photo in enumerate(photos.values())}
    members |= {f"{i}.json": json.dumps({"label": label}).encode() for i, label in enumerate([*bad, "good"])}
    assert run_pack(write_tar(tmp_path / "set.tar", members), tmp_path / "set").returncode == 0
    before = {*tmp_path.rglob("*")}
    done = run_unpack(tmp_path / "set", tmp_path / "new" / "out")
    assert done.returncode == 0 and done.stdout == f"{tmp_path}/new/out: 8 images of 8 people\n"
    assert done.stderr == "7 people whose names cannot be that of a folder: the label is, in its place\n"
    assert {path for path in {*tmp_path.rglob("*")} - before if path.is_dir()} == {tmp_path / "new"} | {
        tmp_path / "new" / "out" / name for name in ("", "good", *(f"{i:05}" for i in (0, 1, 2, 3, 4, 5, 7)))
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,person,photos\n0,a\0b,2\n1,Bob,2\n", ""),
        ("label,person,photos\n0,Ann,2\n1,Ann,2\n", "people.csv: 2 labels have the name 'Ann'; give each its own; "),
        ("label,person,photos\nx,Ann,2\n", "people.csv line 2: ['x', 'Ann', '2'] is not label,person,photos; "),
        ("name\nAnn\n", "people.csv line 1: ['name'] is not label,person,photos; without this file the labels are"),
        (f"label,person,photos\n0,{'x' * 200_000},1", "people.csv line 2: field larger than field limit"),
        ("label,person,photos\n0,00001,2\n1,/,2\n", "train.rec: two people have the folder '00001'; rename one"),
    ],
)
def test_a_changed_list_of_names(tmp_path, text, message):
    write_faces(tmp_path / "photos", people=2, photos=2)
    assert run_pack(tmp_path / "photos", tmp_path / "set").returncode == 0
    (tmp_path / "set" / "people.csv").write_text(text)
    done = run_unpack(tmp_path / "set", tmp_path / "out")
    assert done.returncode == (2 if message else 0) and message in done.stderr, done.stderr
    assert (tmp_path / "out").exists() == (not message) and "Traceback" not in done.stderr


def test_a_verification_set_is_one_line(tmp_path):
    done = run_unpack(tmp_path / "my val.bin", tmp_path / "out")
    assert done.returncode == 2 and done.stderr == (
        f"error: {tmp_path}/my val.bin: should be a folder with train.rec, not a verification set, which names no "
        f"people; python data/info.py '{tmp_path}/my val.bin' --sheet FILE.png draws some of its pairs\n"
    )


def test_sets_of_other_tools(tmp_path):
    """Labels in any order, keys with gaps, some labels as arrays, and images of every format and size."""
    rng = np.random.default_rng(0)
    images = {2**40 + i: encode_image(draw_face(0, rng)[: 112 - i], SUFFIXES[i]) for i in range(5)}
    labels = {key: float(123_456 * (i % 2)) for i, key in enumerate(images)}
    records = {
        key: pack(RecordHeader(0, np.array([labels[key], 9]) if key % 2 else labels[key], key, 0), image)
        for key, image in images.items()
    }
    write_records(tmp_path, records, "train")
    assert run_unpack(tmp_path, tmp_path / "out").returncode == 0
    suffixes = (".jpg", ".jpg", ".png", ".bmp", ".webp")
    for suffix, (key, image) in zip(suffixes, images.items(), strict=True):
        assert (tmp_path / "out" / f"{labels[key]:06.0f}" / f"{key}{suffix}").read_bytes() == image


def test_the_same_images_as_training_reads(tmp_path):
    data = FaceDataset(write_data(tmp_path / "data"))
    assert run_unpack(tmp_path / "data", tmp_path / "out").returncode == 0
    for index, key in enumerate(data.keys):
        (path,) = (tmp_path / "out").glob(f"*/{key:08}.*")
        assert path.read_bytes() == data.reader.read_image(key)[1] and int(path.parent.name) == data.label_values[index]


@pytest.mark.parametrize(
    ("label", "content", "message"),
    [
        (0.0, b"text", "train.rec: record 1 at byte 0: not a JPEG, PNG, BMP or WebP image"),
        (0.5, b"\xff\xd8\xff", "train.rec: record 1 at byte 0: label 0.5 is not one of the 2 classes"),
    ],
)
def test_bad_records_are_one_line(tmp_path, label, content, message):
    good = pack(RecordHeader(0, 1.0, 2, 0), encode_image(draw_face(0, np.random.default_rng(0))))
    write_records(tmp_path, {1: pack(RecordHeader(0, label, 1, 0), content), 2: good}, "train")
    done = run_unpack(tmp_path, tmp_path / "out")
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path}/{message}"), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.idx", "train.rec"]


def test_what_is_no_set_or_exists_is_one_line(tmp_path):
    done = run_unpack(tmp_path / "none", tmp_path / "out")
    assert done.returncode == 2 and "none/train.rec: No such file" in done.stderr
    data = write_data(tmp_path / "data")
    done = run_unpack(data, data)
    assert done.returncode == 2 and done.stderr == f"error: {data}: already exists; name another folder, or delete it\n"
    (data / "train.idx").unlink()
    done = run_unpack(data, tmp_path / "out")
    assert done.returncode == 2 and f"make it from the records: python data/reindex.py {data}" in done.stderr
