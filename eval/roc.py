"""ROC curves: which share of the same and of the different pairs a threshold on their similarity accepts.

Pure functions of arrays. Scores are similarities: a pair is accepted where its score is at least the threshold.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.errors import UserError

FloatArray = NDArray[np.floating]


class Roc(NamedTuple):
    """A curve from (0, 0) to (1, 1), the threshold falling from point to point."""

    fpr: FloatArray  # (K,) accepted of the different pairs: FAR
    tpr: FloatArray  # (K,) accepted of the same pairs: TAR
    thresholds: FloatArray  # (K,) the lowest score accepted; infinite at the first point


def roc(scores: ArrayLike, same: ArrayLike, corners_only: bool = True) -> Roc:
    """The curve of scores (N,) against flags (N,): true is the same person.

    One point a distinct score, and (0, 0) before them. `corners_only` leaves out the points on a straight line between
    their neighbours, as the published evaluation does (scikit-learn's `drop_intermediate`).

    Raises UserError where the lengths differ, a score is not finite, or all pairs are of one kind.
    """
    values, flags = np.asarray(scores), np.asarray(same)
    values = values.astype(np.result_type(values, np.float32), copy=False)  # whole numbers have no infinity
    if values.ndim != 1 or values.shape != flags.shape:
        raise UserError(f"scores of shape {values.shape} but flags of shape {flags.shape}: it should be one a pair")
    flags = flags.astype(bool, copy=False)
    if flags.all() or not flags.any():
        raise UserError(f"all {len(values)} pairs are of one kind: a ROC curve needs same and different ones")
    # Sorted without their flags, which is ten times as fast as sorting both; the same pairs then find their places.
    falling = np.sort(values)[::-1]
    if not np.isfinite(falling[[0, -1]]).all():  # NaN and infinities are sorted to the ends
        raise UserError("a score is not finite")
    last = np.append(falling[1:] != falling[:-1], True).nonzero()[0]  # the last pair of each distinct score
    thresholds = falling[last]
    places = len(last) - 1 - np.searchsorted(thresholds[::-1], values[flags])
    accepted = np.bincount(places, minlength=len(last)).cumsum()  # same pairs
    refused = last + 1 - accepted  # different pairs, accepted wrongly
    if corners_only and len(last) > 2:
        corner = np.ones(len(last), bool)
        corner[1:-1] = (np.diff(refused, 2) != 0) | (np.diff(accepted, 2) != 0)
        accepted, refused, thresholds = accepted[corner], refused[corner], thresholds[corner]
    return Roc(
        fpr=np.append(0.0, refused / refused[-1]),
        tpr=np.append(0.0, accepted / accepted[-1]),
        thresholds=np.append(np.asarray(np.inf, thresholds.dtype), thresholds),
    )


def auc(curve: Roc) -> float:
    """The area under the curve: the chance that a same pair scores above a different one, ties counted half."""
    return float(np.trapezoid(curve.tpr, curve.fpr))


def eer(curve: Roc) -> float:
    """The equal error rate: where FAR and FRR meet, on the straight line between the points beside it."""
    gap = curve.fpr + curve.tpr - 1  # FAR - FRR, from -1 rising to 1
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(curve.fpr[after - 1] + share * (curve.fpr[after] - curve.fpr[after - 1]))


def tpr_nearest(curve: Roc, fprs: ArrayLike) -> FloatArray:
    """TPR at the points whose FPR lies nearest to each of the wanted ones, as the published IJB table has it.

    Of points equally near the one of higher FPR counts, of one FPR the highest TPR.
    """
    fpr, tpr = curve.fpr[::-1], curve.tpr[::-1]
    return np.array([tpr[np.argmin(np.abs(fpr - wanted))] for wanted in np.atleast_1d(fprs)])


class OperatingPoint(NamedTuple):
    """A threshold, and what it costs."""

    threshold: float  # similarity: accept at or above
    far: float  # different pairs accepted
    frr: float  # same pairs refused


def operating_point_at_far(curve: Roc, far: float, different: int) -> OperatingPoint | None:
    """The lowest threshold that accepts no more than `far` of the different pairs; None where there are too few pairs
    to tell: fewer than 1 / far different ones.

    The threshold lies halfway to the next score, so that rounding does not move a pair across it. The curve should have
    all its points (`corners_only=False`).
    """
    if different * far < 1 - 1e-9:
        return None
    at = int(np.searchsorted(curve.fpr, far * (1 + 1e-12), side="right")) - 1
    # In the type of the scores, in which they will be compared.
    here, below = curve.thresholds[at], curve.thresholds[min(at + 1, len(curve.thresholds) - 1)]
    if np.isinf(here):  # the best score of all is a different pair's too often: accept nothing
        here = np.nextafter(below, here)
    threshold = below + (here - below) / 2
    if threshold <= below:  # neighbours, with no number between them
        threshold = here
    return OperatingPoint(float(threshold), float(curve.fpr[at]), float(1 - curve.tpr[at]))
