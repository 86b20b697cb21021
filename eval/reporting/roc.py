"""ROC curves of similarity scores: AUC, EER, and the operating point at a false accept rate.

Pure functions of arrays. A pair is accepted as the same person if its score is at least the threshold.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.errors import UserError

FloatArray = NDArray[np.floating]


class Roc(NamedTuple):
    """A ROC curve of K points from (0, 0) to (1, 1), with descending thresholds."""

    fpr: FloatArray  # (K,) fraction of the different pairs accepted: FAR
    tpr: FloatArray  # (K,) fraction of the same pairs accepted: TAR
    thresholds: FloatArray  # (K,) the lowest score accepted; infinite at the first point


def roc(scores: ArrayLike, same: ArrayLike, corners_only: bool = True) -> Roc:
    """Computes the ROC curve of scores (N,) and flags (N,), true for the same person.

    The curve has the point (0, 0), then one point per distinct score. `corners_only` drops the points on a straight
    line between their neighbours, as the published evaluation does (scikit-learn's `drop_intermediate`).

    Raises UserError if the lengths differ, a score is not finite, or all pairs are of one kind.
    """
    values, flags = np.asarray(scores), np.asarray(same)
    values = values.astype(np.result_type(values, np.float32), copy=False)  # integers have no infinity
    if values.ndim != 1 or values.shape != flags.shape:
        raise UserError(f"scores of shape {values.shape} but flags of shape {flags.shape}: expected one per pair")
    flags = flags.astype(bool, copy=False)
    if flags.all() or not flags.any():
        raise UserError(f"all {len(values)} pairs are of one kind: a ROC curve needs same and different ones")
    # Sorting the scores without their flags is ten times as fast as sorting both; the same pairs are then looked up.
    descending = np.sort(values)[::-1]
    if not np.isfinite(descending[[0, -1]]).all():  # NaN and infinities are sorted to the ends
        raise UserError("a score is not finite")
    last = np.append(descending[1:] != descending[:-1], True).nonzero()[0]  # last pair of each distinct score
    thresholds = descending[last]
    positions = len(last) - 1 - np.searchsorted(thresholds[::-1], values[flags])
    true_accepts = np.bincount(positions, minlength=len(last)).cumsum()
    false_accepts = last + 1 - true_accepts
    if corners_only and len(last) > 2:
        corner = np.ones(len(last), bool)
        corner[1:-1] = (np.diff(false_accepts, 2) != 0) | (np.diff(true_accepts, 2) != 0)
        true_accepts, false_accepts, thresholds = true_accepts[corner], false_accepts[corner], thresholds[corner]
    return Roc(
        fpr=np.append(0.0, false_accepts / false_accepts[-1]),
        tpr=np.append(0.0, true_accepts / true_accepts[-1]),
        thresholds=np.append(np.asarray(np.inf, thresholds.dtype), thresholds),
    )


def auc(curve: Roc) -> float:
    """Returns the area under the curve: the probability that a same pair scores above a different pair.

    Ties count half.
    """
    return float(np.trapezoid(curve.tpr, curve.fpr))


def eer(curve: Roc) -> float:
    """Returns the equal error rate, where FAR equals FRR, by linear interpolation between the two nearest points."""
    gap = curve.fpr + curve.tpr - 1  # FAR - FRR, from -1 rising to 1
    after = int(np.argmax(gap >= 0))
    fraction = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(curve.fpr[after - 1] + fraction * (curve.fpr[after] - curve.fpr[after - 1]))


def tpr_nearest(curve: Roc, fprs: ArrayLike) -> FloatArray:
    """Returns the TPR (n,) at the point whose FPR is nearest to each of `fprs` (n,), as in the published IJB table.

    Of two equally near points, the one with the higher FPR counts; of points with the same FPR, the highest TPR.
    """
    fpr, tpr = curve.fpr[::-1], curve.tpr[::-1]
    return np.array([tpr[np.argmin(np.abs(fpr - wanted))] for wanted in np.atleast_1d(fprs)])


class OperatingPoint(NamedTuple):
    """A threshold and its error rates."""

    threshold: float  # similarity: accept at or above
    far: float  # fraction of the different pairs accepted
    frr: float  # fraction of the same pairs rejected


def operating_point_at_far(curve: Roc, far: float, different: int) -> OperatingPoint | None:
    """Returns the lowest threshold that accepts no more than `far` of the different pairs.

    different: the number of different pairs. None if it is below 1 / far, too few to measure such a rate. The threshold
    is halfway to the next score, so that rounding does not move a pair across it. Needs a curve with all points
    (`corners_only=False`).
    """
    if different * far < 1 - 1e-9:
        return None
    at = int(np.searchsorted(curve.fpr, far * (1 + 1e-12), side="right")) - 1
    # Computed in the dtype of the scores, because they are compared in it.
    upper, lower = curve.thresholds[at], curve.thresholds[min(at + 1, len(curve.thresholds) - 1)]
    if np.isinf(upper):  # too many different pairs have the highest score: accept nothing
        upper = np.nextafter(lower, upper)
    threshold = lower + (upper - lower) / 2
    if threshold <= lower:  # adjacent floats, with no number between them
        threshold = upper
    return OperatingPoint(float(threshold), float(curve.fpr[at]), float(1 - curve.tpr[at]))
