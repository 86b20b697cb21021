"""data/align.py: folders of photos become folders of aligned faces, with a report."""

import csv
import io
import json
import os
import re
import shutil
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from data.alignment.opener import AligningOpener
from data.alignment.record import JOURNAL
from eval.inputs.pairs import PhotoPairs
from eval.inputs.sets import load_photo_set
from tests.helpers.commands import run_command
from tests.helpers.paths import ROOT
from tests.helpers.photos import decode, draw_photo, write_people
from tests.helpers.training import CPU
from utils.filesystem import lock_folder


def align(photos, out, *options, **how):
    return run_command(ROOT, sys.executable, "data/align.py", photos, out, "--workers", 1, *options, **how)


def report(out) -> dict[str, dict[str, str]]:
    """Returns the lines of the report by photo."""
    text = (out / "report.csv").read_bytes().decode("utf-8", "surrogateescape")
    return {line["photo"]: line for line in csv.DictReader(io.StringIO(text, newline=""))}


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    """Photos of two people, and one that is a copy; their aligned faces."""
    folder = tmp_path_factory.mktemp("people")
    names = write_people(folder / "photos")
    (folder / "photos" / "person 1" / "copy.jpg").write_bytes((folder / "photos" / names[0]).read_bytes())
    done = align(folder / "photos", folder / "out", new_interpreter=True)
    assert done.returncode == 0, done.stderr
    assert "5 photos: 5 faces aligned" in done.stdout and "same file: 1, for example person 1/copy.jpg" in done.stdout
    return folder


def test_each_person_keeps_a_folder(aligned):
    files = sorted(str(path.relative_to(aligned / "out")) for path in (aligned / "out").glob("*/*"))
    assert files == ["person 0/0.png", "person 0/1.png", "person 1/0.png", "person 1/1.png", "person 1/copy.png"]
    for name in files:
        assert decode((aligned / "out" / name).read_bytes()).shape == (112, 112, 3)
    lines = report(aligned / "out")
    assert {line["status"] for line in lines.values()} == {"aligned"} and len(lines) == 5
    assert lines["person 1/copy.jpg"]["notes"] == "same file as person 0/0.jpg"
    assert decode((aligned / "out" / "sheet.png").read_bytes()).shape[0] > 200


def test_the_evaluation_aligns_in_the_same_way(aligned):
    names = ["person 0/0", "person 0/1", "person 1/0", "person 1/1"]
    paths = [aligned / "photos" / f"{name}.jpg" for name in names]
    pairs = [(paths[i % 4], paths[(i + 1 + i % 2) % 4], i % 2 == 0) for i in range(12)]
    photos = PhotoPairs.from_pairs("own", pairs).aligned(AligningOpener())
    assert photos.name == "own-aligned"
    loaded = load_photo_set(photos, CPU)
    assert loaded.resized == ()
    for path, image in zip(photos.paths, loaded.images, strict=True):
        file = aligned / "out" / path.relative_to(aligned / "photos").with_suffix(".png")
        np.testing.assert_array_equal(image, decode(file.read_bytes()))


def test_an_interrupted_alignment_goes_on(aligned, tmp_path):
    photos, out = aligned / "photos", tmp_path / "out"
    assert align(photos, out).returncode == 0
    journal = (out / JOURNAL).read_text().splitlines()
    (out / JOURNAL).write_text("\n".join(journal[:4]) + "\n" + journal[4][:50])  # three photos are done
    (out / "person 0" / "1.png").unlink()
    kept = (out / "person 0" / "0.png").stat().st_mtime_ns
    done = align(photos, out)
    assert "2 of 5 photos are aligned already" in done.stdout and "5 photos: 5 faces aligned" in done.stdout
    assert (out / "person 0" / "0.png").stat().st_mtime_ns == kept and (out / "person 0" / "1.png").is_file()
    assert len((out / JOURNAL).read_text().splitlines()) == 6
    other = align(photos, out, "--all-faces")
    assert other.returncode == 2 and "was aligned with another all_faces; name another folder" in other.stderr
    for damaged in ("{", "[]", "5"):
        (out / JOURNAL).write_text(damaged)
        assert align(photos, out).stderr.startswith(f"error: {out / JOURNAL}: damaged; ")


def test_photos_that_are_gone_take_their_faces_along(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    names = write_people(photos)
    assert align(photos, out).returncode == 0
    (photos / names[0]).unlink()
    (photos / names[1]).write_bytes(b"damaged since")
    (photos / "gone.jpg").symlink_to("nowhere")
    done = align(photos, out)
    assert done.returncode == 0 and "4 photos: 2 faces aligned" in done.stdout, done.stdout + done.stderr
    assert sorted(path.name for path in out.glob("*/*.png")) == ["0.png", "1.png"]
    assert report(out)["gone.jpg"]["notes"] == "No such file or directory"
    (photos / names[1]).write_bytes(draw_photo(1)[0])  # what could not be read is tried again
    assert "4 photos: 3 faces aligned" in align(photos, out).stdout


def test_the_photos_are_never_written_to(tmp_path):
    photos = tmp_path / "photos"
    names = write_people(photos, people=1, photos=1)
    (photos / "link").symlink_to(photos)
    content = (photos / names[0]).read_bytes()
    for out in (photos, tmp_path / "x" / ".." / "photos"):
        assert (
            align(photos, out).stderr
            == f"error: {out}: is the folder of the photos; name another folder for the faces\n"
        )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    assert "is not empty, and no earlier alignment" in align(photos, tmp_path / "other").stderr
    for _ in range(2):  # OUT inside PHOTOS is left out
        assert "1 photo: 1 face aligned" in align(photos, photos / "out").stdout
    assert (photos / names[0]).read_bytes() == content


def test_two_alignments_into_one_folder(aligned):
    with lock_folder(aligned / "out"):
        done = align(aligned / "photos", aligned / "out")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: another run is using {aligned / 'out'} (process {os.getpid()} on ")


def test_a_folder_aligned_before_detectors_had_versions_goes_on(aligned, tmp_path):
    shutil.copytree(aligned / "out", tmp_path / "out")
    settings, *records = (tmp_path / "out" / JOURNAL).read_text().splitlines(keepends=True)
    name = json.loads(settings)["detector"]
    assert re.fullmatch("BlazeFace [0-9a-f]{12}", name)
    for former, code in (("BlazeFace", 0), ("BlazeFace 000000000000", 2)):
        changed = settings.replace(name, former)
        (tmp_path / "out" / JOURNAL).write_text("".join([changed, *records]))
        done = align(aligned / "photos", tmp_path / "out")
        assert done.returncode == code and ("another detector" in done.stderr) == bool(code)
        assert code or "5 of 5 photos are aligned already" in done.stdout


def test_names_that_would_clash(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed, name in enumerate(["b.jpg", "b.JPG", "B.png", "b-jpg.png", "sheet.jpg"]):
        (photos / name).write_bytes(draw_photo(seed)[0])
    assert align(photos, tmp_path / "out").returncode == 0
    files = {line["file"].lower() for line in report(tmp_path / "out").values()}
    assert len(files) == 5 and "sheet.png" not in files and "sheet-jpg.png" in files


def test_all_faces_and_photos_without_folders(tmp_path):
    two = [decode(draw_photo(seed)[0])[:300, :300] for seed in (0, 1)]
    height = min(image.shape[0] for image in two)
    photo = np.concatenate([image[:height] for image in two], axis=1)
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "both.png"), photo[..., ::-1])
    cv2.imwrite(str(tmp_path / "photos" / "both.jpg"), photo[..., ::-1])
    assert align(tmp_path / "photos", tmp_path / "out", "--all-faces").returncode == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("both*"))
    assert names == ["both-jpg-1.png", "both-jpg-2.png", "both-png-1.png", "both-png-2.png"]


def test_photos_of_every_kind(tmp_path):
    """A report line for each; only a photo that shows no face or cannot be read is left out."""
    photos = tmp_path / "photos"
    photos.mkdir()
    photo, _ = draw_photo(0)
    image = decode(photo)
    upright = Image.fromarray(image)
    upright.convert("CMYK").save(photos / "cmyk.jpg")
    cv2.imwrite(str(photos / "sixteen.png"), image[..., ::-1].astype(np.uint16) * 257)
    cv2.imwrite(str(photos / "grey.png"), cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(photos / "turned.jpg", exif=exif, quality=95)
    cv2.imwrite(str(photos / "tiny.png"), cv2.resize(image[..., ::-1], None, fx=0.25, fy=0.25))
    cv2.imwrite(str(photos / "blurred.png"), cv2.GaussianBlur(image[..., ::-1], (0, 0), 4))
    (photos / os.fsdecode(b"caf\xe9.jpg")).write_bytes(photo)
    (photos / "text.jpg").write_text("no photo")
    (photos / "empty.jpg").touch()
    (photos / "notes.txt").touch()
    cv2.imwrite(str(photos / "wall.png"), np.full((200, 300, 3), 90, np.uint8))
    cv2.imwrite(str(photos / "wide.png"), np.zeros((3400, 20_000, 3), np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    done = align(photos, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "1 file left out: 1 .txt" in done.stdout
    lines = report(tmp_path / "out")
    status = {name: line["status"] for name, line in lines.items()}
    left_out = {"text.jpg": "unreadable", "empty.jpg": "unreadable", "wide.png": "unreadable", "wall.png": "no face"}
    assert status == dict.fromkeys(status, "aligned") | left_out and len(status) == 11
    assert "is too large: 20000×3400 pixels" in lines["wide.png"]["notes"]
    assert "tiny" in lines["tiny.png"]["notes"] and "blurred" in lines["blurred.png"]["notes"]
    assert "no face: 1, for example wall.png" in done.stdout and "unreadable: 3, for example" in done.stdout
    faces = {
        name: decode((tmp_path / "out" / line["file"]).read_bytes()) for name, line in lines.items() if line["file"]
    }
    for name in ("turned.jpg", "sixteen.png", os.fsdecode(b"caf\xe9.jpg")):
        assert np.abs(faces[name].astype(int) - faces["sixteen.png"]).mean() < 6, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detector", "none.onnx"], "--detector none.onnx: No such file or directory"),
        (["--detector", "requirements.txt"], "--detector requirements.txt: OpenCV cannot run it as YuNet; leave out"),
        (["--workers", "0"], "--workers: should be at least 1, is 0"),
    ],
)
def test_bad_options_are_one_line(aligned, tmp_path, options, message):
    done = align(aligned / "photos", tmp_path / "out", *options)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(f"error: {message}"), done.stderr


def test_folders_without_faces_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for photos, message in ((tmp_path / "none", "no such folder"), (tmp_path / "empty", "no photos (.jpg, ")):
        done = align(photos, tmp_path / "out")
        assert done.returncode == 2 and done.stderr.startswith(f"error: {photos}: {message}"), done.stderr
    cv2.imwrite(str(tmp_path / "empty" / "wall.png"), np.full((200, 300, 3), 90, np.uint8))
    done = align(tmp_path / "empty", tmp_path / "out")
    assert done.returncode == 2 and done.stderr == f"error: {tmp_path / 'empty'}: no face in any photo\n"
    assert report(tmp_path / "out")["wall.png"]["status"] == "no face"
    lines = (tmp_path / "out" / JOURNAL).read_text().splitlines()
    assert json.loads(lines[1])["photo"] == "wall.png"
