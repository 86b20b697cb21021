"""The synthetic faces of data/make_demo_faces.py: deterministic, in the layout of MS1MV2."""

import pickle
import sys

import cv2
import numpy as np
import pytest

from data.make_demo_faces import Plan, make, person_photos, plan_pairs
from data.synthetic.people import Person, Shot
from data.synthetic.procedural import draw
from tests.helpers.commands import run_command
from tests.helpers.paths import ROOT
from utils.datasets.recordio.reader import IndexedRecordReader
from utils.errors import UserError

SMALL = Plan(people=3, shots=2, test_people=3, pairs=40)
FILES = {"train.rec", "train.idx", "property", "demo.bin", "people.png", "made.json"}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def script(*arguments):
    return run_command(ROOT, sys.executable, "data/make_demo_faces.py", *arguments, new_interpreter=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of the set SMALL."""
    folder = tmp_path_factory.mktemp("demo") / "faces"
    assert make(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def reader(made):
    return IndexedRecordReader(made / "train.rec", made / "train.idx")


def test_draws_the_same_face_for_the_same_identity_and_shot():
    rng = np.random.default_rng(0)
    person, shot, other = Person.sample(rng), Shot.sample(rng), Shot.sample(rng)
    image = draw(person, shot)
    assert image.shape == (112, 112, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image, draw(person, shot))
    assert not np.array_equal(image, draw(person, other))


def test_every_kind_of_identity_and_shot_can_be_drawn():
    rng = np.random.default_rng(1)
    people = [Person.sample(rng) for _ in range(60)]
    assert (
        {p.bald for p in people} == {p.beard > 0 for p in people} == {p.freckles > 0 for p in people} == {True, False}
    )
    for person in people:
        assert draw(person, Shot.sample(rng)).std() > 5


def test_an_identity_does_not_depend_on_the_number_of_shots():
    assert person_photos(0, 5, 3)[:2] == person_photos(0, 5, 2)


def test_same_bytes_with_any_number_of_workers(made, tmp_path):
    make(tmp_path / "again", SMALL, workers=2)
    assert set(contents(made)) == FILES
    assert contents(tmp_path / "again") == contents(made)


def test_another_seed_makes_other_people():
    assert person_photos(1, 0, 1) != person_photos(0, 0, 1)


def test_record_0_holds_the_ends_of_images_and_identities(reader):
    header, payload = reader.read_image(0)
    assert (header.flag, list(header.label), payload) == (2, [7, 10], b"")
    assert list(reader.keys) == list(range(10))


def test_images_have_the_label_of_their_identity(reader):
    for key in range(1, 7):
        header, payload = reader.read_image(key)
        assert (header.flag, header.label) == (0, (key - 1) // 2)
        assert cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR).shape == (112, 112, 3)


def test_identity_records_hold_the_range_of_their_images(reader):
    for label, key in enumerate(range(7, 10)):
        header, payload = reader.read_image(key)
        assert (header.flag, list(header.label), payload) == (2, [1 + 2 * label, 3 + 2 * label], b"")


def test_property_counts_the_people(made):
    assert (made / "property").read_text().strip() == "3,112,112"


def test_test_identities_are_not_trained_on_and_pairs_have_the_right_labels():
    plan = Plan(people=5, test_people=7, pairs=100)
    pairs, same = plan_pairs(plan)
    assert {number for pair in pairs for number in pair} == set(range(5, 12))
    assert [a == b for a, b in pairs] == same


def test_no_photo_to_verify_on_is_trained_on_or_used_twice(made, reader):
    images, _ = pickle.loads((made / "demo.bin").read_bytes())
    assert len({*images, *(reader.read_image(key)[1] for key in range(1, 7))}) == len(images) + 6


def test_every_fold_has_as_many_pairs_of_both_kinds(made):
    images, same = pickle.loads((made / "demo.bin").read_bytes())
    assert len(images) == 2 * len(same) == 80
    assert all(type(flag) is bool for flag in same)
    assert [sum(fold) for fold in np.array_split(same, 10)] == [2] * 10


def test_second_run_does_nothing_and_force_replaces_the_set(made):
    before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    assert not make(made, SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in made.iterdir()}
    old = contents(made)
    assert make(made, SMALL, force=True)
    assert contents(made) == old
    assert (made / "made.json").stat().st_mtime_ns > before[made / "made.json"]


def test_other_arguments_do_not_replace_a_set_unasked(made):
    with pytest.raises(UserError, match=r"seed 0, not 1.*--force"):
        make(made, Plan(people=3, shots=2, test_people=3, pairs=40, seed=1))


def test_never_replaces_what_it_has_not_made(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="was not made by this program"):
        make(tmp_path, SMALL, force=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("data.make_demo_faces._write_training", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "faces", SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"people": 0}, "--people 0"),
        ({"shots": 0}, "--shots 0"),
        ({"test_people": 1}, "--test-people 1"),
        ({"pairs": 1001}, "--pairs 1001"),
        ({"pairs": 10**9}, "--pairs 1000000000"),
        ({"people": 100_000, "shots": 10_000}, "2\\^24"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_names_the_argument_that_is_wrong(tmp_path, change, named):
    with pytest.raises(UserError, match=named) as caught:
        make(tmp_path / "faces", Plan(**change))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_script_ends_with_2_and_one_line_where_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    done = script("--out", tmp_path / "file" / "faces", "--workers", 1)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_script_reports_that_there_is_nothing_to_do(made):
    done = script("--out", made, "--people", 3, "--shots", 2, "--test-people", 3, "--pairs", 40)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing to do" in done.stdout
