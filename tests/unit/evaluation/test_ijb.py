"""The parts of the IJB evaluation: against the golden vectors, and against loops that follow the published text."""

import errno
import os
import re
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from config import load_config
from eval.IJB import features as features_module
from eval.IJB.features import Crops, Features, embed_images
from eval.IJB.identification import Identification, identify, mean_identification
from eval.IJB.protocol import Images, line_number, read_images, read_protocol, read_subjects, read_template_pairs
from eval.IJB.report import FPRS, IjbScore, format_table, roc_figure
from eval.IJB.templates import Embeddings, Switches, pool_templates, score_pairs
from eval.reporting.roc import Roc, auc, eer, operating_point_at_far, roc, tpr_nearest
from tests.helpers.ijb_reference import published_features, published_search, published_templates
from tests.helpers.paths import GOLDEN, ROOT
from utils.datasets.alignment import TEMPLATE, crop, similarity
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.filesystem import sha256

ALONE = World(0, 1, torch.device("cpu"))
SWITCHES = [Switches(*flags) for flags in product((True, False), repeat=3)]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "ijb.npz") as vectors:
        return dict(vectors)


# ------------------------------------------------------------------------------------------------------- golden vectors


def test_features_scores_and_table_as_published(golden):
    embeddings = Embeddings(golden["feat"], golden["feat_flip"], golden["det"])
    templates = pool_templates(embeddings, golden["tid"], golden["mid"])
    assert templates.ids.tolist() == golden["template_ids"].tolist()
    assert templates.present.all() and templates.features.dtype == np.float32
    np.testing.assert_allclose(templates.features, golden["template_feats"], rtol=0, atol=1e-5)
    rows = (np.searchsorted(templates.ids, golden[name]) for name in ("p1", "p2"))
    scores = score_pairs(templates.features, *rows)
    np.testing.assert_allclose(scores, golden["score"], rtol=0, atol=1e-5)
    assert tuple(golden["fpr_points"]) == FPRS
    for values in (scores, golden["score"]):
        curve = roc(values, golden["label"])
        found = [f"{100 * rate:.2f}" for rate in tpr_nearest(curve, FPRS)]
        assert found == [f"{rate:.2f}" for rate in golden["tpr_percent"]]
        assert auc(curve) == pytest.approx(roc_auc_score(golden["label"], values), abs=1e-12)


def test_crops_and_matrices_to_the_bit(golden):
    image = np.ascontiguousarray(golden["align_image_bgr"][:, :, ::-1])
    for number, landmarks in enumerate(golden["align_landmarks"]):
        matrix = similarity(landmarks)
        assert matrix.tobytes() == golden["align_matrix"][number].tobytes()
        assert crop(image, matrix).tobytes() == golden["align_crop_rgb"][number].tobytes()


# ------------------------------------------------------------------------------------------------------------ alignment


def test_a_shift_by_an_integer_copies_pixels_and_is_black_outside():
    image = np.random.default_rng(2).integers(1, 256, (150, 140, 3), dtype=np.uint8)
    inside = crop(image, similarity(TEMPLATE + np.float32((20, 30))))
    assert np.array_equal(inside, image[30:142, 20:132])
    beyond = crop(image, similarity(TEMPLATE + np.float32((60, -40))))
    assert np.array_equal(beyond[40:, :80], image[:72, 60:])
    assert not beyond[:40].any() and not beyond[:, 80:].any()


def test_the_similarity_is_the_least_squares_one_and_never_a_reflection():
    rng = np.random.default_rng(4)
    for _ in range(20):
        landmarks = TEMPLATE * rng.uniform(0.3, 5) + rng.normal(0, 6, (5, 2)) + rng.uniform(0, 300, 2)
        (a, b, x), (c, d, y) = similarity(landmarks)
        # x' = a·x - c·y + tx, y' = c·x + a·y + ty: linear in (a, c, tx, ty)
        rows = [((p, -q, 1, 0), (q, p, 0, 1)) for p, q in landmarks]
        best = np.linalg.lstsq(np.concatenate(rows), TEMPLATE.ravel(), rcond=None)[0]
        np.testing.assert_allclose([a, c, x, y], best, rtol=1e-3, atol=1e-3)
        assert (a, b) == pytest.approx((d, -c))
        flipped = similarity(landmarks * (-1, 1))
        assert np.linalg.det(flipped[:, :2]) > 0


# ------------------------------------------------------------------------------------------- features, templates, pairs


def some_images(n: int = 90, size: int = 12) -> tuple[Embeddings, np.ndarray, np.ndarray]:
    """Embeddings, templates and media: several images a medium, media that recur in other templates."""
    rng = np.random.default_rng(6)
    direct, flipped = (rng.standard_normal((2, n, size)) * rng.uniform(0.2, 5, (n, 1))).astype(np.float32)
    embeddings = Embeddings(direct, flipped, rng.uniform(0.3, 1, n).astype(np.float32))
    return embeddings, rng.choice([3, 11, 12, 70, -4], n), rng.integers(0, 9, n)


@pytest.mark.parametrize("n", [90, 5000])
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "".join("fnd"[i] if on else "-" for i, on in enumerate(s)))
def test_switches_as_the_loop(switches, n):
    embeddings, templates, media = some_images(n)
    pooled = pool_templates(embeddings, templates, media, switches)
    expected = published_templates(published_features(*embeddings, switches), templates, media)
    assert pooled.ids.tolist() == [-4, 3, 11, 12, 70]
    np.testing.assert_allclose(pooled.features, expected, rtol=0, atol=2e-6)


def test_each_switch_makes_a_difference():
    found = [pool_templates(*some_images(), switches).features for switches in SWITCHES]
    for i, one in enumerate(found):
        assert all(np.abs(one - other).max() > 1e-3 for other in found[:i])
    assert np.array_equal(pool_templates(*some_images()).features, found[0])  # all on by default, as published


@pytest.mark.parametrize("switches", SWITCHES)
def test_an_embedding_of_zeros_stays_zero(switches):
    embeddings, templates, media = some_images()
    embeddings.direct[5] = embeddings.flipped[5] = 0
    templates[5] = 99
    pooled = pool_templates(embeddings, templates, media, switches)
    assert not pooled.features[-1].any() and pooled.present[-1]
    assert np.isfinite(pooled.features).all()


def test_the_order_of_the_images_is_of_no_matter():
    embeddings, templates, media = some_images()
    order = np.random.default_rng(1).permutation(len(media))
    one = pool_templates(embeddings, templates, media)
    other = pool_templates(Embeddings(*(column[order] for column in embeddings)), templates[order], media[order])
    assert one.ids.tolist() == other.ids.tolist()
    np.testing.assert_allclose(one.features, other.features, rtol=0, atol=1e-6)


@pytest.mark.parametrize("switches", SWITCHES)
def test_images_left_out_are_as_if_they_were_not_there(switches):
    embeddings, templates, media = some_images()
    kept = np.random.default_rng(8).random(len(media)) < 0.6
    kept[templates == 12] = False
    expected = published_templates(
        published_features(*(column[kept] for column in embeddings), switches), templates[kept], media[kept]
    )
    embeddings.direct[~kept] = np.nan
    pooled = pool_templates(embeddings, templates, media, switches, kept)
    assert pooled.ids.tolist() == [-4, 3, 11, 12, 70]
    assert pooled.present.tolist() == [True, True, True, False, True]
    assert not pooled.features[3].any()
    np.testing.assert_allclose(pooled.features[pooled.present], expected, rtol=0, atol=1e-6)


def test_no_image_kept_at_all():
    embeddings, templates, media = some_images()
    pooled = pool_templates(embeddings, templates, media, keep=np.zeros(len(media), bool))
    assert not pooled.present.any() and not pooled.features.any()


@pytest.mark.parametrize("pairs", [0, 1, 4095, 4096, 4097, 20_000])
def test_every_pair_has_its_score(pairs):
    rng = np.random.default_rng(pairs)
    features = rng.standard_normal((50, 8)).astype(np.float32)
    first, second = rng.integers(0, 50, (2, pairs)).astype(np.int32)
    scores = score_pairs(features, first, second)
    assert scores.shape == (pairs,) and scores.dtype == np.float32
    np.testing.assert_allclose(scores, (features[first] * features[second]).sum(axis=1), rtol=0, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------- ROC curves


def some_scores(levels: int, n: int = 700, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and flags."""
    rng = np.random.default_rng(levels)
    same = rng.random(n) < 0.4
    return (np.round((same + rng.standard_normal(n)) * levels) / levels).astype(dtype), same


@pytest.mark.parametrize("corners_only", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [1, 3, 20, 10**6])
def test_roc_as_sklearn(levels, dtype, corners_only):
    scores, same = some_scores(levels, dtype=dtype)
    for flags in (same, same.astype(int)):
        curve = roc(scores, flags, corners_only)
        for ours, theirs in zip(curve, roc_curve(same, scores, drop_intermediate=corners_only), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert auc(curve) == pytest.approx(roc_auc_score(same, scores), abs=1e-12)


@pytest.mark.parametrize("corners_only", [True, False])
@pytest.mark.parametrize(("scores", "same"), [([0.5, 0.5], [1, 0]), ([0.2, 0.7], [1, 0]), ([0.2, 0.7], [0, 1])])
def test_roc_of_two_pairs(scores, same, corners_only):
    curve = roc(scores, same, corners_only)
    for ours, theirs in zip(curve, roc_curve(same, scores, drop_intermediate=corners_only), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert auc(curve) == roc_auc_score(same, scores)


@pytest.mark.parametrize(
    ("scores", "same", "message"),
    [
        ([0.1, 0.2], [True], r"scores of shape \(2,\) but flags of shape \(1,\)"),
        ([[0.1, 0.2]], [[True, False]], r"scores of shape \(1, 2\)"),
        ([], [], "all 0 pairs are of one kind"),
        ([0.1, 0.2], [True, True], "all 2 pairs are of one kind"),
        ([0.1, 0.2], [False, False], "all 2 pairs are of one kind"),
        ([0.1, np.nan, 0.2], [True, False, True], "a score is not finite"),
        ([0.1, np.inf, 0.2], [True, False, True], "a score is not finite"),
        ([0.1, -np.inf, 0.2], [True, False, True], "a score is not finite"),
    ],
)
def test_roc_needs_both_labels(scores, same, message):
    with pytest.raises(UserError, match=message):
        roc(scores, same)


def test_eer_lies_on_the_curve_where_far_is_frr():
    for levels in (1, 2, 7, 50):
        curve = roc(*some_scores(levels), corners_only=False)
        rate = eer(curve)
        distances = []
        for i in range(1, len(curve.fpr)):
            start = np.array([curve.fpr[i - 1], curve.tpr[i - 1]])
            step = np.array([curve.fpr[i], curve.tpr[i]]) - start
            share = np.clip(((rate, 1 - rate) - start) @ step / (step @ step), 0, 1)
            distances.append(np.linalg.norm(start + share * step - (rate, 1 - rate)))
        assert min(distances) < 1e-12


@pytest.mark.parametrize(
    ("scores", "same", "expected"),
    [
        ([4, 3, 2, 1], [1, 1, 0, 0], 0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 1),
        ([4, 3, 2, 1], [1, 0, 1, 0], 0.5),
        ([1, 1, 1], [1, 0, 1], 0.5),
        ([5, 4, 3, 2, 1, 0], [1, 1, 0, 1, 0, 0], 1 / 3),
    ],
)
def test_eer_by_hand(scores, same, expected):
    assert eer(roc(np.array(scores, float), same)) == pytest.approx(expected, abs=1e-15)


def test_the_nearest_point_counts_and_of_equally_near_ones_the_higher():
    curve = Roc(
        np.array([0, 0, 0.1, 0.1, 0.3, 1]),
        np.array([0, 0.2, 0.3, 0.5, 0.6, 1]),
        np.array([np.inf, 5, 4, 3, 2, 1]),
    )
    assert tpr_nearest(curve, [1e-6, 0.04, 0.06, 0.19, 0.21, 0.7, 1]).tolist() == [0.2, 0.2, 0.5, 0.5, 0.6, 1, 1]
    even = Roc(np.array([0, 0.25, 0.5, 1]), np.array([0, 0.5, 0.75, 1]), np.array([np.inf, 3, 2, 1]))
    assert tpr_nearest(even, [0.125, 0.375, 0.75]).tolist() == [0.5, 0.75, 1]  # halfway, exactly
    assert tpr_nearest(even, 0.3).tolist() == [0.5]


def test_the_nearest_point_as_the_published_line():
    for levels in (2, 9, 200):
        scores, same = some_scores(levels)
        curve = roc(scores, same)
        fpr, tpr = np.flipud(curve.fpr), np.flipud(curve.tpr)
        for wanted in (*FPRS, 0.03, 0.5, 0.9):
            _, index = min(zip(abs(fpr - wanted), range(len(fpr)), strict=True))
            assert tpr_nearest(curve, wanted).tolist() == [tpr[index]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [2, 5, 40, 10**6])
def test_the_threshold_is_the_lowest_that_the_fpir_allows(levels, dtype):
    scores, same = some_scores(levels, dtype=dtype)
    curve, different = roc(scores, same, corners_only=False), int(np.sum(~same))
    for far in (0.5, 0.1, 0.03, 1 / different, 1.0):
        point = operating_point_at_far(curve, far, different)
        assert point is not None
        accepted = scores >= point.threshold
        assert point.far == np.sum(accepted & ~same) / different <= far
        assert point.frr == 1 - np.sum(accepted & same) / np.sum(same)
        refused = scores[~accepted]
        if len(refused):
            assert np.sum((scores >= refused.max()) & ~same) / different > far


def test_no_threshold_below_one_in_all_different_pairs():
    scores, same = some_scores(30)
    curve, different = roc(scores, same, corners_only=False), int(np.sum(~same))
    assert operating_point_at_far(curve, 0.99 / different, different) is None
    assert operating_point_at_far(curve, 1e-6, different) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_where_the_best_scores_are_different_pairs_nothing_is_accepted(dtype):
    scores = np.array([0.9, 0.9, 0.8, 0.7, 0.6], dtype)
    same = np.array([False, False, True, False, True])
    point = operating_point_at_far(roc(scores, same, corners_only=False), 0.5, 3)
    assert point is not None and (point.far, point.frr) == (0, 1)
    assert not (scores >= point.threshold).any()
    assert point.threshold == pytest.approx(0.9)


# ------------------------------------------------------------------------------------------------------- identification


def whole_numbers(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Vectors whose products are exact in float32 and often equal."""
    return rng.integers(-2, 3, (rows, 5)).astype(np.float32)


@pytest.mark.parametrize("seed", range(6))
def test_identify_as_the_loop(seed):
    rng = np.random.default_rng(seed)
    gallery, probes = whole_numbers(rng, 40), whole_numbers(rng, 260)
    people, subjects = rng.integers(0, 25, 40) * 7, rng.integers(0, 45, 260) * 7  # several templates per subject
    probes[::3] = gallery[rng.integers(0, 40, 87)]
    subjects[::3] = people[rng.integers(0, 40, 87)]
    found = identify(gallery, people, probes, subjects)
    assert found is not None
    assert (found.rank1, found.rank5, found.tpir, found.mated, found.strangers) == published_search(
        gallery, people.tolist(), probes, subjects.tolist()
    )
    assert (found.tpir[0.01] is None) == (found.strangers < 100) and found.tpir[0.1] is not None


def test_the_best_template_of_a_subject_counts_and_ties_favour_the_mate():
    gallery, people = np.eye(4, dtype=np.float32), np.array([5, 9, 5, 2])
    probes = np.array([[0, 0, 1, 0], [1, 1, 0, 0], [0, 0.5, 0, 1]], np.float32)
    found = identify(gallery, people, probes, np.array([5, 9, 9]))
    assert found == Identification(2 / 3, 1.0, {0.01: None, 0.1: None}, 3, 0)


@pytest.mark.parametrize(("strangers", "has"), [(9, [False, False]), (10, [False, True]), (99, [False, True]),
                                                (100, [True, True])])  # fmt: skip
def test_tpir_needs_enough_strangers(strangers, has):
    gallery, people = np.eye(2, dtype=np.float32), np.array([0, 1])
    probes = np.vstack([[[0.5, 0]], np.full((strangers, 2), 0.7)]).astype(np.float32)
    found = identify(gallery, people, probes, np.array([0] + [8] * strangers))
    assert found is not None
    assert [rate is not None for rate in found.tpir.values()] == has
    assert all(rate in (None, 0) for rate in found.tpir.values())  # impostors score higher than the mate
    assert found.rank1 == 1


def test_identification_without_anybody_to_find():
    gallery, people = np.eye(2, dtype=np.float32), np.array([0, 1])
    assert identify(gallery, people, gallery, np.array([7, 8])) is None
    assert identify(gallery, people, gallery[:0], people[:0]) is None
    assert identify(gallery[:0], people[:0], gallery, people) is None


def test_the_mean_over_galleries():
    one = Identification(0.5, 1.0, {0.01: None, 0.1: 0.25}, 4, 20)
    other = Identification(1.0, 1.0, {0.01: 0.5, 0.1: 0.75}, 4, 200)
    assert mean_identification([one, other]) == {"rank1": 0.75, "rank5": 1.0, "tpir": {"0.01": None, "0.1": 0.5}}
    assert mean_identification([other])["tpir"] == {"0.01": 0.5, "0.1": 0.75}


# ------------------------------------------------------------------------------------------------------------ the lists

POINTS = "30.5 51 65 51 48 71 33 92 62 92"
LISTS = {
    "name_5pts_score.txt": [f"{name}.jpg {POINTS} 0.{9 - i}" for i, name in enumerate("abcde")],
    "face_tid_mid.txt": ["a.jpg 30 1", "b.jpg 30 1", "c.jpg 7 2", "d.jpg 9 3", "e.jpg 12 1"],
    "template_pair_label.txt": ["30 7 1", "30 9 0", "12 7 0", "9 12 1"],
    "1N_gallery_G1.csv": ["TEMPLATE_ID,SUBJECT_ID,FILENAME", "30,1,a.jpg", "30,1,b.jpg"],
    "1N_gallery_G2.csv": ["TEMPLATE_ID,SUBJECT_ID,FILENAME", "9,2,d.jpg"],
    "1N_probe_mixed.csv": ["TEMPLATE_ID,SUBJECT_ID,FILENAME", "7,1,c.jpg", "12,2,e.jpg"],
}
NAMES = list(LISTS)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A set of five images, without the images."""
    (tmp_path / "loose_crop").mkdir()
    (tmp_path / "meta").mkdir()
    for name, lines in LISTS.items():
        write(tmp_path, name, lines)
    return tmp_path


def write(folder: Path, name: str, lines: list[str | bytes], end: bytes = b"\n", start: bytes = b"") -> Path:
    """Writes a list of IJBC; returns its path."""
    path = folder / "meta" / f"ijbc_{name}"
    path.write_bytes(start + b"".join((x if isinstance(x, bytes) else x.encode()) + end for x in lines))
    return path


def assert_as_written(folder: Path) -> None:
    """That the lists are read as LISTS has them."""
    protocol = read_protocol(folder, "IJBC")
    assert protocol.images.names.tolist() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    assert protocol.images.landmarks.tolist() == [[[30.5, 51], [65, 51], [48, 71], [33, 92], [62, 92]]] * 5
    assert protocol.images.det_scores.tolist() == np.float32([0.9, 0.8, 0.7, 0.6, 0.5]).tolist()
    assert protocol.images.templates.tolist() == [30, 30, 7, 9, 12]
    assert protocol.images.media.tolist() == [1, 1, 2, 3, 1]
    assert protocol.template_ids.tolist() == [7, 9, 12, 30]
    assert [column.tolist() for column in protocol.pairs] == [[3, 3, 2, 1], [0, 1, 0, 2], [True, False, False, True]]
    first, second = protocol.galleries
    assert (first.templates.tolist(), first.subjects.tolist()) == ([3], [1])
    assert (second.templates.tolist(), second.subjects.tolist()) == ([1], [2])
    assert protocol.probes is not None
    assert (protocol.probes.templates.tolist(), protocol.probes.subjects.tolist()) == ([0, 2], [1, 2])
    assert protocol.skipped_pairs == 0


def test_lists_are_read(folder):
    assert_as_written(folder)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b"\n\n", b" \n", b"\n \t\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n\n"])
def test_line_ends_blank_lines_and_byte_order_marks(folder, end, start):
    for name, lines in LISTS.items():
        write(folder, name, lines, end, start)
    assert_as_written(folder)


def test_columns_apart_by_tabs_and_numbers_in_other_forms(folder):
    write(folder, "template_pair_label.txt", [line.replace(" ", "\t ") for line in LISTS["template_pair_label.txt"]])
    write(folder, "face_tid_mid.txt", [line.replace(" 30", " +30") for line in LISTS["face_tid_mid.txt"]])
    write(folder, "name_5pts_score.txt", [line.replace("30.5", "3.05e1") for line in LISTS["name_5pts_score.txt"]])
    assert_as_written(folder)


def test_columns_of_a_csv_in_another_order(folder):
    write(folder, "1N_probe_mixed.csv", ["filename, subject_id ,X,template_id", '"c,1.jpg", 1 ,5,7', "e.jpg,2,,12"])
    assert_as_written(folder)


def test_ijbb_has_its_own_names(folder):
    with pytest.raises(UserError, match=r"ijbb_name_5pts_score\.txt: No such file"):
        read_protocol(folder, "IJBB")
    for path in list((folder / "meta").iterdir()):
        name = path.name.replace("ijbc", "ijbb").replace("G1", "S1").replace("G2", "S2")
        path.rename(path.with_name(name))
    assert len(read_protocol(folder, "IJBB").galleries) == 2


@pytest.mark.parametrize("name", NAMES[3:])
def test_without_all_lists_for_identification_there_is_none(folder, name):
    (folder / "meta" / f"ijbc_{name}").unlink()
    protocol = read_protocol(folder, "IJBC")
    assert (protocol.galleries, protocol.probes) == ([], None)


HUGE = "9" * 5000
MALFORMED = [
    *[
        ("name_5pts_score.txt", row, line, "should read 'file x1 y1 .* score', reads ")
        for row in (0, 2, 4)
        for line in (f"c.jpg {POINTS}", f"c.jpg {POINTS} 0.7 1", "c.jpg", f"c.jpg {POINTS} high", f"c.jpg {POINTS} 0,7")
    ],
    *[
        ("name_5pts_score.txt", 2, f"c.jpg {POINTS} 0.7".replace(old, new), "should read 'file x1 y1 .* score', reads ")
        for old in ("30.5", "92 0.7")
        for new in ("nan", "inf", "-inf", "NaN", "1e400", "-1e39", "1_0", "0x1f", "٣", HUGE, "1e", "")
    ],
    ("name_5pts_score.txt", 2, f"c.jpg {POINTS} 0.7".encode() + b" \xff", "should read"),
    ("name_5pts_score.txt", 2, f"c.jpg {POINTS} 0.7\0".encode(), "should read"),
    ("name_5pts_score.txt", 2, b"\xff\xfe.jpg " + f"{POINTS} 0.7".encode(), "should read"),
    ("name_5pts_score.txt", 3, "d.jpg" + " 50" * 10 + " 0.7", r"d\.jpg: its landmarks are all at one point"),
    *[
        ("face_tid_mid.txt", row, f"c.jpg {rest}", "should read 'file template medium', reads ")
        for row in (0, 2, 4)
        for rest in ("7", "7 2 3", "", "7.0 2", "x 2", "7 1e400", f"7 {2**63}", f"{-(2**63) - 1} 2", "7 nan", "1_0 2",
                     "٧ 2", HUGE, f"{HUGE} 2", "7 2\0")
    ],
    ("face_tid_mid.txt", 2, b"c.jpg 7 \xc3\x28", "should read"),
    ("face_tid_mid.txt", 2, b"c\xff.jpg 7 2", "should read"),
    *[
        ("template_pair_label.txt", row, line, "should read 'template template label', reads ")
        for row in (0, 1, 3)
        for line in ("30 7", "30 7 1 1", "30 7 x", "30 7.0 1", f"{2**31} 7 1", f"7 {-(2**31) - 1} 1", "30 1e1 1",
                     "nan 7 1", "3_0 7 1", "30;7;1", f"{HUGE} 7 1", "٧ 9 0", "30 7 1\0")
    ],
    ("template_pair_label.txt", 1, b"30 9 \xff", "should read"),
    ("template_pair_label.txt", 2, "12 7 2", r"label 2, should be 1 \(the same person\) or 0"),
    ("template_pair_label.txt", 2, "12 7 -1", "label -1, should be 1"),
    ("template_pair_label.txt", 2, "12 8 0", "template 8 has no image; --skip-missing"),
    ("template_pair_label.txt", 2, "31 7 0", "template 31 has no image"),
    ("template_pair_label.txt", 0, "1 2147483647 0", "template 1 has no image"),
    *[
        ("1N_probe_mixed.csv", 2, line, "has no template and subject")
        for line in ("12", "x,2", "12,", "12,x", "12.0,2", f"12,{2**63}", f"{HUGE},2", "12,nan", "1_2,2", "١٢,2",
                     b"\xff\xfe,2", b"12,\0")
    ],
    ("1N_gallery_G1.csv", 2, "30,5,b.jpg", "template 30 is of subject 1 above"),
    ("1N_gallery_G2.csv", 1, "10,5,b.jpg", "template 10 has no image; --skip-missing"),
    ("1N_gallery_G2.csv", 0, "TEMPLATE,SUBJECT,FILENAME", "should name the columns TEMPLATE_ID and SUBJECT_ID"),
    ("1N_gallery_G2.csv", 0, "9,2,d.jpg", "should name the columns"),
    ("1N_gallery_G2.csv", 1, '9,2,"d.jpg', "unexpected end of data"),
    ("1N_gallery_G2.csv", 1, "9,2," + "x" * 200_000, "field larger than field limit"),
]  # fmt: skip


@pytest.mark.parametrize("blank", [0, 3])
@pytest.mark.parametrize(("name", "row", "line", "message"), MALFORMED)
def test_errors_in_a_list_name_file_and_line(folder, name, row, line, message, blank):
    lines = list(LISTS[name])
    lines[row] = line
    path = write(folder, name, lines, start=b"\n" * (blank - 1) + b" \t\n" if blank else b"")
    with pytest.raises(UserError, match=message) as caught:
        read_protocol(folder, "IJBC")
    assert str(caught.value).startswith(f"{path} line {blank + row + 1}: ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(path))
    str(caught.value).encode()  # can be printed


@pytest.mark.parametrize("line", ["30 7", "30 7 1 0", "30"])
def test_pairs_of_another_number_of_columns_throughout(folder, line):
    path = write(folder, "template_pair_label.txt", ["", line, line])
    with pytest.raises(UserError) as caught:
        read_protocol(folder, "IJBC")
    assert str(caught.value).startswith(f"{path} line 2: should read 'template template label', reads '{line}'")


@pytest.mark.parametrize(
    ("row", "templates", "line", "words"),
    [
        (2, [*LISTS["face_tid_mid.txt"][:2], "x.jpg 7 2", *LISTS["face_tid_mid.txt"][3:]], 3, "x.jpg, but"),
        (0, ["x.jpg 30 1", "y.jpg 30 1", *LISTS["face_tid_mid.txt"][2:]], 1, "x.jpg, but"),
        (4, LISTS["face_tid_mid.txt"][:4], 5, "nothing, but"),
        (5, [*LISTS["face_tid_mid.txt"], "f.jpg 4 1"], 6, "f.jpg, but"),
        (1, LISTS["face_tid_mid.txt"][::2], 2, "c.jpg, but"),
    ],
)
@pytest.mark.parametrize("blanks", [(0, 0), (2, 0), (1, 4)])
def test_lists_of_other_images_name_both_lines(folder, row, templates, line, words, blanks):
    one, other = blanks
    write(folder, "name_5pts_score.txt", LISTS["name_5pts_score.txt"], start=b"\n" * one)
    path = write(folder, "face_tid_mid.txt", templates, start=b"\n" * other)
    with pytest.raises(UserError, match="the same images in the same order") as caught:
        read_protocol(folder, "IJBC")
    there = "abcde"[row] + ".jpg" if row < 5 else "nothing"
    assert str(caught.value).startswith(
        f"{path} line {other + line}: {words} line {one + row + 1} of ijbc_name_5pts_score.txt: {there};"
    )


@pytest.mark.parametrize("content", [b"", b"\n", b"  \n\n \t\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_list(folder, name, content, recwarn):
    path = folder / "meta" / f"ijbc_{name}"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_protocol(folder, "IJBC")
    expected = f"{path} line 1: should name" if name.endswith("csv") else f"{path}: is empty; a line should read '"
    assert str(caught.value).startswith(expected)
    assert not recwarn.list  # no warning beside the error


@pytest.mark.parametrize("name", NAMES)
def test_a_list_that_is_a_pipe_is_not_waited_for(folder, name):
    path = folder / "meta" / f"ijbc_{name}"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=rf"{name}: is not a regular file \(a pipe\)"):
        read_protocol(folder, "IJBC")


@pytest.mark.parametrize("name", NAMES[3:])
def test_a_list_for_identification_with_nothing_but_its_header(folder, name):
    path = write(folder, name, LISTS[name][:1])
    with pytest.raises(UserError, match="holds no templates with images"):
        read_protocol(folder, "IJBC")
    assert path.is_file()


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_list_that_is_missing_or_a_folder(folder, name):
    path = folder / "meta" / f"ijbc_{name}"
    path.unlink()
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            read_protocol(folder, "IJBC")
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        path.mkdir(exist_ok=True)


@pytest.mark.parametrize("name", NAMES)
def test_rubbish_is_an_error_and_never_a_traceback(folder, name):
    rng = np.random.default_rng(NAMES.index(name))
    path = folder / "meta" / f"ijbc_{name}"
    rubbish = [rng.bytes(size) for size in (1, 10, 1000, 100_000)]
    rubbish += [bytes(rng.choice(list(alphabet), 500).tolist()) for alphabet in (b"019 \n.-e,", b"\0 \n1", b'",\r\n1')]
    rubbish += [b"\xff\xfe" + "a.jpg 1 2\n".encode("utf-16-le"), b"\x1f\x8b\x08" + rng.bytes(50), b"\0" * 100]
    good = "\n".join(LISTS[name]).encode()
    for _ in range(20):  # a list with a few bytes of it changed
        broken = bytearray(good)
        for at in rng.integers(0, len(good), 3):
            broken[at] = rng.integers(128, 256)
        rubbish.append(bytes(broken))
    rejected = 0
    for content in rubbish:
        path.write_bytes(content)
        try:
            read_protocol(folder, "IJBC")
        except UserError as error:
            assert str(path) in str(error) or "ijbc_face_tid_mid.txt" in str(error)
            str(error).encode()
            rejected += 1
    # The file names in a CSV may be anything.
    assert rejected >= (len(rubbish) - 20 if name.endswith("csv") else len(rubbish))


@pytest.mark.parametrize("pairs", [["30 7 1", "9 12 1"], ["30 7 0"]])
def test_pairs_of_one_kind(folder, pairs):
    write(folder, "template_pair_label.txt", pairs)
    with pytest.raises(UserError, match=f"all {len(pairs)} pairs are of one kind"):
        read_protocol(folder, "IJBC")


def test_what_names_a_template_without_an_image_is_left_out_and_counted(folder):
    write(folder, "template_pair_label.txt", ["1 7 1", *LISTS["template_pair_label.txt"], "9 99 0", "5 6 0"])
    write(folder, "1N_gallery_G1.csv", [*LISTS["1N_gallery_G1.csv"], "5,8,x.jpg", "5,8,y.jpg"])
    with pytest.raises(UserError, match="line 1: template 1 has no image"):
        read_protocol(folder, "IJBC")
    protocol = read_protocol(folder, "IJBC", skip_missing=True)
    assert protocol.skipped_pairs == 3
    assert [column.tolist() for column in protocol.pairs] == [[3, 3, 2, 1], [0, 1, 0, 2], [True, False, False, True]]
    assert protocol.galleries[0].templates.tolist() == [3]
    assert [held.skipped for held in protocol.galleries] == [1, 0]


def test_a_template_above_all_others_is_not_taken_for_the_last(folder):
    """The ids' places are searched: beyond the end there is none."""
    ids = np.array([7, 9, 12, 30])
    path = write(folder, "template_pair_label.txt", ["31 7 1", "30 7 1", "30 9 0"])
    pairs, skipped = read_template_pairs(path, ids, skip_missing=True)
    assert skipped == 1 and pairs.first.tolist() == [3, 3]


def test_subjects_without_any_known_template(folder):
    with pytest.raises(UserError, match="holds no templates with images"):
        read_subjects(folder / "meta" / "ijbc_1N_gallery_G1.csv", np.array([1, 2]), skip_missing=True)


@pytest.mark.parametrize("name", ["", "loose_crop", "nowhere", "x" * 300])
def test_a_folder_that_is_no_set(folder, name):
    if not name:
        (folder / "loose_crop").rmdir()
    with pytest.raises(UserError, match=r"--image-path '.*': no folders loose_crop and meta in it; .*make_demo_ijb"):
        read_protocol(folder / name, "IJBC")


def test_line_of(tmp_path):
    path = tmp_path / "list"
    path.write_bytes(b"\n a\n\n\t\nb\r\n\xff\n\nd")
    assert [line_number(path, row) for row in range(5)] == [2, 5, 6, 8, 9]
    path.write_bytes(b"")
    assert line_number(path, 0) == 1


# ----------------------------------------------------------------------------------------------------- images, features


def images_of(folder: Path) -> Images:
    return read_images(*(folder / "meta" / f"ijbc_{name}" for name in NAMES[:2]))


def photograph(path: Path, seed: int = 0, shape: tuple[int, int] = (120, 100)) -> bytes:
    """Writes a photo without loss (it is a PNG by content); returns its bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes())
    return path.read_bytes()


@pytest.fixture
def photos(folder) -> Path:
    """The set with its images, its list of landmarks after two blank lines."""
    write(folder, "name_5pts_score.txt", LISTS["name_5pts_score.txt"], start=b"\n\n")
    for seed, name in enumerate("abcde"):
        photograph(folder / "loose_crop" / f"{name}.jpg", seed)
    return folder


def read(crops: Crops, *rows: int) -> tuple[np.ndarray, np.ndarray]:
    pixels, there = np.full((len(rows), 112, 112, 3), 9, np.uint8), np.full(len(rows), 7)
    crops.read_into(rows, pixels, there)
    return pixels, there


def test_crops_are_those_of_the_landmarks(photos):
    images = images_of(photos)
    images.landmarks[3] = TEMPLATE - (4, 2)
    crops = Crops(photos / "loose_crop", images, skip_missing=False)
    assert crops.check_files() == 0
    pixels, there = read(crops, 3, 1)
    assert there.tolist() == [1, 1]
    expected = np.random.default_rng(3).integers(0, 256, (120, 100, 3), dtype=np.uint8)
    assert np.array_equal(pixels[0][2:, 4:104], expected[:110])
    assert np.array_equal(pixels[1], crop(np.random.default_rng(1).integers(0, 256, (120, 100, 3), dtype=np.uint8),
                                          similarity(images.landmarks[1])))  # fmt: skip


def spoil_missing(path: Path) -> None:
    path.unlink()


def spoil_truncated(path: Path) -> None:
    grey = cv2.imencode(".jpg", np.full((120, 100, 3), 90, np.uint8))[1].tobytes()
    path.write_bytes(grey[: len(grey) // 2])


def spoil_text(path: Path) -> None:
    path.write_text("no image")


def spoil_empty(path: Path) -> None:
    path.write_bytes(b"")


def spoil_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def spoil_large(path: Path) -> None:
    path.write_bytes(cv2.imencode(".png", np.zeros((2, 1 << 15, 3), np.uint8))[1].tobytes())


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (spoil_missing, "is missing"),
        (spoil_truncated, "cannot be decoded"),
        (spoil_text, "cannot be decoded"),
        (spoil_empty, "cannot be decoded"),
        (spoil_folder, "is not a regular file"),
        (spoil_large, "is too large, 32768×2"),
    ],
)
def test_an_unreadable_image_is_named_by_line_or_left_out(photos, spoil, problem):
    path = photos / "loose_crop" / "c.jpg"
    spoil(path)
    crops = Crops(photos / "loose_crop", images_of(photos), skip_missing=False)
    with pytest.raises(UserError) as caught:
        read(crops, 1, 2, 3)
    where = f"{photos}/meta/ijbc_name_5pts_score.txt line 5: {path} {problem}"
    assert str(caught.value) == f"{where}; --skip-missing leaves such images out and counts them"
    pixels, there = read(Crops(photos / "loose_crop", images_of(photos), skip_missing=True), 1, 2, 3)
    assert there.tolist() == [1, 0, 1]
    assert pixels[0].any() and not pixels[1].any() and pixels[2].any()


def test_all_missing_files_are_counted_before_any_work(photos):
    for name in "bde":
        (photos / "loose_crop" / f"{name}.jpg").unlink()
    with pytest.raises(UserError, match=r"name_5pts_score\.txt line 4: .*/b\.jpg is missing \(and 2 more\);"):
        Crops(photos / "loose_crop", images_of(photos), skip_missing=False).check_files()
    assert Crops(photos / "loose_crop", images_of(photos), skip_missing=True).check_files() == 3


@pytest.mark.parametrize("name", ["sub/c.jpg", "sub/x.jpg", "../loose_crop/c.jpg", "c\0.jpg", "sub/c\0.jpg", "x" * 300,
                                  "sub/" + "x" * 300, "ü.jpg"])  # fmt: skip
def test_odd_names_of_files(photos, name):
    for item in NAMES[:2]:
        write(photos, item, [line.replace("c.jpg", name) for line in LISTS[item]])
    photograph(photos / "loose_crop" / "sub" / "c.jpg")
    photograph(photos / "loose_crop" / "ü.jpg")
    there = int(name in ("sub/c.jpg", "../loose_crop/c.jpg", "ü.jpg"))
    strict, lenient = (Crops(photos / "loose_crop", images_of(photos), skip) for skip in (False, True))
    assert lenient.check_files() == 1 - there
    assert read(lenient, 1, 2)[1].tolist() == [1, there]
    if not there:
        for action in (strict.check_files, lambda: read(strict, 2)):
            with pytest.raises(UserError, match="txt line 3: "):
                action()


class Means:
    """A runtime whose embedding of an image is its mean colour; remembers how many it met."""

    batch = 2

    def __init__(self) -> None:
        self.met = 0

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.met += len(images)
        means = images.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
        return means, -means


def open_features(folder: Path, world: World = ALONE, **made: str) -> Features:
    return Features(folder / "features", 5, 3, {"lists": "x", **made}, world)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_are_embedded_once_and_only_those_that_are_there_are_done(photos, tmp_path, workers):
    (photos / "loose_crop" / "b.jpg").unlink()
    crops = Crops(photos / "loose_crop", images_of(photos), skip_missing=True)
    features, runtime = open_features(tmp_path), Means()
    embed_images(features, crops, runtime, workers, ALONE, "")
    assert runtime.met == 5 and features.done.tolist() == [1, 0, 1, 1, 1]
    expected = read(crops, *range(5))[0].mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
    for held in (features, open_features(tmp_path)):
        np.testing.assert_array_equal(held.direct, expected)
        np.testing.assert_array_equal(held.flipped, -expected)
    again = Means()
    embed_images(open_features(tmp_path), crops, again, workers, ALONE, "")
    assert again.met == 1  # the missing image may exist by now
    features.remove()
    assert not (tmp_path / "features").exists()


def test_embedding_has_a_line_every_minute(photos, tmp_path, log_capture, slow_clock):
    crops = Crops(photos / "loose_crop", images_of(photos), skip_missing=False)
    runtime = Means()
    runtime.batch = 1
    embed_images(open_features(tmp_path), crops, runtime, 0, ALONE, "IJBC 6")
    assert re.findall(r"IJBC 6: (\d) of 5 images, [\d.]+ minutes to go", log_capture.text) == ["3"]


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt, ZeroDivisionError])
def test_what_was_embedded_before_an_error_is_kept(photos, tmp_path, error):
    class Breaks(Means):
        def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            if self.met == 4:
                raise error("stopped")
            return super().__call__(images)

    crops = Crops(photos / "loose_crop", images_of(photos), skip_missing=False)
    with pytest.raises(error):
        embed_images(open_features(tmp_path), crops, Breaks(), 0, ALONE, "")
    runtime = Means()
    features = open_features(tmp_path)
    assert features.done.tolist() == [1, 1, 1, 1, 0]
    embed_images(features, crops, runtime, 0, ALONE, "")
    assert runtime.met == 1 and features.done.all()


def test_features_of_other_inputs_are_recomputed(tmp_path):
    features = open_features(tmp_path)
    features.done[:] = 1
    assert open_features(tmp_path).done.all()
    assert not open_features(tmp_path, checkpoint="another").done.any()
    described = tmp_path / "features" / "made.json"
    described.write_text(described.read_text()[:-5])  # cut off while it was written
    features = open_features(tmp_path, checkpoint="another")
    assert features.direct.shape == (5, 3) and features.done.tolist() == [0] * 5
    features.done[:] = 1
    described.unlink()
    assert not open_features(tmp_path, checkpoint="another").done.any()


def test_half_recomputed_features_are_not_taken_for_the_old_ones(tmp_path, monkeypatch):
    open_features(tmp_path).done[:] = 1

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(features_module, "preallocate", interrupted)
        open_features(tmp_path, checkpoint="another")
    assert not open_features(tmp_path).done.any()


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _of_objects(path: Path) -> None:
    np.save(path, np.array([{"a": 1}] * 5), allow_pickle=True)


def _of_doubles(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float64))


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"1234")


def _of_another_shape(path: Path) -> None:
    np.save(path, np.load(path)[..., None])


def _piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _linked(path: Path) -> None:
    path.replace(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "damage", [_cut, _emptied, _of_objects, _of_doubles, _longer, _of_another_shape, _piped, _linked, Path.unlink]
)
@pytest.mark.parametrize("name", ["direct", "mirrored", "done"])
def test_kept_features_of_another_size_or_type_are_recomputed(tmp_path, log_capture, name, damage):
    features = open_features(tmp_path)
    features.direct[:], features.flipped[:], features.done[:] = 2, 3, 1
    features.direct.flush()
    held = open_features(tmp_path)
    assert (held.direct == 2).all() and (held.flipped == 3).all() and held.done.all() and not log_capture.text
    damage(tmp_path / "features" / f"{name}.npy")
    made = open_features(tmp_path)
    assert (made.direct.shape, made.flipped.shape, made.done.shape) == ((5, 3), (5, 3), (5,))
    assert {made.direct.dtype, made.flipped.dtype} == {np.dtype("f4")} and made.done.dtype == np.uint8
    assert (
        not made.done.any()
        and not made.direct.any()
        and f"{name}.npy: is cut short or of another kind" in log_capture.text
    )


def test_features_for_which_the_disk_has_no_space(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"features: No space left on device; name another --result-dir"):
        open_features(tmp_path)


def test_a_pipe_among_the_photos_is_named(photos):
    (photos / "loose_crop" / "b.jpg").unlink()
    os.mkfifo(photos / "loose_crop" / "b.jpg")
    with pytest.raises(UserError, match=r"b\.jpg is not a regular file"):
        read(Crops(photos / "loose_crop", images_of(photos), skip_missing=False), 1)


def test_features_that_cannot_be_written(tmp_path):
    (tmp_path / "features").write_text("a file")
    with pytest.raises(UserError, match=r"features: .*; name another --result-dir"):
        open_features(tmp_path)


def test_processes_share_what_the_first_one_saw_to_do(photos, tmp_path, monkeypatch):
    """Rank 0 has finished its shard before rank 1 starts, which still takes its own shard, not half of the rest."""
    features = open_features(tmp_path)
    rows = np.arange(5)
    features.done[rows[:2]] = 1  # by the first process, meanwhile
    monkeypatch.setattr(features_module, "run_on_main", lambda world, check: rows)
    monkeypatch.setattr(features_module.dist, "barrier", lambda: None)
    crops, runtime = Crops(photos / "loose_crop", images_of(photos), skip_missing=False), Means()
    embed_images(features, crops, runtime, 0, World(1, 2, torch.device("cpu")), "")
    assert runtime.met == 3 and features.done.all()


def test_sha256(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("ab")
    other.write_text("c")
    assert sha256(one, other) == sha256(one, other) != sha256(other, one)
    before = sha256(one)
    one.write_text("ac")
    assert sha256(one) != before


# ----------------------------------------------------------------------------------------------------------- the report


def some_result(**changes) -> IjbScore:
    scores, same = some_scores(200)
    curve = roc(scores, same)
    numbers = {
        "checkpoint": "12backbone.pth", "tpr": dict(zip(FPRS, tpr_nearest(curve, FPRS).tolist(), strict=True)),
        "auc": auc(curve), "images": 90, "missing_images": 0, "pairs": len(same), "different": int(np.sum(~same)),
        "skipped_pairs": 0, "switches": Switches()._asdict(), "identification": None, "curve": curve,
    }  # fmt: skip
    return IjbScore(**(numbers | changes))


def test_the_table():
    config = load_config(ROOT / "config" / "config_PocketNetS128.py")
    result = some_result()
    lines = format_table("IJBC", {"12": result}, config).splitlines()
    assert lines[0].split() == ["IJBC:", "TPR", "in", "%", "at", "FPR", *(f"{fpr:.0e}" for fpr in FPRS), "AUC"]
    assert lines[1].split() == ["12", *(f"{100 * rate:.2f}" for rate in result.tpr.values()), f"{result.auc:.6f}"]
    assert lines[2].split() == ["published", "91.62"]
    assert lines[2].index("91.62") + 5 == lines[0].index("1e-04") + 5  # under TPR at 1e-4
    assert lines[4].startswith("1e-03 of ") and len(lines) == 5  # too few different pairs for 1e-3
    assert "published" not in format_table("IJBC", {"12": result}, load_config(ROOT / "config" / "config_demo.py"))


def test_the_table_lists_what_was_left_out_and_switched_off():
    found = {"rank1": 0.5, "rank5": 1.0, "tpir": {"0.01": None, "0.1": 0.25}, "galleries": []}
    switches = {"flip": False, "norm": True, "detector": False}
    config = load_config(ROOT / "config" / "config_demo.py")
    odd = some_result(missing_images=3, skipped_pairs=40, identification=found, switches=switches)
    table = format_table("IJBB", {"0": odd, "6": some_result(switches=switches)}, config)
    assert "IJBB: 1:N in %   rank 1   rank 5  TPIR at FPIR 0.01   at 0.1" in table
    assert any(line.split() == ["0", "50.00", "100.00", "-", "25.00"] for line in table.splitlines())
    assert "0: left out 3 images and 40 pairs\n" in table and table.count("left out") == 1
    assert table.endswith("without flip, detector")


def test_the_curves_are_on_a_logarithmic_axis():
    result = some_result()
    (axes,) = roc_figure("IJBC", {"0": result, "12": result}).axes
    assert axes.get_xscale() == "log" and axes.get_xlim() == (1e-6, 1) and len(axes.lines) == 2
    x, y = axes.lines[0].get_data()
    np.testing.assert_allclose(y, np.interp(x, result.curve.fpr, result.curve.tpr))
