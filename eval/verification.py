"""Face verification: are the two images of a pair of the same person?

The metrics of the published evaluation (PocketNet `eval/verification.py`, from FaceNet and InsightFace), as pure
functions of arrays: ten-fold accuracy, the ROC curve, VAL at a false accept rate, and the norm of the embeddings. Each
distance is assigned to a threshold once; the counts at every threshold are then cumulative sums.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.datasets.verification.bins import decode_images, load_bin, read_bin
from utils.errors import UserError, quantity

__all__ = [
    "VerificationResult", "decode_images", "embedding_norm", "evaluate", "evaluate_distances", "load_bin",
    "pair_distances", "read_bin", "resampled_accuracies",
]  # fmt: skip

THRESHOLDS = np.arange(0, 4, 0.01)  # squared distance of unit vectors: 0 to 4
FINE_THRESHOLDS = np.arange(0, 4, 0.001)  # candidate thresholds of VAL
FAR_TARGET = 1e-3
_CHUNK = 512  # pairs at a time, so that their embeddings stay in the CPU cache
_RESAMPLES_AT_ONCE = 50  # bounds the memory of the bootstrap

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]


class VerificationResult(NamedTuple):
    """The metrics of one verification set. All but the thresholds are fractions from 0 to 1."""

    accuracy: float  # mean over folds
    accuracy_std: float  # over folds
    accuracy_folds: FloatArray  # (n_folds,)
    thresholds: FloatArray  # (n_folds,) squared distance, best on the other folds
    tpr: FloatArray  # (400,) same pairs accepted at THRESHOLDS, mean over folds
    fpr: FloatArray  # (400,) different pairs accepted
    val: float  # same pairs accepted where the other folds accept FAR_TARGET of the different pairs
    val_std: float  # over folds
    far: float  # different pairs accepted there, mean over folds
    correct: NDArray[np.bool_]  # (N,) pairs classified correctly at their fold's threshold


def evaluate(embeddings: ArrayLike, issame: ArrayLike, n_folds: int = 10) -> VerificationResult:
    """Evaluates embeddings (2N, D), where rows 2i and 2i + 1 are pair i, on flags (N,), true for the same person.

    Normalises the rows (L2; a row of zeros stays zero). A pair's distance is the squared Euclidean distance.

    Raises UserError if an embedding is not finite or there are not two rows per flag, and as `evaluate_distances`.
    """
    rows = np.asarray(embeddings)
    if rows.ndim != 2 or len(rows) % 2:
        raise UserError(f"embeddings of shape {rows.shape}: expected (2 x pairs, dimensions)")
    return evaluate_distances(pair_distances(rows, np.arange(len(rows)).reshape(-1, 2)), issame, n_folds)


def evaluate_distances(dist: ArrayLike, issame: ArrayLike, n_folds: int = 10) -> VerificationResult:
    """Evaluates squared distances (N,) of pairs on flags (N,), true for the same person.

    A pair is accepted as the same person if its distance is strictly below the threshold, compared in float64. The
    folds are consecutive ranges of pairs, the first N % n_folds of them one pair longer. Each fold is evaluated at the
    first threshold that is best on the other folds; VAL at the threshold interpolated to FAR_TARGET on them. A fold
    without same (different) pairs counts as 0 in tpr (fpr), as published, and is left out of val (far), where the
    published code failed.

    Raises UserError if the lengths differ, a distance is not finite, there are fewer than two folds or fewer pairs than
    folds, or all pairs are of one kind.
    """
    distances, same = _check_pairs(dist, issame, n_folds)
    fold = _fold_indices(len(same), n_folds)
    group = 2 * fold + same  # two groups per fold: different pairs, then same pairs
    totals = np.bincount(group, minlength=2 * n_folds).reshape(n_folds, 2)

    accepted = _count_accepted(distances, group, n_folds, THRESHOLDS)
    accuracy, best = _fold_accuracies(accepted, totals)
    fpr, tpr = (accepted / np.maximum(totals, 1)[..., np.newaxis]).mean(axis=0)

    threshold = _far_thresholds(_count_accepted(distances, group, n_folds, FINE_THRESHOLDS)[:, 0], totals[:, 0])
    below = distances < threshold[fold]
    false_accepts, true_accepts = np.bincount(group[below], minlength=2 * n_folds).reshape(n_folds, 2).T
    has_different, has_same = totals.T > 0
    val = true_accepts[has_same] / totals[has_same, 1]
    far = false_accepts[has_different] / totals[has_different, 0]

    return VerificationResult(
        accuracy=float(accuracy.mean()),
        accuracy_std=float(accuracy.std()),
        accuracy_folds=accuracy,
        thresholds=THRESHOLDS[best],
        tpr=tpr,
        fpr=fpr,
        val=float(val.mean()),
        val_std=float(val.std()),
        far=float(far.mean()),
        correct=(distances < THRESHOLDS[best][fold]) == same,
    )


def resampled_accuracies(
    dist: ArrayLike, issame: ArrayLike, n_folds: int = 10, resamples: int = 1000, seed: int = 0
) -> FloatArray:
    """Returns the ten-fold accuracies (resamples,) of bootstrap samples of the pairs.

    Each sample draws every fold from its own pairs, with replacement, and chooses the thresholds again. Equal seeds
    draw equal samples, so that the arrays of two networks can be subtracted. The bootstrap treats pairs as independent;
    pairs that share a person or an image are not quite, so the true spread is a little wider.

    Raises UserError as `evaluate_distances`.
    """
    distances, same = _check_pairs(dist, issame, n_folds)
    fold = _fold_indices(len(same), n_folds)
    sizes = np.bincount(fold)
    starts = np.cumsum(sizes) - sizes
    width = len(THRESHOLDS) + 1
    cell = (2 * fold + same) * width + np.searchsorted(THRESHOLDS, distances, side="right")
    rng = np.random.default_rng(seed)
    accuracies = []
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        n = min(_RESAMPLES_AT_ONCE, resamples - start)
        drawn = starts[fold] + (rng.random((n, len(same))) * sizes[fold]).astype(np.int64)  # (n, N)
        cells = 2 * n_folds * width
        counts = np.bincount((cell[drawn] + cells * np.arange(n)[:, np.newaxis]).ravel(), minlength=cells * n)
        counts = counts.reshape(n, n_folds, 2, width)
        fold_accuracies, _ = _fold_accuracies(counts.cumsum(axis=-1)[..., :-1], counts.sum(axis=-1))
        accuracies.append(fold_accuracies.mean(axis=-1))
    return np.concatenate(accuracies)


def pair_distances(embeddings: ArrayLike, pairs: NDArray[np.integer]) -> FloatArray:
    """Returns the squared distances (N,) of pairs (N, 2) of rows of the embeddings (M, D), normalised first.

    Follows the published computation step by step, so the result is bit-exact. An embedding of zeros stays zero.

    Raises UserError if an embedding is not finite.
    """
    rows = np.asarray(embeddings)
    norms = _finite_norms(rows)
    norms[norms == 0] = 1
    dist = np.empty(len(pairs), norms.dtype)
    for start in range(0, len(pairs), _CHUNK):
        first, second = pairs[start : start + _CHUNK].T
        difference = rows[first] / norms[first, np.newaxis] - rows[second] / norms[second, np.newaxis]
        dist[start : start + _CHUNK] = np.square(difference).sum(axis=1)
    return dist


def embedding_norm(*embeddings: ArrayLike) -> float:
    """Returns the mean L2 norm of the rows of one or more raw embeddings (N, D), "XNorm" in the published log.

    The published evaluation passes two arrays, of the images and of their hflips.

    Raises UserError if an embedding is not finite or there are none.
    """
    norms = np.concatenate([_finite_norms(np.asarray(rows)) for rows in embeddings])
    if not len(norms):
        raise UserError("there are no embeddings to compute a norm of")
    return float(norms.mean(dtype=np.float64))


def _check_pairs(dist: ArrayLike, issame: ArrayLike, n_folds: int) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Returns the float64 distances (N,) and bool flags (N,). Raises UserError as `evaluate_distances`."""
    distances, same = np.asarray(dist, dtype=np.float64), np.asarray(issame).astype(bool)
    if distances.ndim != 1 or distances.shape != same.shape:
        raise UserError(f"distances of shape {distances.shape} but flags of shape {same.shape}: expected one per pair")
    if not np.isfinite(distances).all():
        raise UserError(f"the distance of pair {np.argmin(np.isfinite(distances))} is not finite")
    if not 2 <= n_folds <= len(same):
        raise UserError(
            f"{quantity(len(same), 'pair')} cannot be split into {n_folds} folds: take at least 2, and at most one per "
            "pair"
        )
    if same.all() or not same.any():
        kind = "the same person" if same[0] else "different people"
        raise UserError(f"all {len(same)} pairs are of {kind}: verification needs both kinds")
    return distances, same


def _finite_norms(rows: NDArray[Any]) -> FloatArray:
    """Returns the L2 norms (N,) of rows (N, D), in float32 for float16 and float32. Raises UserError if not finite."""
    floats = rows.astype(np.result_type(rows, np.float32), copy=False)
    norms = np.sqrt(np.einsum("ij,ij->i", floats, floats))
    if not np.isfinite(norms).all():  # a NaN or infinity in a row makes its norm not finite
        raise UserError(f"embedding {np.argmin(np.isfinite(norms))} is not finite (of {len(rows)})")
    return norms


def _fold_indices(n: int, n_folds: int) -> IntArray:
    """Returns the fold index (n,) of each of n pairs."""
    return np.repeat(np.arange(n_folds), [len(part) for part in np.array_split(np.empty(n), n_folds)])


def _fold_accuracies(accepted: IntArray, totals: IntArray) -> tuple[FloatArray, IntArray]:
    """Returns each fold's accuracy (…, n_folds) at the threshold that is best on the other folds, and its index.

    accepted: number of pairs accepted at each threshold (…, n_folds, 2, thresholds), different pairs first.
    totals: number of all pairs (…, n_folds, 2).
    """
    correct = accepted[..., 1, :] + totals[..., :1] - accepted[..., 0, :]  # (…, n_folds, thresholds)
    best = np.argmax(correct.sum(axis=-2, keepdims=True) - correct, axis=-1)
    correct_at_best = np.take_along_axis(correct, best[..., np.newaxis], axis=-1)[..., 0]
    return correct_at_best / totals.sum(axis=-1), best


def _count_accepted(distances: FloatArray, group: IntArray, n_folds: int, thresholds: FloatArray) -> IntArray:
    """Counts the pairs below each threshold: (n_folds, 2, len(thresholds)), different pairs first."""
    first = np.searchsorted(thresholds, distances, side="right")  # the first threshold strictly above
    cell = group * (len(thresholds) + 1) + first
    counts = np.bincount(cell, minlength=2 * n_folds * (len(thresholds) + 1)).reshape(n_folds, 2, -1)
    return counts[..., :-1].cumsum(axis=-1)  # the last column counts the pairs below no threshold


def _far_thresholds(false_accepts: IntArray, different: IntArray) -> FloatArray:
    """Returns for each fold the threshold at which the other folds accept FAR_TARGET of their different pairs.

    Interpolates linearly between FINE_THRESHOLDS, and takes the last threshold where the rate is flat at the target. 0,
    which accepts no pair, if the other folds never reach the target.

    false_accepts: number of different pairs accepted (n_folds, len(FINE_THRESHOLDS)).
    different: number of all different pairs (n_folds,).
    """
    others = np.maximum(different.sum() - different, 1)
    rates = (false_accepts.sum(axis=0) - false_accepts) / others[:, np.newaxis]
    return np.array([np.interp(FAR_TARGET, rate, FINE_THRESHOLDS) if rate[-1] >= FAR_TARGET else 0.0 for rate in rates])
