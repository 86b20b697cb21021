"""Embeddings of faces in photos, from Python."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.faces import FaceAligner, Photo
from deploy.networks.model import Model, open_model
from deploy.networks.thresholds import choose_threshold
from utils.errors import UserError


@dataclass(frozen=True)
class FaceComparison:
    """Whether two photos show one person."""

    similarity: float  # cosine of the embeddings, from -1 to 1
    threshold: float  # cosine from which they count as one person
    same: bool


class FaceEmbedder:
    """A network with its face detector and thresholds.

    >>> embedder = FaceEmbedder.load("output/demo")
    >>> embedder.embed(["anna.jpg", "anna2.jpg", "bert.jpg"]).shape
    (3, 128)
    >>> embedder.compare("anna.jpg", "anna2.jpg").same
    True
    >>> embedder.compare("anna.jpg", "bert.jpg").same
    False
    """

    def __init__(self, model: Model, aligner: FaceAligner) -> None:
        self.model = model
        self.aligner = aligner

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        config: str | Path | None = None,
        detector: str | Path | None = None,
        largest: bool = False,
    ) -> "FaceEmbedder":
        """Opens a network.

        Args:
            path: a checkpoint, the folder of a run, a shared folder, or an exported file (.onnx, .xml, .tflite). None:
                the output of config/config.py.
            config: a checkpoint's config. None: config.json beside it, or else the shipped config that fits.
            detector: YuNet as ONNX file, in place of BlazeFace.
            largest: whether to take the largest face near the middle where a photo has several.

        Raises UserError, a ValueError, if the network cannot be opened.
        """
        model = open_model(None if path is None else str(path), None if config is None else str(config))
        return cls(model, FaceAligner(None if detector is None else Path(detector), largest))

    def align(self, photo: Photo) -> NDArray[np.uint8]:
        """Returns the aligned face (112, 112, 3) RGB of a photo: a path, the content of a file, or RGB pixels.

        Pixels of 112×112 are an aligned face already. Raises UserError if there is no face, or more than one.
        """
        return self.aligner(photo)

    def embed(self, photos: Sequence[Photo]) -> NDArray[np.float32]:
        """Returns unit vectors (N, D) of the faces in N photos, also as one array (N, H, W, 3). Raises UserError."""
        if isinstance(photos, str | bytes):
            raise UserError("embed takes several photos", fix="write embed([photo]) for one")
        faces = [self.align(photo) for photo in photos]
        return self.embed_aligned(np.stack(faces)) if faces else np.empty((0, self.model.embedding_size), np.float32)

    def embed_aligned(self, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns unit vectors (N, D) of aligned faces (N, 112, 112, 3) RGB. Raises UserError if one is not finite."""
        embeddings = self.model.run(faces)
        with np.errstate(over="ignore"):
            norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        if not np.isfinite(norms).all():
            raise UserError(f"{self.model.path}: its embeddings are not finite", fix="take another checkpoint")
        return embeddings / np.maximum(norms, np.finfo(np.float32).tiny)

    def compare(self, a: Photo, b: Photo, far: float = 1e-3) -> FaceComparison:
        """Compares two photos at the threshold of a false accept rate.

        Raises UserError also if the network has no threshold at this rate.
        """
        threshold = choose_threshold(self.model.thresholds, far, str(self.model.path)).cosine
        first, second = self.embed([a, b])
        similarity = float(first @ second)
        return FaceComparison(similarity, threshold, similarity >= threshold)
