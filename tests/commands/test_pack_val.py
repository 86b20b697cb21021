"""data/pack.py --val: people held out of training, in val.bin; and packing that is interrupted."""

import json
import sys

import pytest

from data import pack
from data.packing.photo import Photo
from tests.helpers.commands import SMALL, run_command
from tests.helpers.paths import ROOT
from tests.helpers.photo_sets import run_pack, write_faces
from utils.datasets.face_dataset import FaceDataset
from utils.datasets.verification.bins import read_bin

FILES = ["people.csv", "property", "train.idx", "train.rec", "val.bin"]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """Ten people with six photos each, packed with three of them held out."""
    folder = tmp_path_factory.mktemp("val")
    photos = write_faces(folder / "photos", people=10, photos=6)
    done = run_pack(folder / "photos", folder / "out", "--val", "0.3")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"{folder / 'out'}: 42 photos of 7 people; val.bin: 80 pairs of 3 others\n"
        f"train with: ./train.sh rec={folder / 'out'} num_classes=0 val_targets=val output=output/out\n"
    )
    return folder, photos


def test_nobody_is_trained_and_verified_on(held_out):
    folder, photos = held_out
    person_of = {face: name[:3] for name, face in photos.items()}
    data = FaceDataset(folder / "out")
    trained = [person_of[data.reader.read_image(key)[1]] for key in data.keys]
    images, same = read_bin(folder / "out" / "val.bin")
    verified = [person_of[image] for image in images]
    assert len({*trained}) == 7 and len({*verified}) == 3 and {*trained} | {*verified} == {*person_of.values()}
    assert same.tolist() == [True, False] * 40
    assert [one == other for one, other in zip(verified[::2], verified[1::2], strict=True)] == same.tolist()
    pairs = {frozenset(pair) for pair in zip(images[::2], images[1::2], strict=True)}
    assert len(pairs) == 80 and all(len(pair) == 2 for pair in pairs)
    lines = (folder / "out" / "people.csv").read_text().splitlines()[1:]
    assert lines == [f"{i},{name},6" for i, name in enumerate(sorted({*trained}))] + [
        f"val,{name},6" for name in sorted({*verified})
    ]
    assert data.label_values.tolist() == [sorted({*trained}).index(name) for name in trained]


def test_the_draw_is_seeded(held_out):
    folder, _ = held_out
    assert run_pack(folder / "photos", folder / "again", "--val", "0.3").returncode == 0
    assert run_pack(folder / "photos", folder / "other", "--val", "0.3", "--seed", "1", "--pairs", "59").returncode == 0
    for name in FILES:
        ours, again, other = ((folder / out / name).read_bytes() for out in ("out", "again", "other"))
        assert ours == again and (name in ("property", "train.idx") or ours != other), name
    assert len(read_bin(folder / "other" / "val.bin")[1]) == 40  # whole pairs of both kinds in each fold


def test_training_verifies_on_the_people_held_out(held_out, tmp_path):
    folder, _ = held_out
    fields = [f"rec={folder / 'out'}", "num_classes=0", "val_targets=val", f"output={tmp_path}", "max_steps=2"]
    settings = [*SMALL, "eval_step=1", "save_initial=0", f"log_dir={tmp_path}/logs"]
    done = run_command(ROOT, "./train.sh", "--config", "config/config_demo.py", *settings, *fields)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "training.log").read_text()
    assert "val" in log and (tmp_path / "2backbone.pth").is_file(), log
    done = run_command(ROOT, sys.executable, "eval/eval.py", f"output={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "val" in json.dumps(json.loads((tmp_path / "results.json").read_text()))


@pytest.mark.parametrize(
    ("people", "photos", "options", "message"),
    [
        (3, 6, ["--val", "0.5"], "--val 0.5: holds out 2 of 3 people; training needs at least two others"),
        (
            9,
            3,
            ["--val", "0.1"],
            "--val: the 2 people held out make 6 pairs of one person and 9 of two, but 10 of each",
        ),
        (9, 3, ["--val", "1"], "--val 1.0: should be a fraction of the people, at least 0 and less than 1"),
        (9, 3, ["--val", "nan"], "--val nan: should be a fraction"),
        (9, 3, ["--val", "0.5", "--pairs", "19"], "--pairs 19: should be at least 20"),
        (9, 3, ["--seed", "-1"], "--seed -1: should be at least 0"),
    ],
)
def test_bad_options_are_one_line(tmp_path, people, photos, options, message):
    write_faces(tmp_path / "photos", people, photos)
    done = run_pack(tmp_path / "photos", tmp_path / "out", *options)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}"), done.stderr
    assert done.stderr.count("\n") == 1 and [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize("n_read", [1, 50])
def test_ctrl_c_leaves_nothing(held_out, tmp_path, monkeypatch, n_read):
    """Neither while train.rec is written nor while val.bin is."""
    read = []
    read_face = Photo.read_face

    def interrupted(photo):
        read.append(photo)
        if len(read) > n_read:
            raise KeyboardInterrupt
        return read_face(photo)

    monkeypatch.setattr(Photo, "read_face", interrupted)
    monkeypatch.setattr(sys, "argv", ["pack.py", str(held_out[0] / "photos"), str(tmp_path / "out"), "--val", "0.3"])
    with pytest.raises(KeyboardInterrupt):
        pack.main()
    assert len(read) == n_read + 1 and not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(held_out, tmp_path):
    command = f'ulimit -f 8 && exec "$0" data/pack.py {held_out[0] / "photos"} {tmp_path / "out"}'
    done = run_command(ROOT, "bash", "-c", command, sys.executable, new_interpreter=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "train.rec: File too large" in done.stderr and not list(tmp_path.iterdir())
