"""People's own pairs of photos and the verification sets made of them: every way to write them, and every slip."""

import argparse
import logging
import os
import pickle
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from config.base import Config
from eval.inference.embedding import embed
from eval.inputs.arguments import keep_pairs_readable
from eval.inputs.folder_pairs import make_pairs
from eval.inputs.pairs import PhotoPairs, read_pairs
from eval.inputs.sets import load_bin_set, load_photo_set, load_verification_sets
from eval.scoring import compute_score
from tests.helpers.faces import draw_face, encode_image
from utils.datasets.photos import PhotoFiles
from utils.datasets.verification.bins import load_bin
from utils.distributed.process_group import World
from utils.errors import UserError

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of empty files named as LFW names its photos; one of them is a PNG."""
    folder = tmp_path / "photos"
    for name, count in {"Ann": 3, "Bob": 2, "Li Wei": 2}.items():
        (folder / name).mkdir(parents=True)
        for k in range(1, count + 1):
            (folder / name / f"{name}_{k:04d}{'.png' if (name, k) == ('Bob', 2) else '.jpg'}").touch()
    return folder


@pytest.fixture
def write(tmp_path):
    def write_file(content: str | bytes, name: str = "pairs.txt") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def test_pairs_from_a_pipe_keep_their_name(photos, monkeypatch):
    """Other processes read a copy, and name it as the first process did, also if they align the photos."""
    read, write_end = os.pipe()
    os.write(write_end, b"Ann/Ann_0001.jpg,Ann/Ann_0002.jpg,1\n")
    os.close(write_end)
    monkeypatch.setattr("sys.argv", ["eval.py"])
    args = argparse.Namespace(pairs=Path(f"/dev/fd/{read}"), images=photos)
    pairs = read_pairs(args.pairs, photos)
    for first in (pairs, pairs.aligned(lambda encoded: nullcontext())):
        with keep_pairs_readable(args, first):
            assert sys.argv[1] == "--pairs" and read_pairs(Path(sys.argv[2]), photos).name == "pairs"
    os.close(read)


def named(pairs: PhotoPairs) -> list[tuple[str, str, bool]]:
    """The pairs as file names."""
    return [
        (pairs.paths[a].name, pairs.paths[b].name, bool(same))
        for (a, b), same in zip(pairs.pairs, pairs.issame, strict=True)
    ]


def of_people(pairs: PhotoPairs) -> list[tuple[str, str]]:
    return [(pairs.paths[a].parent.name, pairs.paths[b].parent.name) for a, b in pairs.pairs]


def photo_folder(folder: Path, counts: dict[str, int]) -> Path:
    """Writes empty photos, the given number of each person."""
    for person, count in counts.items():
        (folder / person).mkdir(parents=True)
        for k in range(count):
            (folder / person / f"{person}{k}.jpg").touch()
    return folder


# ------------------------------------------------------------------------------------------------------ pairs files

ANN_AND_BOB = [("Ann_0001.jpg", "Ann_0003.jpg", True), ("Ann_0001.jpg", "Bob_0002.png", False)]


@pytest.mark.parametrize(
    "text",
    [
        "Ann 1 3\nAnn 1 Bob 2\n",
        "2\nAnn 1 3\nAnn 1 Bob 2\n",
        "10\t300\nAnn\t1\t3\nAnn\t1\tBob\t2",
        "Ann 0001 0003\nAnn\t1\tBob\t2",
        "Ann 1 Ann 3\n  Ann  1  Bob  2  \n",
        "\ufeff10 300\r\nAnn 1 3\r\nAnn 1 Bob 2\r\n",
        "\n\n2\n\n   \nAnn 1 3\n\nAnn 1 Bob 2\n\n",
    ],
)
def test_lfw_style(photos, write, text):
    pairs = read_pairs(write(text), photos)
    assert named(pairs) == ANN_AND_BOB and pairs.name == "pairs"
    assert pairs.paths == [photos / "Ann/Ann_0001.jpg", photos / "Ann/Ann_0003.jpg", photos / "Bob/Bob_0002.png"]
    assert pairs.pairs.tolist() == [[0, 1], [0, 2]] and pairs.pairs.dtype == np.int64  # the photo met twice: once


def test_lfw_style_with_spaces_in_names(photos, write):
    pairs = read_pairs(write("Li Wei\t1\t2\nLi Wei\t2\tAnn\t1\n"), photos)
    assert named(pairs) == [
        ("Li Wei_0001.jpg", "Li Wei_0002.jpg", True),
        ("Li Wei_0002.jpg", "Ann_0001.jpg", False),
    ]


def test_lfw_style_of_a_number_beyond_four_digits(photos, write):
    (photos / "Ann" / "Ann_12345.webp").touch()
    assert named(read_pairs(write("Ann 12345 1"), photos)) == [("Ann_12345.webp", "Ann_0001.jpg", True)]


@pytest.mark.parametrize("yes", ["1", "true", "True", "yes", "YES", "same"])
@pytest.mark.parametrize("no", ["0", "false", "FALSE", "no", "different"])
def test_csv_flags(photos, write, yes, no):
    rows = f"Ann/Ann_0001.jpg,Ann/Ann_0003.jpg,{yes}\nAnn/Ann_0001.jpg,Bob/Bob_0002.png,{no}\n"
    assert named(read_pairs(write(rows), photos)) == ANN_AND_BOB


@pytest.mark.parametrize(
    "text",
    [
        "path1,path2,same\nAnn/Ann_0001.jpg,Ann/Ann_0003.jpg,1\nAnn/Ann_0001.jpg,Bob/Bob_0002.png,0\n",
        "\ufeff\r\na,b,label\r\n\r\nAnn/Ann_0001.jpg , Ann/Ann_0003.jpg, 1\r\nAnn/Ann_0001.jpg,Bob/Bob_0002.png,0",
        '"Ann/Ann_0001.jpg","Ann/Ann_0003.jpg","1"\n"Ann/Ann_0001.jpg",Bob/Bob_0002.png,0\n',
    ],
)
def test_csv(photos, write, text):
    assert named(read_pairs(write(text), photos)) == ANN_AND_BOB
    assert named(read_pairs(write(text, "photos/own.csv"))) == ANN_AND_BOB  # relative to the file


def test_csv_of_absolute_paths_and_of_names_with_commas(photos, write):
    odd = photos / 'Lee, "Jr" .jpg'
    odd.touch()
    text = f'{photos}/Ann/Ann_0001.jpg,"Lee, ""Jr"" .jpg",no\n'
    pairs = read_pairs(write(text), photos)
    assert pairs.paths == [photos / "Ann/Ann_0001.jpg", odd] and pairs.issame.tolist() == [False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2\nAnn 1 3\nAnn 1\n", "line 3: should read 'name 1 2', 'name 1 other 3' or 'path path 1' .*, reads 'Ann 1'"),
        ("Ann 1 3\n\n\nAnn 1 Bob 2 5\n", "line 4: should read .*reads 'Ann 1 Bob 2 5'"),
        ("Ann one 3\n", "line 1: should read"),
        ("Ann 1 -3\n", "line 1: should read"),
        ("Ann 1 3\n4 5\n", "line 2: should read"),  # a count is one in the first line alone
        ("Li Wei 1 2\n", "line 1: should read"),  # with spaces for tabs
        ("Ann 1 3\nAnn 1 4\n", "line 2: no photo .*Ann_0004.jpg"),
        ("Ann 1 Zoe 1\n", "line 1: no photo .*Zoe/Zoe_0001.jpg"),
        (f"Ann 1 {'z' * 300} 1\n", "line 1: no photo .*zzz_0001.jpg"),
        pytest.param(f"Ann 1 {'9' * 5000}\n", "line 1: no photo .*Ann_999", id="long number"),
        ("Ann/Ann_0001.jpg,Ann/Ann_0003.jpg,maybe\n", "line 1: should read path,path,same with 1 or 0"),
        ("a,b,same\nAnn/Ann_0001.jpg,Ann/Ann_0003.jpg,2\n", "line 2: should read path,path,same .*'Ann/Ann_0001"),
        ("a,b,c\na,b,c\n", "line 2: should read path,path,same"),  # a header may be the first line only
        ("a,b,same\na,b,same\n", "line 2: no photo"),
        ("Ann/Ann_0001.jpg,Ann/Ann_0003.jpg\n", "line 1: should read path,path,same"),
        ("a,b\n", "line 1: should read path,path,same"),
        ("a,b,c\n\nAnn/Ann_0001.jpg,Ann/Ann_0003.jpg,1,2\n", "line 3: should read path,path,same"),
        ("nobody.jpg,Ann/Ann_0001.jpg,same\n", "line 1: no photo .*nobody.jpg"),
        ("nobody.jpg,Ann/Ann_0001.jpg,label\n", "line 1: should read path,path,same"),
        ("nobody.tif,Ann/Ann_0001.jpg,1\n", "line 1: no photo .*nobody.tif"),
        ("a,b,c\nAnn/Ann_0001.jpg\n", "line 2: should read path,path,same"),
        pytest.param(f"a,b,c\n{'z' * 200_000},b,1\n", "line 2: should read path,path,same", id="long field"),
        ("Ann/Ann_0001.jpg,Ann/nobody.jpg,1\n", "line 1: no photo .*Ann/nobody.jpg"),
        ("a,b,same\nAnn/Ann_0001.jpg,Ann,1\n", "line 2: no photo .*Ann"),
        (f"Ann/Ann_0001.jpg,{'z' * 300}.jpg,1\n", "line 1: no photo"),
        ("a\0b,Ann/Ann_0001.jpg,1\n", "line 1: no photo"),
        ("", "is empty"),
        ("\n  \n", "is empty"),
        ("10\t300\n", "holds no pairs"),
        ("path1,path2,same\n", "holds no pairs"),
        (b"\xff\xd8\xff\xe0", "is not text"),
    ],
)
def test_slips_in_a_pairs_file_are_named(photos, write, text, message):
    file = write(text)
    with pytest.raises(UserError, match=message) as caught:
        read_pairs(file, photos)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_photo_that_is_a_pipe_is_named(photos, write):
    os.mkfifo(photos / "pipe.jpg")
    with pytest.raises(UserError, match=r"line 1: .*pipe\.jpg is not a regular file"):
        read_pairs(write("pipe.jpg,Ann/Ann_0001.jpg,1\n"), photos)
    with pytest.raises(UserError, match=r"pipe\.jpg: is not a regular file"):
        PhotoFiles([photos / "pipe.jpg"])[0]


def test_a_pairs_file_that_is_not_there(photos, write, tmp_path):
    with pytest.raises(UserError, match=r"none\.txt: No such file"):
        read_pairs(tmp_path / "none.txt", photos)
    with pytest.raises(UserError, match="Is a directory"):
        read_pairs(photos, photos)
    for folder in (tmp_path / "nowhere", write("Ann 1 3"), Path("z" * 300)):
        with pytest.raises(UserError, match=r"--images .*: no such folder"):
            read_pairs(write("Ann 1 3"), folder)
    with pytest.raises(UserError, match="needs the folder of its photos, --images DIR"):
        read_pairs(write("Ann 1 3"))


# ------------------------------------------------------------------------------------------------------- made pairs


def test_made_pairs_are_seeded(tmp_path):
    folder = photo_folder(tmp_path / "own", {f"p{i}": 6 for i in range(8)})
    one, again, other = (make_pairs(folder, 60, seed) for seed in (3, 3, 4))
    assert one.paths == again.paths and one.name == "own"
    np.testing.assert_array_equal(one.pairs, again.pairs)
    np.testing.assert_array_equal(one.issame, again.issame)
    assert set(named(one)) != set(named(other))
    for same in (True, False):
        assert {p for p in named(one) if p[2] is same} != {p for p in named(other) if p[2] is same}


@pytest.mark.parametrize("n_pairs", [20, 61, 200])
def test_sampled_pairs_have_the_right_labels(tmp_path, n_pairs):
    folder = photo_folder(tmp_path / "own", {f"p{i}": 3 + i for i in range(10)})
    pairs = make_pairs(folder, n_pairs, 0)
    assert len(pairs.issame) == n_pairs and pairs.issame.sum() == n_pairs // 2
    for (one, other), same in zip(of_people(pairs), pairs.issame, strict=True):
        assert (one == other) is bool(same)
    assert len({frozenset(pair) for pair in pairs.pairs.tolist()}) == n_pairs  # no pair twice, none mirrored
    assert all(len(set(pair)) == 2 for pair in pairs.pairs.tolist())  # nor a photo with itself
    assert len(set(pairs.paths)) == len(pairs.paths)
    for fold in np.array_split(pairs.issame, 10):
        assert 0 < fold.sum() < len(fold)  # both kinds in every fold


def test_people_take_turns(tmp_path):
    """One with 500 photos is met as often as one with 10."""
    folder = photo_folder(tmp_path / "own", {"many": 500} | {f"few{i}": 10 for i in range(9)} | {"two": 2})
    pairs = make_pairs(folder, 400, 0)
    people = of_people(pairs)
    same = Counter(one for (one, _), is_same in zip(people, pairs.issame, strict=True) if is_same)
    assert same.pop("two") == 1  # all of theirs
    assert set(same) == {"many", *(f"few{i}" for i in range(9))} and set(same.values()) <= {19, 20}
    met = Counter(person for pair, is_same in zip(people, pairs.issame, strict=True) if not is_same for person in pair)
    assert met["many"] < 3 * 400 / 11


def test_which_people_are_met_is_drawn(tmp_path):
    """Where there are more people than pairs, they are not those first in the alphabet."""
    folder = photo_folder(tmp_path / "own", {f"p{i:03d}": 2 for i in range(60)})
    met = []
    for seed in (0, 1):
        pairs = make_pairs(folder, 20, seed)
        met.append({one for (one, _), same in zip(of_people(pairs), pairs.issame, strict=True) if same})
        assert len(met[-1]) == 10
    assert met[0] != met[1] and max(met[0]) > "p020"


def test_every_same_person_pair_can_be_sampled(tmp_path):
    """The numbering of a person's pairs reaches each pair once."""
    pairs = make_pairs(photo_folder(tmp_path / "own", {"a": 9, "b": 9}), 1000, 0)
    same = {frozenset(pair[:2]) for pair in named(pairs) if pair[2]}
    assert len(same) == 2 * 36


def test_all_are_taken_where_there_are_few(tmp_path):
    folder = photo_folder(tmp_path / "own", {"a": 3, "b": 2, "alone": 1})
    pairs = make_pairs(folder, 6000, 0)
    assert int(pairs.issame.sum()) == 3 + 1 and int((~pairs.issame).sum()) == 6 + 3 + 2
    assert len({frozenset(pair) for pair in pairs.pairs.tolist()}) == 15
    assert len(make_pairs(folder, 20, 0).issame) == 4 + 10  # all same-person pairs, the requested number of the others
    uneven = make_pairs(photo_folder(tmp_path / "uneven", {"many": 60, "one": 1}), 200, 0)
    assert (~uneven.issame).sum() == 60 and uneven.issame.sum() == 100


def test_few_pairs_of_one_kind_are_spread_over_the_folds(tmp_path):
    pairs = make_pairs(photo_folder(tmp_path / "own", {f"p{i}": 3 for i in range(20)}), 1000, 0)
    assert (pairs.issame.sum(), (~pairs.issame).sum()) == (60, 500)
    assert {int(fold.sum()) for fold in np.array_split(pairs.issame, 10)} == {6}


def test_what_is_no_photo_is_ignored(tmp_path):
    folder = photo_folder(tmp_path / "own", {"a": 2, "b": 2, "empty": 0})
    (folder / "a" / "notes.txt").touch()
    (folder / "a" / "._a0.jpg").touch()  # as macOS writes beside a0.jpg
    (folder / "a" / ".jpg").touch()
    (folder / "b" / "album.jpg").mkdir()
    (folder / "b" / "SHOUTED.JPEG").touch()
    (folder / "loose.jpg").touch()
    photo_folder(folder, {".thumbnails": 2})
    pairs = make_pairs(folder, 100, 0)
    assert {path.name for path in pairs.paths} == {"a0.jpg", "a1.jpg", "b0.jpg", "b1.jpg", "SHOUTED.JPEG"}


@pytest.mark.parametrize(
    ("counts", "n_people"), [({}, 0), ({"a": 9}, 1), ({"a": 9, "empty": 0}, 1), ({"a": 1, "b": 1, "c": 1}, 3)]
)
def test_folders_of_which_no_pairs_can_be_made(tmp_path, counts, n_people):
    (tmp_path / "own").mkdir()
    folder = photo_folder(tmp_path / "own", counts)
    with pytest.raises(
        UserError, match=f"--folder .*own: {n_people} folders? with photos; expected one folder per person"
    ):
        make_pairs(folder, 100, 0)


def test_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "none", tmp_path / "file", Path("z" * 300)):
        with pytest.raises(UserError, match="no such folder"):
            make_pairs(folder, 100, 0)


def test_made_pairs_written_are_read_back(tmp_path, monkeypatch):
    photo_folder(tmp_path / "own, mine", {'Lee, "Jr"': 4, "Li Wei": 3, "Ann": 2})
    monkeypatch.chdir(tmp_path)
    made = make_pairs(Path("own, mine"), 30, 1)
    (tmp_path / "results").mkdir()
    file = tmp_path / "results" / "elsewhere.csv"
    made.write_csv(file)
    monkeypatch.chdir("/")
    read = read_pairs(file)
    assert named(read) == named(made) and read.name == "elsewhere"
    np.testing.assert_array_equal(read.pairs, made.pairs)
    assert [path.relative_to(tmp_path) for path in read.paths] == made.paths


# ------------------------------------------------------------------------------------------------- sets in memory


class Pixels:
    """A runtime whose embedding of an image is some of its pixels: to the bit the same in any batch."""

    batch = 7

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def embedding(some: np.ndarray) -> np.ndarray:
            return some[:, ::16, ::16].reshape(len(some), 147).astype(np.float32) - 128

        return embedding(images), embedding(images[:, :, ::-1])


@pytest.fixture
def repeated(tmp_path) -> Path:
    """A .bin of 30 pairs of 25 distinct images, each met twice or three times."""
    rng = np.random.default_rng(1)
    distinct = [encode_image(draw_face(i // 5, rng), ".png" if i % 2 else ".jpg") for i in range(25)]
    chosen = rng.permutation([*range(25), *range(25), *range(10)]).reshape(-1, 2)
    same = [bool(a // 5 == b // 5) for a, b in chosen]
    same[0] = True
    (tmp_path / "twice.bin").write_bytes(pickle.dumps(([distinct[i] for i in chosen.ravel()], same)))
    return tmp_path / "twice.bin"


def test_an_image_of_several_pairs_is_kept_once(repeated):
    held = load_bin_set(repeated, ALONE)
    images, issame = load_bin(repeated)
    assert held.images.shape == (25, 112, 112, 3) and held.images.dtype == np.uint8 and held.name == "twice"
    assert held.pairs.shape == (30, 2)
    np.testing.assert_array_equal(held.images[held.pairs.ravel()], images)
    np.testing.assert_array_equal(held.issame, issame)


def test_scores_are_those_of_every_image_embedded(repeated):
    held, (images, issame) = load_bin_set(repeated, ALONE), load_bin(repeated)
    ours = compute_score(*embed(Pixels(), held.images), held.pairs, held.issame)
    plain = compute_score(*embed(Pixels(), images), np.arange(60).reshape(-1, 2), issame)
    assert ours.asdict() == plain.asdict()
    np.testing.assert_array_equal(ours.distances, plain.distances)
    np.testing.assert_array_equal(ours.correct, plain.correct)


def test_an_unreadable_image_is_named_by_its_line(tmp_path):
    rng = np.random.default_rng(0)
    good = [encode_image(draw_face(i, rng)) for i in range(3)]
    images = [good[i % 3] for i in range(40)]
    images[17] = images[31] = b"no image"
    (tmp_path / "bad.bin").write_bytes(pickle.dumps((images, [True, False] * 10)))
    for world in (ALONE, World(1, 2, ALONE.device)):  # the fourth distinct image, in the second one's share
        with pytest.raises(UserError, match=r"bad\.bin: image 17 of 40 cannot be decoded"):
            load_bin_set(tmp_path / "bad.bin", world)


@pytest.fixture
def own_photos(tmp_path) -> PhotoPairs:
    """Pairs of three people's photos."""
    rng = np.random.default_rng(2)
    for person in range(3):
        (tmp_path / "own" / f"p{person}").mkdir(parents=True)
        for k in range(3):
            (tmp_path / "own" / f"p{person}" / f"{k}.png").write_bytes(encode_image(draw_face(person, rng), ".png"))
    return make_pairs(tmp_path / "own", 20, 0)


@pytest.mark.parametrize("size", [2, 3, 12])
def test_shards_together_are_all_images(repeated, own_photos, size):
    """With more processes than images some shards are empty."""
    for load in (lambda world: load_bin_set(repeated, world), lambda world: load_photo_set(own_photos, world)):
        full, shards = load(ALONE), [load(World(rank, size, ALONE.device)) for rank in range(size)]
        np.testing.assert_array_equal(np.concatenate([shard.images for shard in shards]), full.images)
        for shard in shards:
            np.testing.assert_array_equal(shard.pairs, full.pairs)
            np.testing.assert_array_equal(shard.issame, full.issame)
        assert max(len(shard.images) for shard in shards) <= -(-len(full.images) // size)


def test_photos_of_another_size_are_resized_with_a_warning(own_photos, caplog):
    rng = np.random.default_rng(3)
    large = np.kron(draw_face(1, rng), np.ones((2, 3, 1), np.uint8))  # 224 × 336
    for place in (5, 2):
        own_photos.paths[place].write_bytes(encode_image(large, ".png"))
    with caplog.at_level(logging.WARNING, "pocketnet"):
        (held,) = load_verification_sets(Config(), own_photos, ALONE)
    assert held.images.shape == (9, 112, 112, 3) and held.images.dtype == np.uint8
    (message,) = [text for text in caplog.messages if "112×112" in text]
    assert held.resized == (2, 5) and held.warning.startswith("2 photos not 112×112 and therefore resized")
    assert message.startswith(f"2 of 9 photos are not 112×112, for example {own_photos.paths[2]}: resized.")
    assert np.abs(held.images[2].astype(float) - held.images[5]).max() == 0
    caplog.clear()
    own_photos.paths[5].write_bytes(encode_image(draw_face(1, rng)))
    own_photos.paths[2].write_bytes(encode_image(draw_face(1, rng)))
    (held,) = load_verification_sets(Config(), own_photos, ALONE)
    assert not caplog.records and held.warning == ""


def test_a_photo_that_cannot_be_read_is_named(own_photos):
    own_photos.paths[4].write_bytes(b"no image")
    with pytest.raises(UserError, match=f"{own_photos.paths[4]} cannot be decoded"):
        load_photo_set(own_photos, ALONE)
    with pytest.raises(UserError, match=f"{own_photos.paths[4]} cannot be decoded"):
        load_photo_set(own_photos, World(1, 2, ALONE.device))
    own_photos.paths[4].unlink()
    with pytest.raises(UserError, match=f"{own_photos.paths[4]}: No such file"):
        load_photo_set(own_photos, ALONE)


@pytest.mark.parametrize("flags", [[True] * 12, [False] * 12, [True, False] * 4])
def test_sets_that_cannot_be_measured(tmp_path, own_photos, flags):
    message = f"{len(flags)} pairs, {sum(flags)} of them of one person: verification needs pairs of both kinds, 10 at"
    image = encode_image(draw_face(0, np.random.default_rng(0)))
    (tmp_path / "few.bin").write_bytes(pickle.dumps(([image] * 2 * len(flags), flags)))
    with pytest.raises(UserError, match=f"few.bin: {message}"):
        load_bin_set(tmp_path / "few.bin", ALONE)
    pairs = PhotoPairs("few", own_photos.paths, own_photos.pairs[: len(flags)], np.array(flags))
    with pytest.raises(UserError, match=f"few: {message}"):
        load_photo_set(pairs, ALONE)
