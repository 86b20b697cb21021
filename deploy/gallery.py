"""Embeddings of many photos in one .npz file, and search among them."""

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.filesystem import open_regular_file, write_atomic

_MAX_SCORES = 1 << 26  # similarities in memory at once: 256 MiB


@dataclass(frozen=True)
class Match:
    """A person of the gallery who resembles a query."""

    person: str
    photo: str  # the most similar one of the person
    similarity: float  # cosine


@dataclass(frozen=True)
class Gallery:
    """Embeddings of photos, all photos of a person together."""

    embeddings: NDArray[np.float32]  # (N, D) unit vectors
    photos: NDArray[np.str_]  # (N,) paths; the first folder is the person
    model: str  # path of the network that made the embeddings
    sha256: str  # of the network's file

    @cached_property
    def _people(self) -> tuple[list[str], NDArray[np.int64]]:
        """Names of the people, and the row of the first photo of each."""
        names = [person_of(photo) for photo in self.photos.tolist()]
        starts = [row for row, name in enumerate(names) if not row or name != names[row - 1]]
        return [names[row] for row in starts], np.array(starts, np.int64)

    @property
    def n_people(self) -> int:
        """Number of different people among the photos."""
        return len(self._people[0])

    def search(self, queries: NDArray[np.float32], top: int) -> list[list[Match]]:
        """Returns the `top` most similar people for each query (Q, D) of unit vectors, best first."""
        step = max(1, _MAX_SCORES // len(self.photos))
        blocks = [queries[start : start + step] @ self.embeddings.T for start in range(0, len(queries), step)]
        return [self._best(scores, top) for block in blocks for scores in block]

    def _best(self, scores: NDArray[np.float32], top: int) -> list[Match]:
        """Returns the most similar people, given the similarities (N,) of all photos."""
        names, starts = self._people
        similarities = np.maximum.reduceat(scores, starts)  # (people,)
        nearest = np.argpartition(-similarities, min(top, len(names)) - 1)[:top]
        matches = []
        for person in nearest[np.argsort(-similarities[nearest], kind="stable")].tolist():
            end = starts[person + 1] if person + 1 < len(starts) else len(scores)
            row = int(starts[person] + np.argmax(scores[starts[person] : end]))
            matches.append(Match(names[person], str(self.photos[row]), float(scores[row])))
        return matches

    def save(self, path: Path) -> None:
        """Writes the .npz file atomically. Raises OSError."""
        arrays: dict[str, Any] = {name: np.asarray(getattr(self, name)) for name in _ARRAYS}
        write_atomic(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: Path) -> "Gallery":
        """Reads the .npz file. Sorts the photos by person if they are not. Raises UserError if it is not one."""
        try:
            with open_regular_file(path) as file, np.load(file, allow_pickle=False) as arrays:
                embeddings, photos, model, digest = (arrays[name] for name in _ARRAYS)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from None
        except (EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise _not_a_gallery(path, f"{type(error).__name__}: {error!s:.60}") from None
        kinds = embeddings.dtype.kind + photos.dtype.kind
        if embeddings.ndim != 2 or photos.shape != embeddings.shape[:1] or not len(photos) or kinds != "fU":
            raise _not_a_gallery(path, f"{photos.shape} photos, embeddings of shape {embeddings.shape}")
        embeddings = embeddings.astype(np.float32, copy=False)
        if not np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3):  # also where one is not finite
            raise _not_a_gallery(path, "the embeddings are not of length 1")
        people = [person_of(photo) for photo in photos.tolist()]
        if people != sorted(people):
            order = np.argsort(people, kind="stable")
            embeddings, photos = embeddings[order], photos[order]
        return cls(embeddings, photos, str(model), str(digest))


_ARRAYS = ("embeddings", "photos", "model", "sha256")


def person_of(photo: str) -> str:
    """Returns the first folder of a photo's path, or the path itself if it has no folder."""
    return photo.partition("/")[0]


def _not_a_gallery(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: holds no embeddings ({reason})", fix="python -m deploy.embed DIR --out FILE.npz")
