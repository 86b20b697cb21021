"""Face verification: are the two images of a pair of the same person?

The measures of the published evaluation (PocketNet `eval/verification.py`, from FaceNet and InsightFace), as pure
functions of arrays: ten-fold accuracy, the ROC curve, VAL at a false accept rate, and the norm of the embeddings. Every
distance is placed among the thresholds once; what holds at each threshold is then a cumulative sum.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.bins import decode, load_bin, read_bin
from utils.errors import UserError

__all__ = ["VerificationResult", "decode", "embedding_norm", "evaluate", "evaluate_distances", "load_bin", "read_bin"]

THRESHOLDS = np.arange(0, 4, 0.01)  # squared distance of unit vectors: 0 to 4
FINE_THRESHOLDS = np.arange(0, 4, 0.001)  # those among which VAL's is sought
FAR_TARGET = 1e-3
_CHUNK = 512  # embeddings normalised at a time, so that they stay in the processor's cache

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


def evaluate(embeddings: ArrayLike, issame: ArrayLike, n_folds: int = 10) -> VerificationResult:
    """Measure embeddings (2N, D), rows 2i and 2i + 1 being pair i, against flags (N,): true is the same person.

    The rows are L2-normalised here (a row of zeros stays so); a pair's distance is the squared Euclidean one.

    Raises UserError where the embeddings are not finite, are not two rows a flag, and as `evaluate_distances`.
    """
    rows = np.asarray(embeddings)
    if rows.ndim != 2 or len(rows) % 2:
        raise UserError(f"embeddings of shape {rows.shape}: it should be (2 x pairs, dimensions)")
    return evaluate_distances(_pair_distances(rows), issame, n_folds)


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
    fold = np.repeat(np.arange(n_folds), [len(part) for part in np.array_split(same, n_folds)])
    group = 2 * fold + same  # fold by fold, different pairs and then same pairs
    totals = np.bincount(group, minlength=2 * n_folds).reshape(n_folds, 2)

    accepted = _accepted(distances, group, n_folds, THRESHOLDS)
    correct = accepted[:, 1] + totals[:, :1] - accepted[:, 0]
    best = np.argmax(correct.sum(axis=0) - correct, axis=1)
    accuracy = correct[np.arange(n_folds), best] / totals.sum(axis=1)
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
    )


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


def _pair_distances(rows: NDArray[Any]) -> FloatArray:
    """Squared distances (N,) of the normalised rows 2i and 2i + 1, step by step as published, so equal to the bit."""
    norms = _norms(rows)
    norms[norms == 0] = 1
    dist = np.empty(len(rows) // 2, norms.dtype)
    for start in range(0, len(rows), _CHUNK):
        unit = rows[start : start + _CHUNK] / norms[start : start + _CHUNK, np.newaxis]
        dist[start // 2 : (start + _CHUNK) // 2] = np.square(unit[0::2] - unit[1::2]).sum(axis=1)
    return dist


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
