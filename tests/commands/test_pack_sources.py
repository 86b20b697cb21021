"""data/pack.py: folders, tar files and CSVs of the same faces, and what is wrong with them."""

import os
import tarfile

import numpy as np
import pytest

from tests.helpers.faces import draw_face, encode_image
from tests.helpers.photo_sets import as_samples, run_pack, write_faces, write_tar
from utils.datasets.face_dataset import FaceDataset


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Twelve people with two photos each: their folder, the photos by name, and the record file packed of them."""
    folder = tmp_path_factory.mktemp("faces")
    photos = write_faces(folder / "photos", people=12, photos=2)
    assert run_pack(folder / "photos", folder / "packed").returncode == 0
    return folder / "photos", photos, (folder / "packed" / "train.rec").read_bytes()


def expect_error(done, out, message):
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr, done.stderr
    assert not out.exists() and not list(out.parent.glob(".packing-*"))


@pytest.mark.parametrize("suffix", [".cls", ".json"])
def test_a_tar_gives_the_same_records(faces, tmp_path, suffix):
    """Labels are sorted by value: 10 comes after 9."""
    _, photos, expected = faces
    source = write_tar(tmp_path / "set.tar", as_samples(photos, suffix) | {"p00/0.txt": b"caption", "notes": b""})
    done = run_pack(source, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "train.rec").read_bytes() == expected
    assert (tmp_path / "out" / "people.csv").read_text().splitlines()[-2:] == ["10,10,2", "11,11,2"]


def test_a_folder_of_tars_gives_the_same_records(faces, tmp_path):
    _, photos, expected = faces
    members = list(as_samples(photos).items())
    (tmp_path / "shards").mkdir()
    for number in range(3):
        write_tar(tmp_path / "shards" / f"{number}.tar", dict(members[number * 16 : number * 16 + 16]))
    assert run_pack(tmp_path / "shards", tmp_path / "out").returncode == 0
    assert (tmp_path / "out" / "train.rec").read_bytes() == expected


@pytest.mark.parametrize("header", ["", "path,label\n", "label,note,path\n"])
def test_a_csv_gives_the_same_records(faces, header):
    folder, photos, expected = faces
    path, out = folder / f"{len(header)}.csv", folder.parent / f"csv{len(header)}"
    lines = [f"{name[1:3]},x,{name}" if "note" in header else f"{name},{name[1:3]}" for name in photos]
    path.write_text(header + "\n".join([*lines[1:], "", lines[0]]))  # grouped by label, whatever the order
    done = run_pack(path, out)
    assert done.returncode == 0, done.stderr
    data = FaceDataset(out)
    assert data.label_values.tolist() == [person for person in range(12) for _ in range(2)]
    assert sorted(data.reader.read_image(key)[1] for key in data.keys) == sorted(photos.values())
    path.write_text(header + "\n".join(lines))
    assert run_pack(path, folder.parent / f"again{len(header)}").returncode == 0
    assert (folder.parent / f"again{len(header)}" / "train.rec").read_bytes() == expected


def test_names_that_are_not_utf8(faces, tmp_path):
    """They are packed; one that holds no image is named in one line."""
    rng = np.random.default_rng(0)
    people = [tmp_path / "photos" / os.fsdecode(name) for name in (b"Ren\xe9", b"Zo\xeb")]
    for person in people:
        person.mkdir(parents=True)
        (person / os.fsdecode(b"caf\xe9.jpg")).write_bytes(encode_image(draw_face(1, rng)))
    done = run_pack(tmp_path / "photos", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "people.csv").read_bytes() == b"label,person,photos\n0,Ren\xe9,1\n1,Zo\xeb,1\n"
    rows = [b"photos/Ren\xe9/caf\xe9.jpg,Ren\xe9", b"photos/Zo\xeb/caf\xe9.jpg,Zo\xeb"]
    (tmp_path / "latin1.csv").write_bytes(b"\n".join(rows))
    assert run_pack(tmp_path / "latin1.csv", tmp_path / "csv").returncode == 0
    (people[1] / os.fsdecode(b"\xff.jpg")).write_text("text")
    expect_error(run_pack(tmp_path / "photos", tmp_path / "bad"), tmp_path / "bad", r"Zo\udceb/\udcff.jpg: not a JPEG")


def test_links_and_other_kinds_of_files_in_a_tar(faces, tmp_path):
    """A link is the file that it names, whether before or after it; what is neither photo nor label is counted."""
    _, photos, expected = faces
    samples = {name: content for name, content in as_samples(photos).items() if name != "p00/1.png"}
    other = {
        "p00/0.seg.jpg": b"text",
        "p00/0.SEG.jpg": b"text",
        "p03/0.txt": b"",
        "p02/._0.jpg": b"",
        "p00/x.cls": b"0",
    }
    links = [
        ("p00/1.png", tarfile.LNKTYPE, "./store/a"),
        ("p04/a/2.jpg", tarfile.SYMTYPE, "../../p04/2.png"),
        ("p04/2.png", tarfile.SYMTYPE, "0.jpg"),
        ("p04/a/2.cls", tarfile.LNKTYPE, "p04/0.cls"),
        ("p05/9.jpg", tarfile.SYMTYPE, "9.jpg"),
        ("p05/8.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        ("p05/pipe.jpg", tarfile.FIFOTYPE, ""),
    ]
    stored = {"store/a": photos["p00/1.png"], "p04/2.cls": b"4"}
    source = write_tar(tmp_path / "set.tar", samples | other | stored, links)
    done = run_pack(source, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        f"{source}: 8 files left out: 2 .seg.jpg, 2 linking to no file in it, 1 .txt, 1 without a suffix, "
        "1 no regular file, 1 labelling no image\n"
    )
    data = FaceDataset(tmp_path / "out")
    packed = {(label, data.reader.read_image(key)[1]) for key, label in zip(data.keys, data.label_values, strict=True)}
    assert packed == {(int(name[1:3]), photo) for name, photo in photos.items()}
    assert len(data) == 24 + 2  # p04/2.png and p04/a/2.jpg are p04/0.jpg
    repeated = write_tar(tmp_path / "links.tar", samples | {"store/a": photos["p00/1.png"]}, links[:1])
    assert run_pack(repeated, tmp_path / "same").returncode == 0
    assert (tmp_path / "same" / "train.rec").read_bytes() == expected


def test_names_that_no_encoding_has(faces, tmp_path):
    """A label of JSON may hold half a character; it is written as an escape."""
    faces = {name: photo for name, photo in faces[1].items() if name[:3] in ("p00", "p01")}
    members = as_samples(faces, ".json") | {f"p00/{i}.json": b'{"label": "A\\ud800-\\udcff"}' for i in range(2)}
    done = run_pack(write_tar(tmp_path / "set.tar", members), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "people.csv").read_bytes().splitlines()[1:] == [b"0,1,2", b"1,A\\ud800-\xff,2"]


def test_bad_folders(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    expect_error(run_pack(tmp_path / "empty", out), out, "empty: photos of 0 people (.jpg, ")
    write_faces(tmp_path / "one", people=1, photos=3)
    (tmp_path / "one" / "nobody").mkdir()
    done = run_pack(tmp_path / "one", out)
    expect_error(
        done, out, "one: photos of 1 person (.jpg, .jpeg, .png, .bmp, .webp); training needs at least two, one"
    )
    assert done.stderr.startswith(f"{tmp_path / 'one'}: 1 folder without photos, as nobody\n")
    write_faces(tmp_path / "two", people=2, photos=1)
    photo = tmp_path / "two" / "p01" / "0.jpg"
    whole = photo.read_bytes()
    for content, problem in (
        (b"text\n", "not a JPEG, PNG, BMP or WebP image"),
        (b"", "empty"),
        (whole[: len(whole) // 4], "damaged: it cannot be decoded"),
    ):
        photo.write_bytes(content)
        expect_error(
            run_pack(tmp_path / "two", out), out, f"{photo}: {problem}; training needs aligned faces of 112×112"
        )


def test_bad_tars(faces, tmp_path):
    out = tmp_path / "out"
    members = as_samples(faces[1])
    no_label = write_tar(tmp_path / "no_label.tar", {k: v for k, v in members.items() if k != "p03/1.cls"})
    expect_error(run_pack(no_label, out), out, "no_label.tar: p03/1.png: has no label; expected a .cls or a .json")
    for name, content in (("p00/0.cls", b"\xff"), ("p00/0.cls", b" "), ("p00/0.json", b"{"), ("p00/0.json", b"7")):
        bad = write_tar(tmp_path / "bad_label.tar", members | {name: content})
        expect_error(run_pack(bad, out), out, f"bad_label.tar: {name}: ")
    text = write_tar(tmp_path / "text.tar", members | {"p04/0.jpg": b"text"})
    expect_error(run_pack(text, out), out, "text.tar: p04/0.jpg: not a JPEG, PNG, BMP or WebP image")
    whole = write_tar(tmp_path / "cut.tar", members).read_bytes()
    header = whole.index(b"p06/0.jpg")
    for damaged in (whole[: header + 2000], whole[: header + 100], whole[:header] + b"x" * 512 + whole[header + 512 :]):
        (tmp_path / "cut.tar").write_bytes(damaged)
        expect_error(run_pack(tmp_path / "cut.tar", out), out, "cut.tar: not an uncompressed tar file, or damaged or")
    (tmp_path / "cut.tar").write_text("text")
    expect_error(run_pack(tmp_path / "cut.tar", out), out, "cut.tar: not an uncompressed tar file")


def test_bad_csvs_and_other_sources(tmp_path):
    out, path = tmp_path / "out", tmp_path / "set.csv"
    write_faces(tmp_path, people=2, photos=1)
    for text, message in (
        ("", "set.csv: photos of 0 people"),
        ("p00/0.jpg,1\np01/0.jpg", "set.csv line 2: ['p01/0.jpg']; expected path,label"),
        ("p00/0.jpg,1\n,2", "set.csv line 2: ['', '2']; expected path,label"),
        ("p00/0.jpg,1\np01/none.jpg,2", "p01/none.jpg: No such file or directory"),
        ("p00/0.jpg,1\np01,2", "p01: is not a regular file (a folder)"),
        ("p00/0.jpg,1\np\0,2", "set.csv line 2: "),
        (f"p00/0.jpg,1\n{'x' * 200_000},2", "set.csv line 2: field larger than field limit"),
        ("p00/0.jpg,1\np01/0.jpg,1", "set.csv: photos of 1 person"),
    ):
        path.write_text(text)
        expect_error(run_pack(path, out), out, message)
    (tmp_path / "list.txt").touch()
    expect_error(run_pack(tmp_path / "list.txt", out), out, "list.txt: should be a folder, a .tar or a .csv")
    expect_error(run_pack(tmp_path / "none", out), out, "none: No such file or folder")
