"""data/pack.py: photos in folders, made a training set."""

import sys

import numpy as np
import pytest

from data.packing.sources import find_people
from data.packing.writer import write_training_set
from data.reindex import read_keys
from tests.helpers.commands import run_command
from tests.helpers.faces import draw_face, encode_image
from tests.helpers.paths import ROOT
from utils.datasets.data_folder import check_training_files
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.image_header import SUFFIXES
from utils.datasets.recordio.record_format import unpack
from utils.errors import UserError


@pytest.fixture
def photos(tmp_path):
    """Three photos of Ann, two of Bob, and what is left out."""
    rng = np.random.default_rng(0)
    for name in ("Bob/2.png", "Bob/1.jpg", "Ann/a.JPG", "Ann/b.jpeg", "Ann/c.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            encode_image(draw_face(len(path.parent.name), rng), ".png" if name.endswith("png") else ".jpg")
        )
    (tmp_path / "photos" / "empty").mkdir()
    (tmp_path / "photos" / "Ann" / "notes.txt").touch()
    (tmp_path / "photos" / "Ann" / "._a.jpg").touch()  # as macOS writes beside a photo
    return tmp_path / "photos"


def packed(photos, out):
    return run_command(ROOT, sys.executable, "data/pack.py", photos, out, new_interpreter=True)


def test_photos_become_training_data_byte_for_byte(photos, tmp_path):
    done = packed(photos, tmp_path / "new" / "out")
    assert done.returncode == 0
    assert done.stderr == f"{photos}: 1 file left out: 1 .txt\n{photos}: 1 folder without photos, as empty\n"
    out = tmp_path / "new" / "out"
    assert done.stdout == (
        f"{out}: 5 photos of 2 people\ntrain with: ./train.sh rec={out} num_classes=0 eval_step=0 output=output/out\n"
    )
    assert (out / "people.csv").read_text() == "label,person,photos\n0,Ann,3\n1,Bob,2\n"
    data = FaceDataset(tmp_path / "new" / "out")
    names = ["Ann/a.JPG", "Ann/b.jpeg", "Ann/c.png", "Bob/1.jpg", "Bob/2.png"]
    assert [data.reader.read_image(key)[1] for key in data.keys] == [(photos / name).read_bytes() for name in names]
    assert data.label_values.tolist() == [0, 0, 0, 1, 1] and data.count_classes() == 2
    ranges = [unpack(data.reader.read(key))[0].label.tolist() for key in (0, 6, 7)]
    assert ranges == [[6, 8], [1, 4], [4, 6]] and len(data.reader) == 8
    assert read_keys(data.reader.rec)[0].tolist() == list(range(8))


def test_photos_in_further_folders_are_packed(photos, tmp_path):
    """As data/align.py writes them, in the folders of the photos: the first folder is the person."""
    before = packed(photos, tmp_path / "flat")
    for name in ("Ann/b.jpeg", "Bob/2.png", "Bob/1.jpg"):
        path = photos / name
        (path.parent / "z" / "y").mkdir(parents=True, exist_ok=True)
        path.rename(path.parent / "z" / "y" / path.name)
    done = packed(photos, tmp_path / "deep")
    assert done.returncode == 0 and done.stderr == before.stderr and "5 photos of 2 people" in done.stdout
    data = FaceDataset(tmp_path / "deep")
    names = ["Ann/a.JPG", "Ann/c.png", "Ann/z/y/b.jpeg", "Bob/z/y/1.jpg", "Bob/z/y/2.png"]
    assert [data.reader.read_image(key)[1] for key in data.keys] == [(photos / name).read_bytes() for name in names]
    assert data.label_values.tolist() == [0, 0, 0, 1, 1]
    (tmp_path / "top").mkdir()
    photos.rename(tmp_path / "top" / "train")
    failed = packed(tmp_path / "top", tmp_path / "out")
    assert failed.returncode == 2 and f"name {tmp_path}/top/train\n" in failed.stderr
    assert "top: photos of 1 person (.jpg, .jpeg, .png, .bmp, .webp); training needs at least two" in failed.stderr


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_that_training_reads_is_packed(tmp_path, suffix):
    """The advice that data/pack.py packs a folder of such photos is true."""
    for person in ("Ann", "Bob"):
        (tmp_path / "photos" / person).mkdir(parents=True)
        (tmp_path / "photos" / person / f"1{suffix}").write_bytes(
            encode_image(draw_face(0, np.random.default_rng(0)), suffix)
        )
    with pytest.raises(UserError, match=r"pack\.py"):
        check_training_files(tmp_path / "photos")
    (tmp_path / "out").mkdir()
    write_training_set(tmp_path / "out", find_people(tmp_path / "photos"))
    images, labels = np.empty((2, 112, 112, 3), np.uint8), np.empty(2)
    FaceDataset(tmp_path / "out").read_into([0, 1], images, labels)
    assert (
        labels.tolist() == [0, 1] and np.abs(images[0] - draw_face(0, np.random.default_rng(0)).astype(int)).mean() < 20
    )


def test_what_cannot_be_packed_is_named_and_nothing_is_left(photos, tmp_path):
    rng = np.random.default_rng(0)
    (photos / "Bob" / "0.jpg").write_bytes(encode_image(draw_face(0, rng)[:100]))
    done = packed(photos, tmp_path / "out")
    assert done.returncode == 2 and "Bob/0.jpg: an image of 112×100 pixels; training needs" in done.stderr
    (photos / "Bob" / "0.jpg").write_bytes(b"text")
    done = packed(photos, tmp_path / "out")
    assert done.returncode == 2 and "Bob/0.jpg: not a JPEG, PNG, BMP or WebP image; training needs" in done.stderr
    (photos / "Bob" / "0.jpg").unlink()
    done = packed(photos / "Bob", tmp_path / "out")
    assert done.returncode == 2 and "Bob: photos of 0 people (.jpg, " in done.stderr
    done = packed(tmp_path / "none", tmp_path / "out")
    assert done.returncode == 2 and "none: No such file" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    done = packed(photos, photos)
    assert done.returncode == 2 and "already exists; name another folder" in done.stderr


def test_a_photo_listed_twice_is_packed_once_and_has_one_label(photos, tmp_path):
    lines = ["Ann/a.JPG,Ann"] * 3 + ["Ann/b.jpeg,Ann", "Bob/1.jpg,Bob", "Bob/2.png,Bob"]
    (photos / "list.csv").write_text("\n".join(lines))
    assert "4 photos of 2 people" in packed(photos / "list.csv", tmp_path / "out").stdout
    (photos / "list.csv").write_text("\n".join([*lines, "Ann/a.JPG,Bob"]))
    failed = packed(photos / "list.csv", tmp_path / "other")
    assert failed.returncode == 2 and failed.stderr.endswith("a.JPG: has the labels 'Ann' and 'Bob'; keep one\n")
    assert packed(photos, tmp_path / ("long" * 80)).returncode == 2
