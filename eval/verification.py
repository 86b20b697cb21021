"""Face verification: are the two images of a pair of the same person?

The measures of the published evaluation (PocketNet `eval/verification.py`, from FaceNet and InsightFace), as pure
functions of arrays: ten-fold accuracy, the ROC curve, VAL at a false accept rate, and the norm of the embeddings. Every
distance is placed among the thresholds once; what holds at each threshold is then a cumulative sum.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.inputs.bins import decode, load_bin, read_bin
from utils.errors import UserError

__all__ = [
    "VerificationResult", "decode", "embedding_norm", "evaluate", "evaluate_distances", "load_bin", "pair_distances",
    "read_bin", "resampled_accuracies",
]  # fmt: skip

THRESHOLDS = np.arange(0, 4, 0.01)  # squared distance of unit vectors: 0 to 4
FINE_THRESHOLDS = np.arange(0, 4, 0.001)  # those among which VAL's is sought
FAR_TARGET = 1e-3
_CHUNK = 512  # embeddings normalised at a time, so that they stay in the processor's cache
_RESAMPLES_AT_ONCE = 50

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]


class VerificationResult(NamedTuple):
    """The measures of one verification set; all but the thresholds are fractions from 0 to 1."""

    accuracy: float  # mean over folds
    accuracy_std: float  # over folds
    accuracy_folds: FloatArray  # (n_folds,)
    thresholds: FloatArray  # (n_folds,) squared distance, the best of the other folds
    tpr: FloatArray  # (400,) same pairs accepted at THRESHOLDS, mean over folds
    fpr: FloatArray  # (400,) different pairs accepted
    val: float  # same pairs accepted where the other folds accept FAR_TARGET of the different pairs
    val_std: float  # over folds
    far: float  # different pairs accepted there, mean over folds
    correct: NDArray[np.bool_]  # (N,) pairs judged rightly at their fold's threshold


def evaluate(embeddings: ArrayLike, issame: ArrayLike, n_folds: int = 10) -> VerificationResult:
    """Measure embeddings (2N, D), rows 2i and 2i + 1 being pair i, against flags (N,): true is the same person.

    The rows are L2-normalised here (a row of zeros stays so); a pair's distance is the squared Euclidean one.

    Raises UserError where the embeddings are not finite, are not two rows a flag, and as `evaluate_distances`.
    """
    rows = np.asarray(embeddings)
    if rows.ndim != 2 or len(rows) % 2:
        raise UserError(f"embeddings of shape {rows.shape}: it should be (2 x pairs, dimensions)")
    return evaluate_distances(pair_distances(rows, np.arange(len(rows)).reshape(-1, 2)), issame, n_folds)


def evaluate_distances(dist: ArrayLike, issame: ArrayLike, n_folds: int = 10) -> VerificationResult:
    """Measure squared distances (N,) of pairs against flags (N,); see `VerificationResult`.

    A pair is accepted as the same person where its distance is strictly below the threshold, compared in float64. The
    folds are consecutive runs of pairs, the first N % n_folds of them one pair longer. Each fold is measured at the
    first threshold that is best, or interpolated to FAR_TARGET, on the other folds. A fold without same (different)
    pairs counts as 0 in tpr (fpr), as published, and is left out of val (far), where the published code stopped.

    Raises UserError where the lengths differ, a distance is not finite, there are fewer pairs than folds or than two
    folds, or all pairs are of one kind.
    """
    distances, same = _checked(dist, issame, n_folds)
    fold = _folds(len(same), n_folds)
    group = 2 * fold + same  # fold by fold, different pairs and then same pairs
    totals = np.bincount(group, minlength=2 * n_folds).reshape(n_folds, 2)

    accepted = _accepted(distances, group, n_folds, THRESHOLDS)
    accuracy, best = _fold_accuracies(accepted, totals)
    fpr, tpr = (accepted / np.maximum(totals, 1)[..., np.newaxis]).mean(axis=0)

    threshold = _far_thresholds(_accepted(distances, group, n_folds, FINE_THRESHOLDS)[:, 0], totals[:, 0])
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
    """Ten-fold accuracies (resamples,) of as many bootstrap samples of the pairs: how far chance alone moves it.

    In each, every fold is drawn anew from its own pairs, with replacement, and the thresholds are chosen anew. The same
    seed draws the same pairs, so that the difference of two networks' arrays is that of the same samples. The pairs are
    taken as independent; those that share a person or an image are not quite, and the true spread is a little wider.

    Raises UserError as `evaluate_distances`.
    """
    distances, same = _checked(dist, issame, n_folds)
    fold = _folds(len(same), n_folds)
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
    """Squared distances (N,) of the normalised embeddings (M, D) of pairs (N, 2), given by their rows.

    Step by step as published, so equal to the bit. An embedding of zeros stays so.

    Raises UserError where an embedding is not finite.
    """
    rows = np.asarray(embeddings)
    norms = _norms(rows)
    norms[norms == 0] = 1
    dist = np.empty(len(pairs), norms.dtype)
    for start in range(0, len(pairs), _CHUNK):
        first, second = pairs[start : start + _CHUNK].T
        difference = rows[first] / norms[first, np.newaxis] - rows[second] / norms[second, np.newaxis]
        dist[start : start + _CHUNK] = np.square(difference).sum(axis=1)
    return dist


def embedding_norm(*embeddings: ArrayLike) -> float:
    """Mean L2 norm of the rows of one or several sets (N, D) of raw embeddings: "XNorm" of the published log.

    The published evaluation gives two sets, of the images and of their mirror images.

    Raises UserError where an embedding is not finite or there is none.
    """
    norms = np.concatenate([_norms(np.asarray(rows)) for rows in embeddings])
    if not len(norms):
        raise UserError("no embeddings to take the norm of")
    return float(norms.mean(dtype=np.float64))


def _checked(dist: ArrayLike, issame: ArrayLike, n_folds: int) -> tuple[FloatArray, NDArray[np.bool_]]:
    distances, same = np.asarray(dist, dtype=np.float64), np.asarray(issame).astype(bool)
    if distances.ndim != 1 or distances.shape != same.shape:
        raise UserError(
            f"distances of shape {distances.shape} but flags of shape {same.shape}: it should be one a pair"
        )
    if not np.isfinite(distances).all():
        raise UserError(f"the distance of pair {np.argmin(np.isfinite(distances))} is not finite")
    if not 2 <= n_folds <= len(same):
        raise UserError(f"{len(same)} pairs cannot be measured in {n_folds} folds: 2 folds to as many as pairs")
    if same.all() or not same.any():
        kind = "the same person" if same[0] else "different people"
        raise UserError(f"all {len(same)} pairs are of {kind}: verification needs both kinds")
    return distances, same


def _norms(rows: NDArray[Any]) -> FloatArray:
    """L2 norms (N,) of rows (N, D), in float32 for float16 and float32."""
    floats = rows.astype(np.result_type(rows, np.float32), copy=False)
    norms = np.sqrt(np.einsum("ij,ij->i", floats, floats))
    if not np.isfinite(norms).all():  # a NaN or an infinity anywhere in a row reaches its norm
        raise UserError(f"embedding {np.argmin(np.isfinite(norms))} is not finite (of {len(rows)})")
    return norms


def _folds(n: int, n_folds: int) -> IntArray:
    """The fold (n,) of each pair."""
    return np.repeat(np.arange(n_folds), [len(part) for part in np.array_split(np.empty(n), n_folds)])


def _fold_accuracies(accepted: IntArray, totals: IntArray) -> tuple[FloatArray, IntArray]:
    """Each fold's accuracy (…, n_folds) at the threshold that is best on the others, and which threshold that is.

    Arguments: pairs accepted at each threshold (…, n_folds, 2, thresholds), different pairs first, and all pairs
    (…, n_folds, 2).
    """
    correct = accepted[..., 1, :] + totals[..., :1] - accepted[..., 0, :]  # (…, n_folds, thresholds)
    best = np.argmax(correct.sum(axis=-2, keepdims=True) - correct, axis=-1)
    there = np.take_along_axis(correct, best[..., np.newaxis], axis=-1)[..., 0]
    return there / totals.sum(axis=-1), best


def _accepted(distances: FloatArray, group: IntArray, n_folds: int, thresholds: FloatArray) -> IntArray:
    """Pairs below each threshold: (n_folds, 2, len(thresholds)), different pairs first."""
    first = np.searchsorted(thresholds, distances, side="right")  # the first threshold strictly above
    cell = group * (len(thresholds) + 1) + first
    counts = np.bincount(cell, minlength=2 * n_folds * (len(thresholds) + 1)).reshape(n_folds, 2, -1)
    return counts[..., :-1].cumsum(axis=-1)  # the last column holds the pairs below none


def _far_thresholds(false_accepts: IntArray, different: IntArray) -> FloatArray:
    """For each fold, the threshold at which the other folds accept FAR_TARGET of their different pairs.

    Linear between two FINE_THRESHOLDS, the last of them where the rate is flat at the target; 0, which accepts none,
    where the other folds never reach it.

    Arguments: different pairs accepted (n_folds, len(FINE_THRESHOLDS)), and all different pairs (n_folds,).
    """
    others = np.maximum(different.sum() - different, 1)
    rates = (false_accepts.sum(axis=0) - false_accepts) / others[:, np.newaxis]
    return np.array([np.interp(FAR_TARGET, rate, FINE_THRESHOLDS) if rate[-1] >= FAR_TARGET else 0.0 for rate in rates])
