"""Metrics of embeddings, the result files, and the inference runtimes, each against a slow reference."""

import ctypes
import gc
import json
import os
import shutil
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import normalize
from torch import nn

from backbones.build import build_backbone
from config import load_config, shipped_configs
from config.base import Config
from eval.folders import unique_folder_name
from eval.inference.embedding import TorchRuntime, embed, make_runtime
from eval.inference.openvino import OpenVinoRuntime
from eval.inputs.pairs import PhotoPairs
from eval.inputs.sets import VerificationSet
from eval.reporting.published import published_result
from eval.reporting.report import Results, format_tables, format_thresholds, roc_figure, to_entries
from eval.results import Report, to_thresholds_entry
from eval.scoring import FARS, Score, Scorer, compute_score
from eval.verification import evaluate_distances, pair_distances, resampled_accuracies
from tests.helpers.commands import run_command
from tests.helpers.golden import golden_state
from tests.helpers.paths import ROOT
from tests.helpers.verification_reference import published_verification
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.filesystem import sha256
from utils.openvino_core import is_installed

CPU, GPU = World(0, 1, torch.device("cpu")), World(0, 1, torch.device("cuda"))
needs_openvino = pytest.mark.skipif(not is_installed(), reason="no OpenVINO")


def made_up(n_same: int, n_different: int, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, ...]:
    """Embeddings of images and mirror images, pairs of them and flags: 60 people, 5 images each, in 16 dimensions."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.standard_normal((60, 16)), 5, axis=0)
    direct, flipped = (5 * (centres + noise * rng.standard_normal(centres.shape)) for _ in range(2))
    person = np.arange(300) // 5
    every = np.stack(np.triu_indices(300, 1), axis=1)
    is_same = person[every[:, 0]] == person[every[:, 1]]
    chosen = np.concatenate(
        [rng.choice(np.flatnonzero(is_same == kind), n, replace=False) for kind, n in ((1, n_same), (0, n_different))]
    )
    rng.shuffle(chosen)
    return direct.astype(np.float32), flipped.astype(np.float32), every[chosen], is_same[chosen]


def tied(n_same: int, n_different: int) -> tuple[np.ndarray, ...]:
    """Returns embeddings like those of `made_up` with few distinct distances."""
    direct, flipped, pairs, issame = made_up(n_same, n_different, seed=4, noise=0.5)
    return np.sign(direct), np.sign(flipped), pairs, issame


def one_different_above_all() -> tuple[np.ndarray, ...]:
    """Half of the different pairs show one and the same image twice: no threshold refuses them but one above 1."""
    direct, flipped, pairs, issame = made_up(200, 1200, seed=5)
    pairs[np.flatnonzero(~issame)[::2], 1] = pairs[np.flatnonzero(~issame)[::2], 0]
    return direct, flipped, pairs, issame


CASES = {
    "easy": made_up(600, 1500, noise=0.4),
    "hard": made_up(400, 12000, seed=1),
    "few": made_up(60, 63, seed=2, noise=1.5),
    "tied": tied(300, 2000),
    "hopeless": one_different_above_all(),
}


@pytest.fixture(scope="module")
def scores() -> dict[str, Score]:
    return {name: compute_score(*case) for name, case in CASES.items()}


def distances_by_hand(direct, flipped, pairs) -> np.ndarray:
    """Pair by pair as the published text has it, in float32."""
    unit = normalize(direct + flipped)
    return np.array([np.sum(np.square(unit[a] - unit[b])) for a, b in pairs], np.float32)


def rates_by_threshold(similarity: np.ndarray, issame: np.ndarray) -> list[tuple[float, float, float]]:
    """(threshold, FAR, FRR), accepting from the threshold on; from accepting nothing to accepting all."""
    same, different = similarity[issame], similarity[~issame]
    return [
        (t, np.count_nonzero(different >= t) / len(different), np.count_nonzero(same < t) / len(same))
        for t in [np.inf, *sorted(set(similarity), reverse=True)]
    ]


# ------------------------------------------------------------------------------------------------------- verification


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 511, 512, 513, 1300])
def test_pair_distances(dtype, n):
    """Against scikit-learn's normalisation of both rows of every pair; rows are met any number of times."""
    rng = np.random.default_rng(n)
    rows = rng.standard_normal((50, 24)).astype(dtype)
    rows[7] = 0
    pairs = rng.integers(0, 50, (n, 2))
    pairs[0] = 7, 3
    unit = normalize(rows.astype(np.result_type(dtype, np.float32)))
    expected = np.sum(np.square(unit[pairs[:, 0]] - unit[pairs[:, 1]]), axis=1)
    ours = pair_distances(rows, pairs)
    assert ours.dtype == expected.dtype
    if dtype == np.float16:  # divided before it is widened
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-2)
    else:
        np.testing.assert_array_equal(ours, expected)
    assert ours[0] == pytest.approx(1, abs=1e-2)


def test_pair_distances_of_what_is_not_finite():
    rows = np.ones((5, 3))
    rows[3, 1] = np.nan
    with pytest.raises(UserError, match=r"embedding 3 is not finite \(of 5\)"):
        pair_distances(rows, np.array([[0, 1]]))


@pytest.mark.parametrize(("pairs", "n_folds"), [(20, 10), (57, 10), (31, 4)])
def test_correct_pair_by_pair(pairs, n_folds):
    rng = np.random.default_rng(pairs)
    same = rng.random(pairs) < 0.5
    dist = np.where(same, 0.9, 1.4) + 0.4 * rng.standard_normal(pairs)
    result = evaluate_distances(dist, same, n_folds)
    at = 0
    for fold, part in enumerate(np.array_split(np.arange(pairs), n_folds)):
        for pair in part:
            assert result.correct[pair] == ((dist[pair] < result.thresholds[fold]) == same[pair])
        assert result.accuracy_folds[fold] == np.mean(result.correct[at : at + len(part)])
        at += len(part)


@pytest.mark.parametrize(("pairs", "n_folds"), [(53, 10), (40, 2)])
def test_resampled_accuracies_are_those_of_the_samples(pairs, n_folds):
    """Each sample drawn here pair by pair and measured in full; 60 of them, as they are computed 50 at a time."""
    rng = np.random.default_rng(6)
    same = np.arange(pairs) % 2 == 0
    dist = np.where(same, 0.9, 1.4) + 0.4 * rng.standard_normal(pairs)
    drawn = np.random.default_rng(9).random((60, pairs))
    expected = []
    for sample in drawn:
        at = []
        for part in np.array_split(np.arange(pairs), n_folds):
            at += [part[int(sample[pair] * len(part))] for pair in part]
        expected.append(evaluate_distances(dist[at], same[at], n_folds).accuracy)
    ours = resampled_accuracies(dist, same, n_folds, resamples=60, seed=9)
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(resampled_accuracies(dist, same, n_folds, resamples=7, seed=9), expected[:7])
    assert not np.array_equal(resampled_accuracies(dist, same, n_folds, resamples=60, seed=8), expected)
    assert len(set(expected)) > 5


def test_a_fold_is_drawn_from_itself():
    """Where one fold errs on every pair and no other on any, every sample errs on that fold alone."""
    same = np.arange(200) % 2 == 0
    dist = np.where(same, 0.5, 1.5)
    dist[60:80] = np.where(same[60:80], 1.5, 0.5)
    accuracies = resampled_accuracies(dist, same, resamples=100)
    np.testing.assert_allclose(accuracies, 0.9, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dist", "same", "message"),
    [
        ([0.1] * 20, [True] * 20, "of the same person"),
        ([0.1] * 20, [True, False] * 9, "flags of shape"),
        ([0.1] * 4, [True, False] * 2, "cannot be split into 10 folds"),
        ([0.1] * 19 + [np.nan], [True, False] * 10, "pair 19 is not finite"),
    ],
)
def test_resampling_refuses_what_cannot_be_measured(dist, same, message):
    with pytest.raises(UserError, match=message):
        resampled_accuracies(dist, same)


# ------------------------------------------------------------------------------------------------------------ a score


@pytest.mark.parametrize("name", CASES)
def test_distances_and_norm_are_those_by_hand(scores, name):
    direct, flipped, pairs, issame = CASES[name]
    score = scores[name]
    np.testing.assert_allclose(score.distances, distances_by_hand(direct, flipped, pairs), rtol=0, atol=2e-6)
    norms = [np.linalg.norm(rows[row].astype(float)) for pair in pairs for row in pair for rows in (direct, flipped)]
    assert score.xnorm == pytest.approx(np.mean(norms), rel=1e-6)  # as often as an image is met
    assert (score.pairs, score.different) == (len(issame), np.count_nonzero(~issame))


def test_norm_counts_an_image_as_often_as_it_is_met():
    direct = np.concatenate([np.eye(4), 9 * np.ones((1, 4))])
    pairs = np.array([[0, 1], [2, 3]] * 9 + [[0, 4], [0, 4]])
    score = compute_score(direct, 3 * direct, pairs, np.array([True, False] * 10))
    assert score.xnorm == pytest.approx((38 * 1 + 2 * 18 + 38 * 3 + 2 * 54) / 80)


def test_the_ten_fold_measures_are_the_published_ones(scores):
    score, (_, _, _, issame) = scores["few"], CASES["few"]
    accuracy, best, _, _, val, val_std, far = published_verification(score.distances, issame, 10)
    assert (score.accuracy, score.std) == (np.mean(accuracy), np.std(accuracy))
    assert score.threshold == pytest.approx(np.mean(best))
    assert (score.val, score.val_std, score.far) == pytest.approx((val, val_std, far))
    folds = np.array_split(score.correct, 10)
    assert [np.mean(fold) for fold in folds] == accuracy


@pytest.mark.parametrize("name", CASES)
def test_auc_and_eer(scores, name):
    score, (direct, flipped, pairs, issame) = scores[name], CASES[name]
    unit = normalize((direct + flipped).astype(np.float64))
    cosine = np.einsum("ij,ij->i", unit[pairs[:, 0]], unit[pairs[:, 1]])
    assert score.auc == pytest.approx(roc_auc_score(issame, cosine.round(6)), abs=1e-6)
    assert score.auc == pytest.approx(roc_auc_score(issame, -score.distances), abs=1e-12)

    points = rates_by_threshold(-score.distances, issame)
    here = next(i for i, (_, far, frr) in enumerate(points) if far >= frr)
    (_, far0, frr0), (_, far1, frr1) = points[here - 1 : here + 1]
    share = (frr0 - far0) / ((frr0 - far0) + (far1 - frr1))
    assert score.eer == pytest.approx(far0 + share * (far1 - far0), abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_operating_points(scores, name):
    """TAR is the highest at any threshold, and the threshold has the reported FAR and FRR on the pairs."""
    score, (_, _, _, issame) = scores[name], CASES[name]
    points = rates_by_threshold(-score.distances, issame)
    assert set(score.operating_points) == set(FARS) == {1e-2, 1e-3, 1e-4}
    for wanted, point in score.operating_points.items():
        if np.count_nonzero(~issame) * wanted < 1:
            assert point is None and score.tar(wanted) is None
            continue
        lowest = min(frr for _, far, frr in points if far <= wanted)
        assert point.far <= wanted and point.frr == pytest.approx(lowest, abs=1e-12)
        assert score.tar(wanted) == 1 - point.frr
        by_distance = score.distances.astype(float) < 2 - 2 * point.threshold
        by_cosine = 1 - score.distances.astype(float) / 2 >= point.threshold
        for accepted in (by_distance, by_cosine):
            assert np.mean(accepted[~issame]) == pytest.approx(point.far, abs=1e-12)
            assert np.mean(~accepted[issame]) == pytest.approx(point.frr, abs=1e-12)


def test_cases_are_what_they_are_for(scores):
    assert [point is None for point in scores["hard"].operating_points.values()] == [False] * 3
    assert [point is None for point in scores["easy"].operating_points.values()] == [False, False, True]
    assert [point is None for point in scores["few"].operating_points.values()] == [True] * 3
    assert len(set(scores["tied"].distances)) < 1000 < scores["tied"].pairs
    assert scores["hopeless"].operating_points[1e-2].frr == 1 and scores["hopeless"].operating_points[1e-2].far == 0
    assert 0.3 < scores["hard"].tar(1e-2) < 0.99


@pytest.mark.parametrize(("different", "count"), [(99, 0), (100, 1), (999, 1), (1000, 2), (9999, 2), (10000, 3)])
def test_how_many_pairs_a_false_accept_rate_takes(different, count):
    operating = compute_score(*made_up(30, different)).operating_points
    assert [far for far, point in operating.items() if point] == list(FARS[:count])


def test_the_interval(scores):
    for score in scores.values():
        low, high = score.interval
        assert 0 <= low <= score.accuracy <= high <= 1
    assert compute_score(*CASES["few"]).interval == scores["few"].interval


@pytest.mark.parametrize(("n", "noise"), [(400, 1.0), (2000, 0.7)])
def test_the_interval_is_about_the_binomial_one(n, noise):
    """For independent pairs of two-dimensional embeddings."""
    rng = np.random.default_rng(n)
    centres = rng.standard_normal((2 * n, 8))
    issame = np.arange(n) % 2 == 0
    centres[1::2][issame] = centres[::2][issame]
    rows = centres + noise * rng.standard_normal(centres.shape)
    score = compute_score(rows, rows, np.arange(2 * n).reshape(-1, 2), issame)
    low, high = score.interval
    binomial = 2 * 1.96 * np.sqrt(score.accuracy * (1 - score.accuracy) / n)
    assert 0.6 < score.accuracy < 0.97
    assert 0.7 * binomial < high - low < 1.6 * binomial


def test_a_set_without_an_error_is_not_certain():
    rows = np.repeat(np.eye(40), 2, axis=0)
    pairs = np.concatenate([np.arange(80).reshape(-1, 2), np.arange(1, 79).reshape(-1, 2), [[0, 79]]])
    issame = np.arange(len(pairs)) < 40
    order = np.random.default_rng(0).permutation(len(pairs))
    score = compute_score(rows, rows, pairs[order], issame[order])
    assert score.accuracy == 1 and score.interval == (pytest.approx(0.025 ** (1 / len(pairs))), 1)
    assert 0.9 < score.interval[0] < 0.99


def test_a_score_as_numbers(scores):
    numbers = json.loads(json.dumps(scores["easy"].asdict()))
    assert list(numbers) == [
        "accuracy", "std", "interval", "squared_distance", "val", "val_std", "far", "auc", "eer", "xnorm", "pairs",
        "different", "tar",
    ]  # fmt: skip
    assert numbers["tar"] == {"1e-02": scores["easy"].tar(1e-2), "1e-03": scores["easy"].tar(1e-3), "1e-04": None}
    assert numbers["interval"] == list(scores["easy"].interval) and numbers["pairs"] == 2100


def test_a_scorer_keeps_the_highest_accuracy_of_each_set():
    """The network returns the embeddings of one case, then of another."""
    direct, flipped, pairs, issame = CASES["few"]
    images = np.arange(300).astype(np.uint8)[:, None, None, None] * np.ones((1, 112, 112, 3), np.uint8)
    sets = [VerificationSet(name, images, pairs, issame) for name in ("one", "other")]
    scorer = Scorer(Config(eval_batch=100), CPU, sets)
    assert scorer.n_images == 600

    class Fixed:
        batch = 300

        def __init__(self, scale: float) -> None:
            self.scale = scale

        def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            spread = direct + self.scale * np.random.default_rng(1).standard_normal(direct.shape)
            return spread[: len(images)], flipped[: len(images)]

    good, bad = scorer.score(Fixed(0), 1), scorer.score(Fixed(50), 2)
    assert list(good) == ["one", "other"]
    assert bad["one"].accuracy < good["one"].accuracy == compute_score(*CASES["few"]).accuracy
    assert scorer.highest == {name: good[name].accuracy for name in good}


# ------------------------------------------------------------------------------------------------------------ reports


def config_of(name: str, *overrides: str) -> Config:
    return load_config(ROOT / "config" / f"config_{name}.py", overrides)


@pytest.fixture(scope="module")
def results(scores) -> Results:
    """Two checkpoints, an untrained one among them, on two sets of which one is published."""
    return {"0": {"lfw": scores["hard"], "own": scores["few"]}, "40": {"lfw": scores["easy"], "own": scores["tied"]}}


def report_of(folder: Path, results: Results, config: Config | None = None, weights: Path | None = None) -> Report:
    """A report on checkpoints that lie in the folder `weights` (default: the same), which a run wrote."""
    weights = weights or folder
    names = dict.fromkeys(name for sets in results.values() for name in sets)
    nothing = np.empty(0)
    report = Report(folder, weights, [VerificationSet(name, *[nothing] * 3, digest=name) for name in names], config)
    (weights / "training.log").touch()
    for step, scores in results.items():
        path = weights / f"{step}backbone.pth"
        if not path.exists():
            path.write_text(f"weights of {step}")
        report.add(path, scores)
    return report


def test_published_values_of_the_known_networks():
    """The values of the paper's table of compact models."""
    assert published_result(config_of("PocketNetS128"), "lfw") == 99.58
    assert published_result(config_of("PocketNetS128"), "cplfw") == 89.63
    assert published_result(config_of("PocketNetS256"), "agedb_30") == 96.35
    assert published_result(config_of("PocketNetM128"), "cfp_fp") == 95.07
    assert published_result(config_of("PocketNetM256"), "calfw") == 95.63
    assert published_result(config_of("PocketNetM256"), "IJBC") == 92.70
    assert published_result(config_of("PocketNetM256", "net_name=PocketNetM-256"), "IJBB") == 90.74


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("PocketNetS128", ["genotype=softmax_cifar10"]),
        ("PocketNetS128", ["channel=20"]),
        ("PocketNetS128", ["n_layers=9"]),
        ("PocketNetS128", ["embedding_size=512"]),
        ("PocketNetS128", ["net_name=iresnet18"]),
        ("iresnet100", []),
        ("iresnet100_256", []),
        ("demo", []),
    ],
)
def test_nothing_is_published_of_other_networks(name, overrides):
    assert published_result(config_of(name, *overrides), "lfw") is None


def test_nothing_is_published_of_other_sets():
    for config in map(load_config, shipped_configs()):
        assert (
            published_result(config, "demo")
            is published_result(config, "cfp_ff")
            is published_result(config, "LFW")
            is None
        )


def test_the_tables_have_the_numbers(results):
    accuracy, detail, notes = format_tables(to_entries(results), config_of("PocketNetS128")).split("\n\n")
    head, untrained, later, known = (line.split() for line in accuracy.splitlines())
    assert head == ["step", "lfw", "own"] and known == ["published", "99.58"]
    for line, step, scores in ((untrained, "untrained", results["0"]), (later, "40", results["40"])):
        cells = [f"{100 * s.accuracy:.2f} ± {100 * s.std:.2f}" for s in scores.values()]
        assert " ".join(line) == f"{step} {' '.join(cells)}"
    lines = detail.splitlines()[1:]
    assert len({len(line) for line in detail.splitlines()}) == 1
    for line, (name, step) in zip(lines, [("lfw", "0"), ("lfw", "40"), ("own", "0"), ("own", "40")], strict=True):
        score = results[step][name]
        tars = [score.tar(far) for far in (1e-3, 1e-4)]
        assert line.split() == [
            name, step if step != "0" else "untrained",
            f"{100 * score.interval[0]:.2f}", "to", f"{100 * score.interval[1]:.2f}",
            f"{score.auc:.5f}", f"{100 * score.eer:.2f}", *("-" if tar is None else f"{100 * tar:.2f}" for tar in tars),
            f"{score.threshold:.3f}", f"{score.xnorm:.3f}",
        ]  # fmt: skip
    assert notes == (
        "own: TAR at FAR 1e-02 and 1e-03 and 1e-04 left out: it needs at least 100 different pairs, there are 63"
    )


def test_left_out_rates_are_explained(scores):
    tables = {name: format_tables(to_entries({"1": {name: scores[name]}}), None) for name in ("hard", "easy")}
    assert "left out" not in tables["hard"]
    assert tables["easy"].endswith(
        "easy: TAR at FAR 1e-04 left out: it needs at least 10,000 different pairs, there are 1,500"
    )
    three = {"1": {"lfw": scores["easy"], "own": scores["few"], "calfw": scores["easy"]}}
    together = format_tables(to_entries(three), None)
    assert [line.partition(":")[0] for line in together.splitlines()[-2:]] == ["lfw, calfw", "own"]


@pytest.mark.parametrize(
    "config", [None, config_of("iresnet100"), config_of("PocketNetS128", "genotype=softmax_cifar10")]
)
def test_nothing_published_is_shown_where_nothing_is_known(results, config):
    assert "published" not in format_tables(to_entries(results), config)


def test_a_long_name_of_a_set_keeps_the_columns_apart(scores):
    name = "photos_of_the_whole_department"
    head, line = format_tables(to_entries({"5": {name: scores["few"], "lfw": scores["few"]}}), None).splitlines()[:2]
    assert head.split() == ["step", name, "lfw"] and len(head) == len(line)


def test_the_table_of_thresholds(results):
    lines = format_thresholds(results).splitlines()
    assert lines[0].split() == ["set", "step", "FAR", "cosine", "sq.", "distance", "FRR", "in", "%"]
    rows = [line.split() for line in lines[1:]]
    expected = [
        [name, step if step != "0" else "untrained", f"{far:.0e}", f"{p.threshold:.4f}", f"{2 - 2 * p.threshold:.4f}",
         f"{100 * p.frr:.2f}"]
        for name in ("lfw", "own") for step in ("0", "40")
        for far, p in results[step][name].operating_points.items() if p
    ]  # fmt: skip
    assert rows == expected and len(rows) == 3 + 2 + 0 + 2


def test_results_are_written(results, tmp_path):
    config = config_of("PocketNetS128")
    report_of(tmp_path, results, config).write()
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json", "results.txt", "roc.png", "thresholds.json", "training.log", "0backbone.pth", "40backbone.pth",
    }  # fmt: skip
    assert (tmp_path / "results.txt").read_text() == format_tables(to_entries(results), config) + "\n"
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found) == ["0", "40"] and list(found["0"]) == ["lfw", "own"]
    for step, sets in found.items():
        for name, entry in sets.items():
            made_of = {"weights": ".", "sha256": sha256(tmp_path / f"{step}backbone.pth"), "pairs_sha256": name}
            assert entry == json.loads(json.dumps(made_of | results[step][name].asdict()))
    image = cv2.imread(str(tmp_path / "roc.png"))
    assert image.shape == (480, 1200, 3)  # two panels of 600 × 480 side by side
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50 and (image == 255).mean() > 0.5


@pytest.mark.usefixtures("empty_figures")
def test_results_of_other_checkpoints_and_sets_stay(results, scores, tmp_path):
    """results.json and the table of results.txt are in the order of steps, not of scoring."""
    report_of(tmp_path, {"40": results["40"], "100": results["40"]}).write()
    report_of(tmp_path, {"best": {"lfw": scores["few"]}}).write()
    report_of(tmp_path, {"0": results["0"]}).write()
    report_of(tmp_path, {"40": {"own": scores["hard"]}}).write()
    found = json.loads((tmp_path / "results.json").read_text())
    assert {step: list(sets) for step, sets in found.items()} == {
        "0": ["lfw", "own"], "40": ["lfw", "own"], "100": ["lfw", "own"], "best": ["lfw"],
    }  # fmt: skip
    assert found["40"]["own"]["accuracy"] == scores["hard"].accuracy
    assert not any("outdated" in entry for sets in found.values() for entry in sets.values())
    table = (tmp_path / "results.txt").read_text()
    assert [line.split()[0] for line in table.splitlines()[:5]] == ["step", "untrained", "40", "100", "best"]
    assert table.splitlines()[4].split()[-1] == "-"  # of a set on which it was not scored


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "40backbone.pth").write_text("trained again"), "file has changed since"),
        (lambda folder: (folder / "40backbone.pth").unlink(), "file is gone"),
        (lambda folder: edit(folder, lambda entry: entry.pop("sha256")), "earlier version, without checksums"),
        (lambda folder: edit(folder, lambda entry: entry.update(pairs_sha256="others")), "pairs have changed since"),
    ],
)
@pytest.mark.parametrize("name", ["results.json", "thresholds.json"])
@pytest.mark.usefixtures("empty_figures")
def test_results_of_other_files_or_pairs_are_marked_outdated(results, tmp_path, name, change, reason):
    report_of(tmp_path, results).write()
    change(tmp_path)
    report_of(tmp_path, {"0": results["0"]}).write()
    found = json.loads((tmp_path / name).read_text())
    assert "outdated" not in found["0"]["lfw"]
    assert all(reason in entry["outdated"] and len(entry) > 4 for entry in found["40"].values())  # nothing is lost
    table = (tmp_path / "results.txt").read_text()
    assert [line.split()[0] for line in table.split("\n\n")[0].splitlines()] == ["step", "untrained"]
    assert "not shown because files or pairs have changed: 40 (lfw), 40 (own); score them again" in table
    report_of(tmp_path, {"40": results["40"]}).write()
    assert "outdated" not in (tmp_path / name).read_text()


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    """Changes the entries of checkpoint 40 in both files."""
    for name in ("results.json", "thresholds.json"):
        found = json.loads((folder / name).read_text())
        for entry in found["40"].values():
            change(entry)
        (folder / name).write_text(json.dumps(found))


def test_entries_of_an_earlier_version_can_be_read(scores):
    """The squared distance was called the threshold."""
    entry = scores["few"].asdict()
    old = {name if name != "squared_distance" else "threshold": value for name, value in entry.items()}
    assert format_tables({"7": {"lfw": old}}, None) == format_tables({"7": {"lfw": entry}}, None)


@pytest.mark.parametrize("odd", [5, {}, {"lfw": {"accuracy": "high"}}, {"lfw": [1]}, {"lfw": {"tar": 3}}])
def test_entries_that_are_none_are_not_shown(scores, odd):
    sound = {"7": {"lfw": scores["few"].asdict()}}
    assert format_tables(sound | {"8": odd}, None) == format_tables(sound, None)


def test_links_are_replaced_and_not_written_through(results, tmp_path):
    """A folder of another user may hold links to any file."""
    names = ["results.json", "results.txt", "roc.png", "thresholds.json"]
    for name in names:
        (tmp_path / f"precious {name}").write_text("precious")
        (tmp_path / name).symlink_to(tmp_path / f"precious {name}")
    report_of(tmp_path, results).write()
    for name in names:
        assert (tmp_path / f"precious {name}").read_text() == "precious"
        assert not (tmp_path / name).is_symlink() and (tmp_path / name).stat().st_size > 8


def test_no_name_of_a_file_upsets_the_picture(scores):
    figure = roc_figure({"_x": {"a$b\\foo$": scores["few"]}, r"$\foo$": {"a$b\\foo$": scores["few"]}})
    figure.canvas.draw()
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == [" _x", r"\$\foo\$"]


@pytest.mark.parametrize(("n_sets", "size"), [(1, (5, 4)), (3, (15, 4)), (4, (15, 8))])
def test_curves_a_panel_for_each_set(scores, n_sets, size):
    names = [f"set{i}" for i in range(n_sets)]
    figure = roc_figure({step: dict.fromkeys(names, scores["easy"]) for step in ("0", "7")})
    assert tuple(figure.get_size_inches()) == size
    assert [axes.get_title() for axes in figure.axes] == names
    for axes in figure.axes:
        first, second = axes.get_lines()
        assert (first.get_label(), second.get_label()) == ("untrained", "7")
        np.testing.assert_array_equal(first.get_xdata(), scores["easy"].curve.fpr)
        np.testing.assert_array_equal(first.get_ydata(), scores["easy"].curve.tpr)
        assert axes.get_xscale() == "log" and axes.get_xlim() == (1 / 1500, 1)
    assert [axes.get_legend() is not None for axes in figure.axes] == [True] + [False] * (n_sets - 1)


def test_curves_of_many_checkpoints(scores, tmp_path):
    """There is no legend of forty lines; the title explains the colours."""
    many = {str(step): {"lfw": scores["few"]} for step in range(100, 140)}
    figure = roc_figure(many)
    assert len(figure.axes[0].get_lines()) == 40 and figure.axes[0].get_legend() is None
    assert figure.get_suptitle() == "40 checkpoints, from 100 (dark) to 139 (light)"
    report_of(tmp_path, many, config_of("demo")).write()
    assert len(json.loads((tmp_path / "results.json").read_text())) == 40
    assert roc_figure({str(step): {"lfw": scores["few"]} for step in range(12)}).axes[0].get_legend() is not None


@pytest.mark.filterwarnings("error")
def test_a_curve_of_a_single_different_pair(tmp_path):
    report_of(tmp_path, {"1": {"own": compute_score(*made_up(19, 1))}}).write()


def test_thresholds_are_written(results, tmp_path):
    """With all digits, and with the reason for each missing threshold."""
    report_of(tmp_path, results).write()
    found = json.loads((tmp_path / "thresholds.json").read_text())
    assert list(found) == ["0", "40"] and list(found["40"]) == ["lfw", "own"]
    for step, sets in results.items():
        for name, score in sets.items():
            entry = found[step][name]
            assert (entry.pop("pairs"), entry.pop("different")) == (score.pairs, score.different)
            assert list(entry) == ["weights", "sha256", "pairs_sha256", "1e-02", "1e-03", "1e-04"]
            for far, point in score.operating_points.items():
                if point is None:
                    assert entry[f"{far:.0e}"] == f"needs at least {round(1 / far)} different pairs"
                else:
                    threshold = {"cosine": point.threshold, "squared_distance": 2 - 2 * point.threshold}
                    assert entry[f"{far:.0e}"] == threshold | {"far": point.far, "frr": point.frr}


def test_the_option_that_makes_more_pairs_is_named(scores):
    entry = to_thresholds_entry(scores["few"], lambda needed: f"--n-pairs {2 * needed}")
    assert entry["1e-03"] == "needs at least 1000 different pairs; --n-pairs 2000"
    table = format_tables(to_entries({"1": {"own": scores["few"]}}), None, lambda needed: f"--n-pairs {2 * needed}")
    assert table.endswith("it needs at least 100 different pairs, there are 63; --n-pairs 200")


def test_a_table_without_thresholds_is_empty(scores):
    assert format_thresholds({"1": {"own": scores["few"]}}) == ""


@pytest.mark.usefixtures("empty_figures")
def test_thresholds_of_other_steps_and_sets_stay(results, scores, tmp_path):
    report_of(tmp_path, results).write()
    before = json.loads((tmp_path / "thresholds.json").read_text())
    more = {"40": {"own": scores["hard"], "third": scores["few"]}, "80": {"own": scores["few"], "third": scores["few"]}}
    report_of(tmp_path, more).write()
    after = json.loads((tmp_path / "thresholds.json").read_text())
    assert after["0"] == before["0"] and after["40"]["lfw"] == before["40"]["lfw"]
    assert after["40"]["own"] != before["40"]["own"] and after["40"]["own"]["different"] == 12000
    assert set(after) == {"0", "40", "80"} and set(after["40"]) == {"lfw", "own", "third"}


@pytest.mark.parametrize("name", ["results.json", "thresholds.json"])
@pytest.mark.parametrize(
    "broken",
    [b'{"0": {', b"[1, 2]", b"\xff\xfe", b"", b'{"0": 5, "40": [1]}', pytest.param(b"[" * 200_000, id="deep")],
)
@pytest.mark.usefixtures("empty_figures")
def test_a_damaged_file_is_set_aside(results, tmp_path, log_capture, name, broken):
    """With one warning; a second damaged file does not replace the first."""
    aside = [tmp_path / f"{name}.damaged", tmp_path / f"{name}.damaged-2"]
    for path, content in zip(aside, (broken, broken + b"]"), strict=True):
        log_capture.clear()
        (tmp_path / name).write_bytes(content)
        report_of(tmp_path, results).write()
        found = json.loads((tmp_path / name).read_text())
        assert {step: list(sets) for step, sets in found.items()} == {"0": ["lfw", "own"], "40": ["lfw", "own"]}
        warning = f"{tmp_path / name}: damaged, or not a results file; renamed to {path.name}, and a new"
        assert (
            path.read_bytes() == content and log_capture.text.count(warning) == log_capture.text.count("WARNING") == 1
        )
    assert aside[0].read_bytes() == broken


def folders_of(tmp_path: Path, *names: str) -> list[Path]:
    """Empty folders."""
    folders = [tmp_path / name for name in names]
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


@pytest.mark.usefixtures("empty_figures")
def test_two_networks_scored_into_one_folder_keep_their_results(scores, tmp_path):
    """Equal steps are compared with their own files, and the tables name the folder of each."""
    out, first, second = folders_of(tmp_path, "out", "one/S128", "two/M128 (2)")
    config = config_of("PocketNetS128")
    easy, hard = {"0": {"lfw": scores["easy"]}}, {"0": {"lfw": scores["hard"]}, "40": {"lfw": scores["hard"]}}
    (second / "0backbone.pth").write_text("of the second")
    for _ in range(2):  # the second time each replaces its own entry
        report_of(out, easy, config, first).write()
        report_of(out, hard, config, second).write()
    report_of(out, {"12": easy["0"]}, config, first).write()
    name = unique_folder_name(second).replace("(2)", "_2_")
    keys = ["0", "12", f"0 ({name})", f"40 ({name})"]
    found = json.loads((out / "results.json").read_text())
    assert list(found) == keys and not any("outdated" in sets["lfw"] for sets in found.values())
    assert [sets["lfw"]["accuracy"] for sets in found.values()] == [scores[of].accuracy for of in SPREAD]
    assert [sets["lfw"]["weights"] for sets in found.values()] == [str(first)] * 2 + [str(second)] * 2
    table = (out / "results.txt").read_text()
    steps = [line[: line.index("±") - 6].strip() for line in table.splitlines()[1:5]]
    assert steps == ["untrained", "12", f"untrained ({name})", f"40 ({name})"]
    assert f"steps without a name: checkpoints in {first}\nsteps with ({name}): checkpoints in {second}\n" in table
    assert "published: PocketNetS" in table
    for path in (first, second):
        kept = json.loads((path / "thresholds.json").read_text())
        assert all(sets["lfw"]["weights"] == "." for sets in kept.values()) and "0" in kept

    (second / "40backbone.pth").write_text("trained again")
    report_of(out, easy, config, first).write()
    found = json.loads((out / "results.json").read_text())
    assert [key for key, sets in found.items() if "outdated" in sets["lfw"]] == [f"40 ({name})"]
    (second / "40backbone.pth").unlink()
    shutil.rmtree(second)  # what cannot be looked at is not judged
    report_of(out, easy, config, first).write()
    assert "outdated" not in json.loads((out / "results.json").read_text())[f"0 ({name})"]["lfw"]


SPREAD = ("easy", "easy", "hard", "hard")


@pytest.mark.usefixtures("empty_figures")
def test_the_thresholds_of_another_folder_of_weights_stay(scores, tmp_path):
    """They are beside the results, because no run wrote the weights."""
    out, first, second = folders_of(tmp_path, "out", "one", "two")
    for folder, name in ((first, "easy"), (second, "hard")):
        report = report_of(out, {"5": {"lfw": scores[name]}}, weights=folder)
        (folder / "training.log").unlink()
        report.write()
    assert f"5 ({unique_folder_name(second)})" in report.format_thresholds()
    found = json.loads((out / "thresholds.json").read_text())
    assert list(found) == ["5", f"5 ({unique_folder_name(second)})"]
    assert [sets["lfw"]["1e-02"]["frr"] for sets in found.values()] == [
        scores[name].operating_points[1e-2].frr for name in ("easy", "hard")
    ]


@pytest.mark.parametrize("most_different", [None, 100])
@pytest.mark.usefixtures("empty_figures")
def test_photos_named_like_a_set_have_thresholds_of_their_own(scores, tmp_path, most_different):
    report_of(tmp_path, {"5": {"lfw": scores["easy"]}}).write()
    report = report_of(tmp_path, {"5": {"lfw": scores["hard"]}})
    report.photos = PhotoPairs("lfw", [], np.empty((0, 2)), np.empty(0), max_different=most_different)
    for _ in range(2):
        report.write()
        kept = json.loads((tmp_path / "thresholds.json").read_text())["5"]
        assert list(kept) == ["lfw", "folder:lfw" if most_different else "pairs:lfw"] and "outdated" not in str(kept)
        assert [entry["different"] for entry in kept.values()] == [scores[name].different for name in ("easy", "hard")]


@pytest.mark.usefixtures("empty_figures")
def test_a_run_that_is_moved_takes_its_results_along(results, tmp_path):
    report_of(*folders_of(tmp_path, "before"), results).write()
    moved = (tmp_path / "before").rename(tmp_path / "after")
    report_of(moved, {"40": results["40"]}).write()
    found = json.loads((moved / "results.json").read_text())
    assert list(found) == ["0", "40"] and not any("outdated" in sets["lfw"] for sets in found.values())


@pytest.mark.usefixtures("empty_figures")
def test_results_of_weights_that_cannot_be_read_are_marked(results, tmp_path, monkeypatch):
    report_of(tmp_path, results).write()

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("eval.merging._cached_sha256", lambda path, *_: refuse(path))
    entries = report_of(tmp_path, {"0": results["0"]}).entries()
    assert entries["40"]["lfw"]["outdated"] == "the checkpoint's file cannot be read"


@pytest.mark.usefixtures("empty_figures")
def test_thresholds_of_checkpoints_that_cannot_be_written_beside(results, tmp_path, caplog):
    beside, instead = tmp_path / "marked", tmp_path / "out"
    beside.mkdir()
    instead.mkdir()
    (beside / "thresholds.json").write_text("{}")
    report = report_of(instead, results, weights=beside)
    beside.chmod(0o555)
    report.write()
    assert report.thresholds_path == instead / "thresholds.json"
    assert (beside / "thresholds.json").read_text() == "{}"
    beside.chmod(0o755)
    (beside / "thresholds.json").unlink()
    (beside / "thresholds.json").mkdir()  # nor can a folder be written
    (instead / "thresholds.json").unlink()
    report.write()
    assert report.thresholds_path == instead / "thresholds.json"
    assert "cannot be written" in caplog.text
    assert set(json.loads((instead / "thresholds.json").read_text())) == {"0", "40"}


@pytest.mark.usefixtures("empty_figures")
def test_nothing_is_left_in_a_folder_that_no_run_wrote(results, tmp_path):
    weights, instead = tmp_path / "downloaded", tmp_path / "out"
    weights.mkdir()
    instead.mkdir()
    report = report_of(instead, results, weights=weights)
    (weights / "training.log").unlink()
    report.write()
    assert sorted(path.name for path in weights.iterdir()) == ["0backbone.pth", "40backbone.pth"]
    assert set(json.loads((instead / "thresholds.json").read_text())) == {"0", "40"}


# ----------------------------------------------------------------------------------------------------------- runtimes

SMALL_NET = ["channel=4", "n_layers=4", "embedding_size=32"]


def choice(*overrides: str, world: World = CPU, n_images: int = 100_000) -> str:
    config = config_of("demo", *SMALL_NET, *overrides)
    return type(make_runtime(build_backbone(config), config, world, n_images)).__name__


def test_which_runtime():
    assert choice(n_images=80) == "TorchRuntime"
    assert choice("eval_runtime=torch") == "TorchRuntime"
    assert choice(world=GPU) == "TorchRuntime"
    with pytest.raises(UserError, match="config eval_runtime: openvino runs on CPUs; take auto or torch"):
        choice("eval_runtime=openvino", world=GPU)


@needs_openvino
def test_which_runtime_where_there_is_openvino():
    assert choice() == "OpenVinoRuntime"
    assert choice("eval_runtime=openvino", n_images=1) == "OpenVinoRuntime"


def test_which_runtime_where_there_is_no_openvino(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert choice() == "TorchRuntime"
    with pytest.raises(UserError, match=r"OpenVINO is not installed: pip install openvino, or take auto or torch"):
        choice("eval_runtime=openvino")


NETWORKS = {
    "PocketNet small": ("demo", SMALL_NET),
    "PocketNet of 9 cells": ("PocketNetM256", ["channel=8"]),  # three stages, as PocketNetM
    "PocketNet of the other genotype": ("demo", [*SMALL_NET, "genotype=softmax_cifar10"]),
    "iresnet18": ("iresnet100", ["net_name=iresnet18"]),
}


def network(name: str, seed: int = 11) -> nn.Module:
    """Random weights, and batch-norm statistics of what passes through them, which is neither centred nor scaled."""
    config, overrides = NETWORKS[name]
    model = build_backbone(config_of(config, *overrides))
    model.load_state_dict(golden_state({key: list(value.shape) for key, value in model.state_dict().items()}, seed))
    with torch.no_grad():
        model.train()(torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (4, 3, 112, 112)).astype(np.float32)))
    return model


def photos(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, 112, 112, 3), np.uint8)


def by_hand(model: nn.Module, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of images one by one."""
    model.eval()
    both = []
    with torch.no_grad():
        for image in images:
            pixels = torch.from_numpy((image.astype(np.float32) / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
            both.append([model(pixels)[0].numpy(), model(pixels.flip(3))[0].numpy()])
    direct, flipped = np.array(both).swapaxes(0, 1)
    return direct, flipped


def relative(ours: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(ours - expected).max() / np.abs(expected).max())


@needs_openvino
@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_gives_what_pytorch_gives(name):
    model, images = network(name), photos(5)
    runtime = OpenVinoRuntime(model)
    assert torch.tensor([1e-39]) != 0  # OpenVINO's threads alone count denormal numbers as zero
    direct, flipped = by_hand(model, images)
    assert (
        relative(direct[:1], direct[1:2]) > 1e-4 and relative(direct, flipped) > 1e-4
    )  # embeddings of two images differ
    for n in (5, 1, 2, 3):
        ours = runtime(images[:n])
        assert [(part.shape, part.dtype) for part in ours] == [(direct[:n].shape, np.float32)] * 2
        assert relative(ours[0], direct[:n]) < 1e-5 and relative(ours[1], flipped[:n]) < 1e-5


def test_pytorch_gives_what_it_gives_one_by_one():
    model, images = network("PocketNet small"), photos(5)
    ours = embed(TorchRuntime(model, CPU.device, 2), images)  # batches of 2, 2 and 1
    for one, other in zip(ours, by_hand(model, images), strict=True):
        assert one.dtype == np.float32 and relative(one, other) < 1e-5


def test_verification_in_training_compiles_nothing():
    model, images, compiled = network("PocketNet small"), photos(3), []
    before = embed(TorchRuntime(model, CPU.device, 2), images)
    model.compile(backend=lambda graph, inputs: compiled.append(inputs) or graph.forward)
    after = embed(TorchRuntime(model.train(), CPU.device, 2), images)
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True)) and not compiled
    model.eval()(torch.zeros(2, 3, 112, 112))
    assert compiled  # a call of the network itself does


@pytest.mark.parametrize("kind", ["torch", pytest.param("openvino", marks=needs_openvino)])
@pytest.mark.parametrize("training", [True, False])
def test_a_runtime_leaves_the_network_as_it_was(kind, training):
    model = network("PocketNet small").train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    runtime = OpenVinoRuntime(model) if kind == "openvino" else TorchRuntime(model, CPU.device, 4)
    runtime(photos(3))
    assert all(module.training is training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert list(before) == list(model.state_dict())


@needs_openvino
def test_openvino_holds_a_copy():
    """The next checkpoint is loaded into the same network, which must not change the runtime."""
    model, images = network("PocketNet small"), photos(3)
    runtime = OpenVinoRuntime(model)
    before = runtime(images)
    model.load_state_dict(network("PocketNet small", seed=12).state_dict())
    after = runtime(images)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert relative(before[0], by_hand(model, images)[0]) > 1e-2
    kept = before[0].copy()
    runtime(photos(4))
    np.testing.assert_array_equal(before[0], kept)  # nor are results of one call those of the next


@pytest.mark.parametrize("kind", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_no_images_have_no_embeddings(kind):
    """A process may have no share where there are more processes than images."""
    model = network("PocketNet small")
    runtime = OpenVinoRuntime(model) if kind == "openvino" else TorchRuntime(model, CPU.device, 4)
    direct, flipped = embed(runtime, np.empty((0, 112, 112, 3), np.uint8))
    assert direct.shape == flipped.shape == (0, 32)


@needs_openvino
def test_a_converted_network_is_freed():
    """An evaluation of many checkpoints converts each of them."""
    runtime = OpenVinoRuntime(network("PocketNet small"))
    embed(runtime, np.zeros((3, 112, 112, 3), np.uint8))
    reference = weakref.ref(runtime)
    del runtime
    assert reference() is None


@needs_openvino
def test_many_conversions_take_no_memory():
    """The tracer of torch keeps what it traced: here 40 MB or more of each network."""
    size = 10_000_000
    layers = [torch.nn.AvgPool2d(14), torch.nn.Flatten(), torch.nn.Linear(192, size // 192, bias=False)]
    model = torch.nn.Sequential(*layers)

    def resident() -> int:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    OpenVinoRuntime(model)
    before = resident()
    for _ in range(4):
        OpenVinoRuntime(model)
    assert resident() - before < 2 * 4 * size


@needs_openvino
def test_openvino_reports_to_nobody(tmp_path):
    """Nothing is left in the home folder, where it would keep an identity to report under, import alone enough."""
    code = (
        "import numpy as np; from backbones.build import build_backbone; from config import load_config; "
        "from eval.inference.openvino import OpenVinoRuntime; "
        f"config = load_config('config/config_demo.py', {SMALL_NET}); "
        "print(OpenVinoRuntime(build_backbone(config))(np.zeros((1, 112, 112, 3), np.uint8))[0].shape)"
    )
    done = run_command(ROOT, sys.executable, "-c", code, HOME=str(tmp_path), XDG_CONFIG_HOME="", XDG_CACHE_HOME="")
    assert done.stdout == "(1, 32)\n", done.stderr
    assert list(tmp_path.rglob("*")) == []
