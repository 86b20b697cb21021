"""data/unpack.py: a training set becomes folders of photos, and back."""

import sys

import numpy as np
import pytest

from tests.helpers.commands import run_command
from tests.helpers.faces import draw_face, encode_image, write_data
from tests.helpers.paths import ROOT
from tests.helpers.photo_sets import write_faces
from tests.helpers.records import write_records
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.image_header import SUFFIXES
from utils.datasets.recordio.record_format import RecordHeader, pack


def run_unpack(source, out, **how):
    return run_command(ROOT, sys.executable, "data/unpack.py", source, out, **how)


def run_pack(source, out):
    return run_command(ROOT, sys.executable, "data/pack.py", source, out)


def test_pack_and_unpack_undo_each_other(tmp_path):
    photos = write_faces(tmp_path / "photos", people=3, photos=2)
    assert run_pack(tmp_path / "photos", tmp_path / "set").returncode == 0
    done = run_unpack(tmp_path / "set", tmp_path / "out", new_interpreter=True)
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 'out'}: 6 images of 3 people\n", done.stderr
    files = sorted(path for path in (tmp_path / "out").rglob("*.*"))
    assert [str(path.relative_to(tmp_path / "out")) for path in files] == [
        "00000/00000001.jpg",
        "00000/00000002.png",
        "00001/00000003.jpg",
        "00001/00000004.png",
        "00002/00000005.jpg",
        "00002/00000006.png",
    ]
    assert [path.read_bytes() for path in files] == list(photos.values())
    assert run_pack(tmp_path / "out", tmp_path / "again").returncode == 0
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "set" / name).read_bytes()


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
