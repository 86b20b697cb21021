"""Pools embeddings of images into templates and scores pairs of templates. Pure functions of arrays."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

_ROWS_AT_ONCE = 4096
_PAIRS_AT_ONCE = 4096  # their features fit the CPU cache: 30,000 at once take four times as long

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]


class Switches(NamedTuple):
    """Switches of the published evaluation for pooling embeddings, all on by default."""

    flip: bool = True  # add the embedding of the hflip to that of the image
    norm: bool = True  # keep the features' norms, a measure of image quality; off: normalise each
    detector: bool = True  # weight each image by its detector score


class Templates(NamedTuple):
    """Pooled features of T templates."""

    ids: IntArray  # (T,) ascending
    features: NDArray[np.float32]  # (T, D), L2-normalised
    present: NDArray[np.bool_]  # (T,) whether any of its images is kept; otherwise its features are zeros


class Embeddings(NamedTuple):
    """Embeddings and detector scores of N images."""

    direct: FloatArray  # (N, D) of the images
    flipped: FloatArray  # (N, D) of their hflips
    det_scores: FloatArray  # (N,)


def pool_templates(
    embeddings: Embeddings,
    templates: IntArray,
    media: IntArray,
    switches: Switches | None = None,
    keep: NDArray[np.bool_] | None = None,
) -> Templates:
    """Pools images (N,) into templates: the mean over the images of a medium, the sum over media, L2-normalised.

    templates, media: ids (N,) of each image. keep: mask (N,) of the images to use; default: all.

    A template is a weighted sum of its images: each image's weight divided by the number of images of its medium in the
    template. It is computed as a product with a sparse matrix, without a copy of the embeddings.
    """
    switches = switches or Switches()
    ids, template_of = np.unique(templates, return_inverse=True)
    images = np.arange(len(templates)) if keep is None else np.flatnonzero(keep)
    template_of = template_of[images]
    media_ids, medium_of = np.unique(media[images], return_inverse=True)
    _, group, sizes = np.unique(template_of * len(media_ids) + medium_of, return_inverse=True, return_counts=True)
    weights = (image_weights(embeddings, switches)[images] / sizes[group]).astype(np.float32)
    matrix = sparse.csr_array((weights, (template_of, images)), shape=(len(ids), len(templates)))
    sums = matrix @ embeddings.direct
    if switches.flip:
        sums += matrix @ embeddings.flipped
    norms = np.sqrt(np.einsum("ij,ij->i", sums, sums, dtype=np.float64))
    present = np.bincount(template_of, minlength=len(ids)) > 0
    return Templates(ids, (sums / np.where(norms == 0, 1, norms)[:, np.newaxis]).astype(np.float32), present)


def image_weights(embeddings: Embeddings, switches: Switches) -> FloatArray:
    """Returns the weight (N,) of each image, according to the switches norm and detector."""
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
    """Returns the cosine similarities (P,) of pairs of templates, given as rows first (P,) and second (P,) of features
    (T, D)."""
    scores = np.empty(len(first), np.float32)

    def score_chunk(start: int) -> None:
        part = slice(start, start + _PAIRS_AT_ONCE)
        features1, features2 = (features.take(rows[part], axis=0, mode="clip") for rows in (first, second))
        np.einsum("ij,ij->i", features1, features2, out=scores[part])

    with ThreadPoolExecutor(os.cpu_count()) as executor:  # numpy releases the GIL meanwhile
        for _ in executor.map(score_chunk, range(0, len(first), _PAIRS_AT_ONCE)):
            pass
    return scores
