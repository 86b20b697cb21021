"""Photos of every kind that people have, and what is odd about the pairs of them."""

import csv
import io
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from config.base import Config
from eval.inputs.folder_pairs import make_pairs
from eval.inputs.pairs import PhotoPairs, read_pairs
from eval.inputs.sets import load_verification_sets
from tests.helpers.faces import draw_face, encode_image, write_data
from tests.helpers.paths import ROOT
from utils.datasets.image_header import read_photo_size
from utils.datasets.people_folder import list_people
from utils.datasets.photos import IMAGE_SUFFIXES, PhotoFiles, PixelBudget, open_photo
from utils.datasets.verification.bins import decode_images
from utils.distributed.process_group import World
from utils.errors import UserError, one_line

ALONE = World(0, 1, torch.device("cpu"))


def picture(height: int = 150, width: int = 200) -> np.ndarray:
    """Left red, right blue, smooth between."""
    ramp = np.linspace(255, 0, width).astype(np.uint8)
    return np.broadcast_to(np.stack([ramp, ramp // 2, 255 - ramp], axis=1), (height, width, 3)).copy()


def opened(content: bytes) -> np.ndarray:
    with open_photo(content) as image:
        return image


# ------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("kind", [".jpg", ".png", ".bmp", ".webp", ".tif", ".gif", ".ppm"])
def test_every_kind_of_photo_is_read(kind):
    image = picture()
    content = encode_image(image, kind)
    assert read_photo_size(content) == (200, 150)
    ours = opened(content)
    assert ours.shape == (150, 200, 3) and np.abs(ours.astype(int) - image).mean() < 25  # a GIF has 256 colours


@pytest.mark.parametrize("kind", [".pgm", ".tif", ".pbm"])
def test_a_grey_photo_is_read(kind):
    grey = picture()[:, :, 0]
    content = cv2.imencode(kind, grey)[1].tobytes()
    assert read_photo_size(content) == (200, 150) and opened(content).shape == (150, 200, 3)


def test_the_first_frame_of_a_gif():
    pillow = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    frames = [pillow.fromarray(np.full((120, 120, 3), value, np.uint8)) for value in (40, 200)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(opened(stream.getvalue()).astype(int) - 40).max() < 8


def exif(content: bytes, orientation: int) -> bytes:
    """A JPEG with an EXIF orientation."""
    entry = b"\x01\x12\0\x03\0\0\0\x01" + orientation.to_bytes(2, "big") + b"\0\0\0\0\0\0"
    block = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry
    return content[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + content[2:]


@pytest.mark.parametrize("large", [False, True])
def test_a_photo_is_turned_upright(large, monkeypatch):
    if large:
        monkeypatch.setattr("utils.datasets.photos.MAX_PIXELS", 1000)
    ours = opened(exif(encode_image(picture()), 6))  # to be turned by 90° clockwise: what was left is up
    assert ours.shape == ((100, 75, 3) if large else (200, 150, 3))
    assert ours[2, 10, 0] > 200 > 100 > ours[-3, 10, 0]


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (b"GIF89a\x10\x27\x20\x4e", (10000, 20000)),
        (b"P6\n# a comment\n10000 20000\n255\n", (10000, 20000)),
        (b"P5 10000\n#\n20000 255\n", (10000, 20000)),
        (
            b"II*\0\x08\0\0\0\x02\0\0\x01\x04\0\x01\0\0\0\x10\x27\0\0\x01\x01\x03\0\x01\0\0\0\x20\x4e\0\0",
            (10000, 20000),
        ),
        (
            b"MM\0*\0\0\0\x08\0\x02\x01\0\0\x04\0\0\0\x01\0\0\x27\x10\x01\x01\0\x03\0\0\0\x01\x4e\x20\0\0",
            (10000, 20000),
        ),
        (b"GIF89a\x10", None),
        (b"P6\n10000", None),
        (b"II*\0\x08\0\0\0\x02\0\0\x01\x04\0", None),
        (b"II*\0\xff\xff\xff\xff", None),
        (b"II*\0\x08\0\0\0\x01\0\0\x01\x63\0\x01\0\0\0\x10\x27\0\0", None),  # a type that is none
        (b"", None),
    ],
)
def test_the_announced_size(head, size):
    assert read_photo_size(head) == size
    with pytest.raises(UserError, match="is too large: 10000×20000 pixels, 67 megapixels" if size else "be decoded$"):
        opened(head)


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"avif"])
def test_the_error_for_heic_names_the_fix(brand):
    with pytest.raises(UserError, match="HEIC is not supported: convert the photos to JPEG"):
        opened(b"\0\0\0\x18ftyp" + brand + bytes(40))


# -------------------------------------------------------------------------------------------------------------- memory


def test_photos_that_were_read_before_are_read_as_before():
    """Up to 2^25 pixels nothing is reduced."""
    image = np.random.default_rng(0).integers(0, 256, (600, 900, 3), np.uint8)
    content = encode_image(image)
    np.testing.assert_array_equal(opened(content), cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB))


def test_a_large_jpeg_is_decoded_at_half_its_size(monkeypatch):
    content = encode_image(picture(400, 600))
    full = opened(content)
    monkeypatch.setattr("utils.datasets.photos.MAX_PIXELS", 400 * 600 - 1)
    half = opened(content)
    assert half.shape == (200, 300, 3)
    assert np.abs(cv2.resize(full, (300, 200), interpolation=cv2.INTER_AREA).astype(int) - half).max() < 8
    assert opened(encode_image(picture(400, 600), ".png")).shape == (400, 600, 3)


MEMORY = """
import resource, sys
from pathlib import Path
from utils.datasets.verification.bins import decode_images
from utils.datasets.people_folder import list_people
from utils.datasets.photos import IMAGE_SUFFIXES, PhotoFiles, open_photo
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
faces = decode_images(PhotoFiles([Path(sys.argv[1])] * 12), threads=6, open_with=open_photo)
assert faces.shape == (12, 112, 112, 3)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_many_photos_of_48_megapixels_fit_a_gigabyte(tmp_path):
    """All of them decoded at full size at once would take 1.7 GB."""
    (tmp_path / "large.jpg").write_bytes(encode_image(picture(6000, 8000)))
    command = [sys.executable, "-c", MEMORY, tmp_path / "large.jpg"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 700


def test_a_png_of_50_megapixels_fits_half_a_gigabyte(tmp_path):
    """Whole in memory it takes 150 MB."""
    (tmp_path / "large.png").write_bytes(encode_image(np.zeros((5774, 8660, 3), np.uint8), ".png"))
    code = MEMORY.replace("* 12", "").replace("(12,", "(1,")
    command = [sys.executable, "-c", code, tmp_path / "large.png"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 500


def test_the_bytes_of_photos_are_not_held(tmp_path):
    """They are read by the threads that decode: no more at once than threads."""
    content = encode_image(draw_face(0, np.random.default_rng(0)), ".png")
    paths = [tmp_path / f"{i}.png" for i in range(100)]
    for path in paths:
        path.write_bytes(content)
    held, most, lock = [0], [0], threading.Lock()

    class Counted(PhotoFiles):
        def __getitem__(self, index: int) -> bytes:
            with lock:
                held[0] += 1
                most[0] = max(most[0], held[0])
            return super().__getitem__(index)

    def let_go(encoded: bytes):
        with lock:
            held[0] -= 1
        return open_photo(encoded)

    assert decode_images(Counted(paths), threads=2, open_with=let_go).shape == (100, 112, 112, 3)
    assert 1 <= most[0] <= 2


def test_the_budget_of_pixels():
    budget, inside, most = PixelBudget(100), [0], [0]
    lock = threading.Lock()

    def work(pixels: int) -> None:
        for _ in range(50):
            with budget.hold(pixels):
                with lock:
                    inside[0] += min(pixels, 100)
                    most[0] = max(most[0], inside[0])
                with lock:
                    inside[0] -= min(pixels, 100)

    threads = [threading.Thread(target=work, args=(pixels,)) for pixels in (30, 60, 80, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads) and inside == [0] and 80 <= most[0] <= 100


# ---------------------------------------------------------------------------------------------------------- pairs files


@pytest.fixture
def people(tmp_path) -> Path:
    """Three people's photos, of different spellings and kinds."""
    rng = np.random.default_rng(5)
    for person in range(3):
        (tmp_path / "own" / f"p{person}").mkdir(parents=True)
        for k, suffix in enumerate([".JPG", ".jpeg", ".Png", ".webp", ".TIF", ".gif", ".pgm"], start=1):
            image = draw_face(person, rng)
            content = (
                cv2.imencode(".pgm", image[:, :, 0])[1].tobytes() if suffix == ".pgm" else encode_image(image, suffix)
            )
            (tmp_path / "own" / f"p{person}" / f"p{person}_{k:04d}{suffix}").write_bytes(content)
    return tmp_path / "own"


@pytest.mark.parametrize("separator", [" ", "\t", "   ", ","])
@pytest.mark.parametrize("head", ["", "path1{0}path2{0}same\n"])
def test_paths_and_a_flag(people, tmp_path, separator, head):
    lines = [
        f"p0/p0_0001.JPG{separator}p1/p1_0002.jpeg{separator}0",
        f"p0/p0_0003.Png{separator}p0/p0_0005.TIF{separator}1",
    ]
    (tmp_path / "pairs.txt").write_text(head.format(separator) + "\n".join(lines))
    pairs = read_pairs(tmp_path / "pairs.txt", people)
    assert [path.name for path in pairs.paths] == ["p0_0001.JPG", "p1_0002.jpeg", "p0_0003.Png", "p0_0005.TIF"]
    assert pairs.issame.tolist() == [False, True]


def test_lfw_names_of_any_spelling_and_kind(people, tmp_path):
    (tmp_path / "pairs.txt").write_text("\n".join(f"p1\t1\t{k}" for k in range(2, 8)))
    pairs = read_pairs(tmp_path / "pairs.txt", people)
    assert sorted(path.suffix for path in pairs.paths) == [".JPG", ".Png", ".TIF", ".gif", ".jpeg", ".pgm", ".webp"]


def test_what_is_left_out_of_a_folder_is_named_by_kind(people, log_capture):
    for name in ("a.txt", "b.txt", "c.HEIC", "no suffix", ".hidden"):
        (people / "p1" / name).write_text("")
    (people / "p2" / "more").mkdir()
    (people / "readme.md").write_text("")
    pairs = make_pairs(people, 100, 0)
    (note,) = pairs.notes
    assert note.startswith(f"{people}: 5 files left out: 2 .txt, ") and "1 .heic" in note
    assert "1 without a suffix" in note
    assert "1 .md outside the people's folders" in note and "HEIC is not supported: convert the photos to JPEG" in note
    load_verification_sets(Config(), pairs, ALONE)
    assert note in log_capture.text


def test_photos_in_further_folders_belong_to_the_person(people):
    """The folders directly in the folder are the people. A link to a folder above it is not followed."""
    (people / "p1" / "2020" / "summer").mkdir(parents=True)
    photo = next((people / "p1").glob("*.JPG"))
    photo.rename(people / "p1" / "2020" / "summer" / "x.JPG")
    (people / "p1" / "2020" / "above").symlink_to(people / "p1")
    (people / "p1" / "2020" / ".hidden").mkdir()
    (people / "p1" / "2020" / ".hidden" / "y.jpg").touch()
    listed, notes = list_people(people, IMAGE_SUFFIXES)
    assert people / "p1" / "2020" / "summer" / "x.JPG" in listed["p1"] and not notes
    assert sorted(map(len, listed.values())) == sorted(len([*path.iterdir()]) for path in people.iterdir())
    pairs = make_pairs(people, 1000, 0)
    assert {*pairs.paths} == {photo for photos in listed.values() for photo in photos}
    assert all(
        (first.relative_to(people).parts[0] == second.relative_to(people).parts[0]) == same
        for (first, second), same in zip(
            ([pairs.paths[i] for i in pair] for pair in pairs.pairs), pairs.issame, strict=True
        )
    )


def test_people_one_folder_too_deep_are_noted(people, tmp_path):
    (tmp_path / "top").mkdir()
    people.rename(tmp_path / "top" / "train")
    listed, (note,) = list_people(tmp_path / "top", IMAGE_SUFFIXES)
    assert [*listed] == ["train"] and note == (
        f"{tmp_path}/top: all photos of a person lie in further folders; the people are train; if the folders below "
        f"them are the people, name {tmp_path}/top/train"
    )
    with pytest.raises(UserError, match=r"top: 1 folder with photos; .* \(.*name .*top/train\)"):
        make_pairs(tmp_path / "top", 20, 0)


def test_a_folder_of_heic_alone(tmp_path):
    for person in ("a", "b"):
        (tmp_path / person).mkdir()
        (tmp_path / person / "1.heic").touch()
    with pytest.raises(UserError, match=r"0 folders with photos; .*2 \.heic\. HEIC is not supported: convert"):
        make_pairs(tmp_path, 20, 0)


ODD = [
    b"line\nbreak",
    b"tab\there",
    b'quote"d',
    b"comma,",
    b"\xff\xfe latin",
    "日本".encode(),
    b"a\x0bb\x1cc",
    b"cr\rlf\r\n",
]


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_name_survives_our_own_csv(people, tmp_path, odd):
    path = os.fsdecode(bytes(people) + b"/p1/" + odd + b".png")
    Path(path).write_bytes(encode_image(draw_face(1, np.random.default_rng(1)), ".png"))
    pairs = make_pairs(people, 60, 0)
    assert Path(path) in pairs.paths
    pairs.write_csv(tmp_path / "pairs.csv")
    again = read_pairs(tmp_path / "pairs.csv")
    assert again.paths == pairs.paths and again.issame.tolist() == pairs.issame.tolist()
    np.testing.assert_array_equal(again.pairs, pairs.pairs)
    with (tmp_path / "pairs.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        assert len(list(csv.reader(stream))) == len(pairs.issame) + 1
    assert one_line(path).isprintable()


def test_pairs_of_a_pipe(people, tmp_path):
    command = "from pathlib import Path; from eval.inputs.pairs import read_pairs; p = read_pairs(Path('/dev/stdin'));"
    text = "".join(f"{people}/p0/p0_000{a}{s},{people}/p1/p1_0001.JPG,0\n" for a, s in ((1, ".JPG"), (2, ".jpeg")))
    done = subprocess.run(
        [sys.executable, "-c", command + "print(p.name, len(p.issame), len(p.paths))"],
        input=text, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "pairs 2 3\n", done.stderr


# ------------------------------------------------------------------------------------------------ sets that mean little


def test_pairs_that_measure_nothing_are_counted(people, log_capture):
    """A photo and itself, also a copy of it under another name; a pair twice; a pair of both kinds."""
    photos = sorted((people / "p0").iterdir())[:3] + sorted((people / "p1").iterdir())[:3]
    copy = people / "p2" / "copy.jpg"
    copy.write_bytes(photos[0].read_bytes())
    pairs = [(photos[i % 3], photos[3 + i // 3], False) for i in range(9)]
    pairs += [(photos[0], photos[0], True), (photos[0], copy, True), (photos[1], photos[2], True)]
    pairs += [(photos[2], photos[1], True), (photos[3], photos[0], True)]
    load_verification_sets(Config(), PhotoPairs.from_pairs("own", pairs), ALONE)
    assert (
        "own: 2 of 14 pairs compare an image with itself, for example pair 10: they measure nothing" in log_capture.text
    )
    assert "own: 3 of 14 pairs repeat another pair: every repetition counts" in log_capture.text
    assert "own: 1 pair listed both as the same person and as different people" in log_capture.text


def test_a_sound_set_has_no_warning(people, log_capture):
    load_verification_sets(Config(), make_pairs(people, 60, 0), ALONE)
    assert log_capture.text == ""


@pytest.fixture
def config(tmp_path) -> Config:
    """Two sets of one name in two folders."""
    for folder, pairs in (("a", 20), ("b", 24)):
        write_data(tmp_path / folder, pairs=pairs)
        (tmp_path / folder / "tiny.bin").rename(tmp_path / folder / "lfw.bin")
    return Config(rec=str(tmp_path))


def test_sets_of_the_same_name_in_two_folders_have_different_names(config):
    config.val_targets = ["a/lfw", "b/lfw"]
    sets = load_verification_sets(config, None, ALONE)
    assert [(held.name, len(held.issame)) for held in sets] == [("a/lfw", 20), ("b/lfw", 24)]
    assert len({held.digest for held in sets}) == 2
    config.val_targets = ["b/lfw"]
    assert [held.name for held in load_verification_sets(config, None, ALONE)] == ["lfw"]


def test_a_set_that_is_named_twice_is_scored_once(config, log_capture):
    config.val_targets = ["a/lfw", "a/lfw", "a/../a/lfw"]
    assert [held.name for held in load_verification_sets(config, None, ALONE)] == ["lfw"]
    assert "config val_targets names 2 sets more than once: scored once" in log_capture.text


def test_the_digest_is_of_pixels_and_pairs(config):
    config.val_targets = ["a/lfw"]
    (held,) = load_verification_sets(config, None, ALONE)
    path = Path(config.rec, "a", "lfw.bin")
    images, same = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps((images, same), protocol=2))
    assert load_verification_sets(config, None, ALONE)[0].digest == held.digest
    path.write_bytes(pickle.dumps((images, [not flag for flag in same])))
    assert load_verification_sets(config, None, ALONE)[0].digest != held.digest
