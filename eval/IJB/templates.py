"""From the embeddings of images to templates, and from pairs of templates to scores. Pure functions of arrays."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

_PAIRS_AT_ONCE = 4096  # their features fit the processor's cache: 30,000 at once take four times as long

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]


class Switches(NamedTuple):
    """How the embeddings of images become features: the published switches, all on by default."""

    flip: bool = True  # image and mirror image added, not the image alone
    norm: bool = True  # features keep their norm, which tells how good an image is; else each is normalised
    detector: bool = True  # each is weighted by the detector's score


class Templates(NamedTuple):
    """What stands for each template."""

    ids: IntArray  # (T,) ascending
    features: NDArray[np.float32]  # (T, D), L2-normalised
    present: NDArray[np.bool_]  # (T,) those of which an image was kept; the others' features are zeros


def combine(
    direct: FloatArray, mirrored: FloatArray, det_scores: FloatArray, switches: Switches
) -> tuple[FloatArray, FloatArray]:
    """The features (N, D) of images, and the weight (N,) of each, from both embeddings and the detector's scores."""
    features = direct + mirrored if switches.flip else direct
    weights = np.ones(len(features))
    if not switches.norm:
        norms = np.sqrt(np.einsum("ij,ij->i", features, features))
        weights /= np.where(norms == 0, 1, norms)
    if switches.detector:
        weights *= det_scores
    return features, weights


def pool(
    features: FloatArray,
    weights: FloatArray,
    templates: IntArray,
    media: IntArray,
    kept: NDArray[np.bool_] | None = None,
) -> Templates:
    """Templates of image features (N, D): the mean over a medium's images, the sum over media, L2-normalised.

    A template is a weighted sum of its images, each by its own weight over the number of its medium's images there: one
    product of a sparse matrix, with no copy of the features. `kept` leaves images out; what they hold is not read.
    """
    ids, template_of = np.unique(templates, return_inverse=True)
    images = np.arange(len(templates)) if kept is None else np.flatnonzero(kept)
    template_of = template_of[images]
    media_of_templates = np.stack([template_of, media[images]])
    _, medium_of, sizes = np.unique(media_of_templates, axis=1, return_inverse=True, return_counts=True)
    share = (weights[images] / sizes[medium_of.ravel()]).astype(np.float32)
    matrix = sparse.csr_array((share, (template_of, images)), shape=(len(ids), len(templates)))
    sums = matrix @ features
    norms = np.sqrt(np.einsum("ij,ij->i", sums, sums, dtype=np.float64))
    present = np.bincount(template_of, minlength=len(ids)) > 0
    return Templates(ids, (sums / np.where(norms == 0, 1, norms)[:, np.newaxis]).astype(np.float32), present)


def score_pairs(features: NDArray[np.float32], first: IntArray, second: IntArray) -> NDArray[np.float32]:
    """Cosine similarities (P,) of pairs of templates, given by their rows (P,) and (P,) of the features (T, D)."""
    scores = np.empty(len(first), np.float32)

    def score(start: int) -> None:
        part = slice(start, start + _PAIRS_AT_ONCE)
        one, other = (features.take(rows[part], axis=0, mode="clip") for rows in (first, second))
        np.einsum("ij,ij->i", one, other, out=scores[part])

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy lets go of Python's lock meanwhile
        for _ in pool.map(score, range(0, len(first), _PAIRS_AT_ONCE)):
            pass
    return scores
