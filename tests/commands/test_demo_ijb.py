"""The synthetic IJB set of data/make_demo_ijb.py: deterministic, in the layout of InsightFace."""

import json
import sys
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise

import cv2
import numpy as np
import pytest

from data.make_demo_faces import Plan as FacesPlan
from data.make_demo_faces import make as make_faces
from data.make_demo_ijb import Plan, make, person_photos, plan_set, sample_person
from data.synthetic.canvas import SIZE, TEMPLATE
from data.synthetic.people import Person
from data.synthetic.photos import MAX_ROLL, MAX_SIDE, MIN_SIDE, View, sample_template
from data.synthetic.procedural import draw
from tests.helpers.commands import run_command
from tests.helpers.paths import ROOT
from utils.errors import UserError

SMALL = Plan(people=3, probes=2, pairs=7)
LISTS = [
    "ijbc_1N_gallery_G1.csv",
    "ijbc_1N_gallery_G2.csv",
    "ijbc_1N_probe_mixed.csv",
    "ijbc_face_tid_mid.txt",
    "ijbc_name_5pts_score.txt",
    "ijbc_template_pair_label.txt",
]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def script(*arguments):
    return run_command(ROOT, sys.executable, "data/make_demo_ijb.py", *arguments, new_interpreter=True)


def lines(folder, name):
    return [line.split() for line in (folder / "meta" / f"ijbc_{name}.txt").read_text().splitlines()]


def csv(folder, name):
    """Returns the rows of a list for identification without its header."""
    header, *rows = (folder / "meta" / f"ijbc_1N_{name}.csv").read_text().splitlines()
    assert header == "TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID"
    return [row.split(",") for row in rows]


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)


def aligned(image, landmarks):
    """The crop by the similarity that brings the landmarks (5,), as x + iy, closest to the template."""
    middle, target = landmarks.mean(), TEMPLATE.mean()
    factor = np.vdot(landmarks - middle, TEMPLATE - target) / np.vdot(landmarks - middle, landmarks - middle)
    shift = target - factor * middle
    matrix = np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])
    return cv2.warpAffine(image, matrix, (SIZE, SIZE))


def alike(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of the set SMALL."""
    folder = tmp_path_factory.mktemp("demo") / "ijb"
    assert make(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def detections(made):
    """Landmarks (5,) as x + iy and detector score, by file."""
    rows = {name: np.array(values, float) for name, *values in lines(made, "name_5pts_score")}
    return {name: (values[:-1:2] + 1j * values[1::2], values[-1]) for name, values in rows.items()}


@pytest.fixture(scope="module")
def drawn_detections():
    """The person and the detection in each photo, by file."""
    people = {number: sample_person(SMALL.seed, number, SMALL.probes)[0] for number in SMALL.numbers}
    return {image.name: (people[image.subject], image.detection) for image in plan_set(SMALL)[1]}


def test_same_bytes_with_any_number_of_workers(made, tmp_path):
    make(tmp_path / "again", SMALL, workers=2)
    assert contents(tmp_path / "again") == contents(made)


def test_another_seed_makes_other_people_and_another_first_too():
    for plan in (replace(SMALL, seed=1), replace(SMALL, first=263)):
        assert not {sample_person(plan.seed, n, 1)[0] for n in plan.numbers} & {
            sample_person(SMALL.seed, n, 1)[0] for n in SMALL.numbers
        }


def test_nobody_is_in_the_demo_training_set_and_people_are_those_of_the_demo():
    """Identity 260 is the first after those of make_demo_faces, which draws identity N in the same way."""
    assert Plan().first == FacesPlan().people + FacesPlan().test_people
    assert sample_person(0, 5, 1)[0] == Person.sample(np.random.default_rng([0, 5]))


def test_an_identity_does_not_depend_on_the_number_of_probes():
    assert person_photos(0, 5, 2)[: len(person_photos(0, 5, 1))] == person_photos(0, 5, 1)


def test_layout(made):
    names = {f"loose_crop/{name}" for name, *_ in lines(made, "face_tid_mid")}
    assert set(contents(made)) == {"people.png", "made.json"} | names | {f"meta/{name}" for name in LISTS}
    assert names == {f"loose_crop/{i}.jpg" for i in range(1, len(names) + 1)}
    assert json.loads((made / "made.json").read_text())["target"] == "IJBC"
    assert read(made / "people.png").shape == (3 * 160, 8 * 160, 3)


def test_names_of_the_other_target(tmp_path):
    make(tmp_path / "ijb", replace(SMALL, target="IJBB", people=2, probes=1))
    expected = {name.replace("ijbc", "ijbb").replace("_G", "_S") for name in LISTS}
    assert {path.name for path in (tmp_path / "ijb" / "meta").iterdir()} == expected


def test_lists_have_the_same_images_in_the_same_order(made):
    files, detected = lines(made, "face_tid_mid"), lines(made, "name_5pts_score")
    assert [row[0] for row in files] == [row[0] for row in detected]
    assert {len(row) for row in files} == {3} and {len(row) for row in detected} == {12}


def test_photos_are_larger_than_the_face_which_is_in_them(made, detections):
    sizes = []
    for name, (landmarks, score) in detections.items():
        height, width, _ = read(made / "loose_crop" / name).shape
        assert min(height, width) >= MIN_SIDE and max(height, width) <= MAX_SIDE
        assert landmarks.real.min() > 0 and landmarks.real.max() < width
        assert landmarks.imag.min() > 0 and landmarks.imag.max() < height
        assert 0.5 <= score <= 1
        sizes.append((width, height))
    assert len(set(sizes)) > len(sizes) / 2
    assert sum(width != height for width, height in sizes) > 0.9 * len(sizes)


def test_landmarks_are_where_the_face_is(made, detections, drawn_detections):
    """Alignment by the landmarks recovers the drawn face; landmarks eight pixels away do not."""
    hits = []
    for name, (person, detection) in drawn_detections.items():
        photo, landmarks, face = read(made / "loose_crop" / name), detections[name][0], draw(person, detection.shot)
        hit, missed = (alike(aligned(photo, x), face) for x in (landmarks, landmarks + 8 * detection.view.scale))
        assert hit > max(missed, 0.85), name
        hits.append(hit)
    assert np.mean(hits) > 0.95


def test_faces_are_turned_and_scaled_and_detected_with_an_error(detections, drawn_detections):
    factors, errors = [], []
    for name, (_, detection) in drawn_detections.items():
        landmarks, truth = detections[name][0], detection.view.to_photo(TEMPLATE)
        factors.append(np.vdot(TEMPLATE - TEMPLATE.mean(), landmarks - landmarks.mean()) / TEMPLATE.var() / 5)
        errors.append(np.abs(landmarks - truth) / detection.view.scale)
    assert 0.3 < np.mean(errors) < 1.5
    roll, scale = np.angle(factors), np.abs(factors)
    assert roll.min() < -MAX_ROLL / 2 and roll.max() > MAX_ROLL / 2 and np.abs(roll).max() < MAX_ROLL + 0.1
    assert 0.9 < scale.min() < 1.2 and 1.7 < scale.max() < 2.1


def test_the_rotated_crop_is_inside_the_photo():
    rng = np.random.default_rng(0)
    corners = (SIZE - 1) * np.array([0, 1, 1j, 1 + 1j])  # the centres of the pixels there
    for _ in range(500):
        view = View.sample(rng, 0).jittered(rng)
        x, y = view.to_photo(corners).real, view.to_photo(corners).imag
        assert min(x.min(), y.min()) > -0.5 and x.max() < view.size[0] - 0.5 and y.max() < view.size[1] - 0.5


def test_the_detector_doubts_what_is_hard_to_see(made, detections, drawn_detections):
    losses = [detection.view.degradation for _, detection in drawn_detections.values()]
    scores = [detections[name][1] for name in drawn_detections]
    assert np.corrcoef(losses, scores)[0, 1] < -0.8
    edges = [aligned(read(made / "loose_crop" / name), detections[name][0]) for name in drawn_detections]
    sharpness = [np.log(cv2.Laplacian(face, cv2.CV_32F).std()) for face in edges]
    assert np.corrcoef(sharpness, scores)[0, 1] > 0.5


def test_every_template_and_medium_has_one_identity_and_media_are_counted():
    _, images, _ = plan_set(replace(SMALL, people=10))
    of_medium = {image.medium: image.template for image in images}
    assert all(of_medium[image.medium] == image.template for image in images)
    assert set(Counter(image.medium for image in images).values()) == {1, 2, 3, 4, 5}
    assert set(Counter(of_medium.values()).values()) == {1, 2, 3, 4, 5, 6}
    assert 1 in Counter(image.template for image in images).values()
    subject = {image.template: image.subject for image in images}
    assert all(subject[image.template] == image.subject for image in images)


def test_frames_of_a_video_are_alike_and_not_the_same():
    rng = np.random.default_rng(2)
    person = Person.sample(rng)
    frames = next(medium for medium in sample_template(rng) if len(medium) > 1)
    other = sample_template(rng)[0][0]
    first, second, another = (draw(person, detection.shot) for detection in (*frames[:2], other))
    assert 1 > alike(first, second) > max(0.8, alike(first, another))


def test_ids_have_gaps_and_the_images_of_a_template_are_scattered(made):
    rows = [(int(template), int(medium)) for _, template, medium in lines(made, "face_tid_mid")]
    templates, media = {row[0] for row in rows}, {row[1] for row in rows}
    assert max(templates) > len(templates) and max(media) > len(media)
    changes = sum(a[0] != b[0] for a, b in pairwise(rows))
    assert changes > 2 * len(templates)


def test_pairs_have_the_right_labels(made):
    subject = {row[0]: row[1] for name in ("gallery_G1", "gallery_G2", "probe_mixed") for row in csv(made, name)}
    gallery = {row[0] for name in ("gallery_G1", "gallery_G2") for row in csv(made, name)}
    pairs = lines(made, "template_pair_label")
    assert len({(a, b) for a, b, _ in pairs}) == len(pairs) == SMALL.people * SMALL.probes + SMALL.pairs
    for a, b, same in pairs:
        assert a in gallery and b not in gallery
        assert same == str(int(subject[a] == subject[b]))
    assert sum(same == "1" for *_, same in pairs) == SMALL.people * SMALL.probes


def test_pairs_of_others_end_where_there_are_no_more():
    pairs = plan_set(replace(SMALL, pairs=10_000))[2]
    assert Counter(same for *_, same in pairs) == {1: 3 * 2, 0: 3 * 2 * 2}
    assert len(set(pairs)) == len(pairs)


def test_galleries_and_probes(made):
    first, second, probes = (csv(made, name) for name in ("gallery_G1", "gallery_G2", "probe_mixed"))
    for gallery, people in ((first, {"260", "261"}), (second, {"262"})):
        assert {row[1] for row in gallery} == people
        assert len({row[0] for row in gallery}) == len(people)
    assert Counter(subject for _, subject in {(row[0], row[1]) for row in probes}) == dict.fromkeys(
        ("260", "261", "262"), SMALL.probes
    )
    rows = [(row[2], row[0]) for row in (*first, *second, *probes)]
    assert sorted(rows) == sorted((name, template) for name, template, _ in lines(made, "face_tid_mid"))
    drawn_detections = [row[3] for row in (*first, *second, *probes)]
    assert len(set(drawn_detections)) == len(drawn_detections)


def test_second_run_does_nothing_and_force_replaces_the_set(made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert not make(made, SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    old = contents(made)
    assert make(made, SMALL, force=True)
    assert contents(made) == old
    assert (made / "made.json").stat().st_mtime_ns > before[made / "made.json"]


def test_other_arguments_do_not_replace_a_set_unasked(made):
    with pytest.raises(UserError, match=r"pairs 7, not 8.*--force"):
        make(made, replace(SMALL, pairs=8))


def test_never_replaces_what_it_has_not_made(tmp_path):
    faces = FacesPlan(people=2, shots=1, test_people=2, pairs=20)
    assert make_faces(tmp_path / "faces", faces)
    before = contents(tmp_path)
    for folder in (tmp_path, tmp_path / "faces"):
        with pytest.raises(UserError, match="was not made by this program"):
            make(folder, SMALL, force=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "raised"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "disk full"), UserError)]
)
def test_a_run_that_ends_early_leaves_nothing_and_keeps_what_stood_there(tmp_path, monkeypatch, error, raised):
    small = replace(SMALL, people=2, probes=1)
    make(tmp_path / "ijb", small)
    before = contents(tmp_path)

    def fail(*_):
        raise error

    monkeypatch.setattr("data.make_demo_ijb._tile", fail)  # when photos are written already
    for name, force in (("ijb", True), ("another", False)):
        with pytest.raises(raised):
            make(tmp_path / name, small, force=force)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["ijb"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "IJBA"}, "--target IJBA: should be IJBB or IJBC"),
        ({"people": 1}, "--people 1: should be from 2 to 2000"),
        ({"first": -1}, "--first -1: should be from 0 to 1000000000"),
        ({"probes": 0}, "--probes 0: should be from 1 to 20"),
        ({"pairs": 0}, "--pairs 0: should be from 1 to 10000000"),
        ({"seed": -1}, "--seed -1: should be from 0 to 4294967295"),
    ],
)
def test_names_the_argument_that_is_wrong(tmp_path, change, message):
    with pytest.raises(UserError) as caught:
        make(tmp_path / "ijb", Plan(**change))
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "ijbc"], "--target ijbc: should be IJBB or IJBC"),
        (["--workers", 0], "--workers 0: should be from 1 to 256"),
        (["--out", "README.md/ijb"], "README.md: File exists; choose another --out"),
    ],
)
def test_script_ends_with_2_and_one_line(arguments, message):
    done = script(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {message}\n"


def test_script_takes_every_option_and_reports_what_it_made(tmp_path):
    arguments = ["--people", 2, "--first", 7, "--probes", 1, "--pairs", 1, "--seed", 5, "--target", "IJBB"]
    done = script("--out", tmp_path / "ijb", *arguments, "--workers", 1)
    assert (done.returncode, done.stderr) == (0, "")
    count = len(list((tmp_path / "ijb" / "loose_crop").iterdir()))
    assert f"2 people in {count} images and 4 templates" in done.stdout
    made = json.loads((tmp_path / "ijb" / "made.json").read_text())
    assert made | {"version": 0} == asdict(Plan("IJBB", 2, 7, 1, 1, 5)) | {"version": 0}
    again = script("--out", tmp_path / "ijb", *arguments)
    assert again.returncode == 0 and "nothing to do" in again.stdout
