"""The verification measures: against the published numbers, and against a loop that follows the published text."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.preprocessing import normalize

from eval.verification import FINE_THRESHOLDS, THRESHOLDS, embedding_norm, evaluate, evaluate_distances
from tests.helpers.paths import GOLDEN, ROOT
from tests.helpers.verification_reference import published_verification
from utils.errors import UserError


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "verification.npz") as vectors:
        return dict(vectors)


def assert_as_reference(result, expected):
    accuracy, best, tpr, fpr, val, val_std, far = expected
    assert result.accuracy_folds.tolist() == accuracy
    assert result.thresholds.tolist() == best
    np.testing.assert_allclose(result.tpr, tpr, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.fpr, fpr, rtol=0, atol=1e-12)
    np.testing.assert_allclose([result.val, result.val_std, result.far], [val, val_std, far], rtol=0, atol=1e-12)
    assert result.accuracy == np.mean(accuracy)
    assert result.accuracy_std == np.std(accuracy)


@pytest.mark.parametrize("name", ["easy", "hard", "odd"])
def test_distances_as_published(golden, name):
    result = evaluate_distances(golden[f"{name}/dist"], golden[f"{name}/issame"])
    assert result.accuracy_folds.tolist() == golden[f"{name}/accuracy_folds"].tolist()
    np.testing.assert_allclose(result.tpr, golden[f"{name}/tpr"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.fpr, golden[f"{name}/fpr"], rtol=0, atol=1e-12)
    for field in ("val", "val_std", "far"):
        assert getattr(result, field) == pytest.approx(float(golden[f"{name}/{field}"]), abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", ["easy", "odd"])
def test_embeddings_as_published(golden, name, dtype):
    result = evaluate(golden[f"{name}/embeddings_f16"].astype(dtype), golden[f"{name}/issame"])
    assert result.accuracy_folds.tolist() == golden[f"{name}/f16_accuracy_folds"].tolist()
    for field in ("val", "val_std", "far"):
        assert getattr(result, field) == pytest.approx(float(golden[f"{name}/f16_{field}"]), abs=1e-6)


@pytest.mark.parametrize(("pairs", "n_folds"), [(20, 10), (23, 10), (31, 4), (7, 2)])
def test_as_the_loop(pairs, n_folds):
    rng = np.random.default_rng(pairs)
    same = rng.random(pairs) < 0.5
    dist = np.where(same, 0.9, 1.6) + 0.4 * rng.standard_normal(pairs)
    assert_as_reference(evaluate_distances(dist, same, n_folds), published_verification(dist, same, n_folds))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_at_thresholds(dtype):
    """Distances on thresholds, and one step beside them, fall where `<` in float64 puts them."""
    rng = np.random.default_rng(5)
    at = np.concatenate([rng.choice(THRESHOLDS[30:200], 12), rng.choice(FINE_THRESHOLDS[300:2000], 12)]).astype(dtype)
    dist = np.concatenate([at, np.nextafter(at, dtype(4)), np.nextafter(at, dtype(0))])
    rng.shuffle(dist)
    same = rng.random(len(dist)) < np.where(dist < 1, 0.8, 0.2)
    assert_as_reference(evaluate_distances(dist, same, 3), published_verification(dist, same, 3))


def test_target_met_exactly():
    """Where the training folds accept exactly 1 in 1000, the last threshold at which they do counts."""
    different = np.full(2000, 3.0)
    different[[0, 1000]] = 0.5  # one of 1000 in either fold
    same = np.array([0.2, 2.0, 3.5] * 2)
    dist = np.concatenate([different[:1000], same[:3], different[1000:], same[3:]])
    result = evaluate_distances(dist, np.isin(dist, same), n_folds=2)
    assert result.val == pytest.approx(2 / 3)  # the threshold is about 3, not 0.501
    assert result.far == 1e-3


def test_target_out_of_reach():
    """No training fold reaches the target below the last threshold: accept none."""
    dist = np.array([0.5, 5.0] * 4)
    result = evaluate_distances(dist, dist < 1, n_folds=2)
    assert (result.val, result.far, result.accuracy) == (0, 0, 1)


def test_sorted_pairs():
    """Folds of one kind count as 0 in the curves and are left out of VAL and FAR."""
    rng = np.random.default_rng(3)
    same = np.arange(30) < 15
    dist = np.where(same, 0.8, 1.5) + 0.3 * rng.standard_normal(30)
    for n_folds in (4, 2):
        assert_as_reference(evaluate_distances(dist, same, n_folds), published_verification(dist, same, n_folds))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalised_as_published(dtype):
    rng = np.random.default_rng(8)
    embeddings = rng.standard_normal((1400, 48)).astype(dtype)
    embeddings[1::2] += embeddings[::2] * (rng.random((700, 1)) < 0.5)
    embeddings[6] = 0  # stays zero
    same = rng.random(700) < 0.5
    unit = normalize(embeddings)
    expected = evaluate_distances(np.sum(np.square(unit[0::2] - unit[1::2]), axis=1), same)
    for field, ours in evaluate(embeddings, same)._asdict().items():
        np.testing.assert_array_equal(ours, getattr(expected, field))


def test_scale_does_not_matter():
    rng = np.random.default_rng(9)
    embeddings = rng.standard_normal((200, 16))
    same = rng.random(100) < 0.5
    embeddings[1::2] += same[:, np.newaxis] * embeddings[::2]
    expected, scaled = evaluate(embeddings, same), evaluate(1024 * embeddings, same)
    for field in expected._fields:
        np.testing.assert_array_equal(getattr(scaled, field), getattr(expected, field))


def test_integers_are_embeddings_too():
    embeddings = np.array([[1, 0], [2, 0], [1, 0], [0, 3]] * 5)
    result = evaluate(embeddings, [True, False] * 5, n_folds=5)
    assert result.accuracy == 1
    assert result.tpr[1] == 1  # distance 0 is below 0.01 and not below 0
    assert result.tpr[0] == 0


def test_embedding_norm():
    images, mirrors = np.array([[3.0, 4.0], [0.0, 1.0]]), np.array([[6.0, 8.0], [0.0, 4.0]])
    assert embedding_norm(images) == 3
    assert embedding_norm(images, mirrors) == 5
    assert embedding_norm(np.full((2, 512), 300, np.float16)) == pytest.approx(300 * np.sqrt(512))
    with pytest.raises(UserError, match="no embeddings"):
        embedding_norm(np.empty((0, 4)))
    with pytest.raises(UserError, match="embedding 1 is not finite"):
        embedding_norm([[1.0], [np.nan]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_not_finite(bad, dtype):
    embeddings = np.ones((40, 4), dtype)
    embeddings[13, 2] = bad
    with pytest.raises(UserError, match=r"embedding 13 is not finite \(of 40\)"):
        evaluate(embeddings, [True, False] * 10)


@pytest.mark.parametrize(
    ("embeddings", "same", "n_folds", "message"),
    [
        (np.ones((21, 4)), [True] * 10, 10, r"shape \(21, 4\): expected \(2 x pairs, dimensions\)"),
        (np.ones(20), [True] * 10, 10, r"shape \(20,\)"),
        (np.ones((20, 4)), [True] * 9, 2, r"distances of shape \(10,\) but flags of shape \(9,\)"),
        (np.ones((20, 4)), [True, False] * 5, 11, "10 pairs cannot be split into 11 folds"),
        (np.ones((20, 4)), [True, False] * 5, 1, "into 1 folds"),
        (np.ones((0, 4)), [], 10, "0 pairs cannot"),
        (np.ones((20, 4)), [True] * 10, 10, "all 10 pairs are of the same person"),
        (np.ones((20, 4)), [False] * 10, 10, "all 10 pairs are of different people"),
    ],
)
def test_errors(embeddings, same, n_folds, message):
    with pytest.raises(UserError, match=message) as caught:
        evaluate(embeddings, same, n_folds)
    assert "\n" not in str(caught.value)


def test_distances_not_finite():
    with pytest.raises(UserError, match="the distance of pair 2 is not finite"):
        evaluate_distances([0.1, 0.2, np.nan, 0.4], [True, False, True, False], 2)


def test_without_torch():
    code = "import sys, eval.verification; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
