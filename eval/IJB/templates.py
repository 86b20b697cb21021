"""From the embeddings of images to templates, and from pairs of templates to scores. Pure functions of arrays."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

_ROWS_AT_ONCE = 4096
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


class Embeddings(NamedTuple):
    """What is known of N images."""

    direct: FloatArray  # (N, D) of the images
    flipped: FloatArray  # (N, D) of their mirror images
    det_scores: FloatArray  # (N,)


def pool(
    embeddings: Embeddings,
    templates: IntArray,
    media: IntArray,
    switches: Switches | None = None,
    kept: NDArray[np.bool_] | None = None,
) -> Templates:
    """Templates of images: the mean over a medium's images, the sum over media, L2-normalised.

    A template is a weighted sum of its images, each by its own weight over the number of its medium's images there: a
    product of a sparse matrix, with no copy of the embeddings. `kept` (N,) leaves images out.
    """
    switches = switches or Switches()
    ids, template_of = np.unique(templates, return_inverse=True)
    images = np.arange(len(templates)) if kept is None else np.flatnonzero(kept)
    template_of = template_of[images]
    names, medium_of = np.unique(media[images], return_inverse=True)
    _, group, sizes = np.unique(template_of * len(names) + medium_of, return_inverse=True, return_counts=True)
    share = (image_weights(embeddings, switches)[images] / sizes[group]).astype(np.float32)
    matrix = sparse.csr_array((share, (template_of, images)), shape=(len(ids), len(templates)))
    sums = matrix @ embeddings.direct
    if switches.flip:
        sums += matrix @ embeddings.flipped
    norms = np.sqrt(np.einsum("ij,ij->i", sums, sums, dtype=np.float64))
    present = np.bincount(template_of, minlength=len(ids)) > 0
    return Templates(ids, (sums / np.where(norms == 0, 1, norms)[:, np.newaxis]).astype(np.float32), present)


def image_weights(embeddings: Embeddings, switches: Switches) -> FloatArray:
    """The weight (N,) of each image's feature, by the switches for norm and detector."""
    direct, flipped, det_scores = embeddings
    weights = np.array(det_scores, np.float64) if switches.detector else np.ones(len(direct))
    if switches.norm:
        return weights
    for start in range(0, len(direct), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        features = direct[part] + flipped[part] if switches.flip else direct[part]
        norms = np.sqrt(np.einsum("ij,ij->i", features, features))
        weights[part] /= np.where(norms == 0, 1, norms)
    return weights


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
