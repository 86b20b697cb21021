"""Disk cache of a teacher's embeddings of every training image and its horizontal flip, each computed once."""

import hashlib
import json
import os
import zlib
from pathlib import Path

import numpy as np
from torch import Tensor

from utils.datasets.image_dataset import ImageDataset
from utils.datasets.sampler import ListSampler
from utils.datasets.shared_loader import SharedMemoryLoader
from utils.datasets.transforms import normalise
from utils.distillation.teacher import Teacher
from utils.distributed.collectives import shard_slice
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.filesystem import open_no_follow, preallocate, sha256, write_text_atomic
from utils.logs.logger import log
from utils.logs.progress_bar import ProgressReporter

VERSION = 1  # format of the cache files
CHUNK = 1 << 20  # bytes of embeddings checked at once

Identity = dict[str, str | int]


class TeacherCache:
    """Two memory-mapped arrays shared by all processes of a machine: embeddings and their checksums.

    The embeddings (N, 2, D) are float16, of each image and of its horizontal flip; the CRC-32 checksums are (N, 2). An
    embedding whose checksum does not match counts as missing. So no partly written embedding is ever read, even if a
    process was killed, the power failed, or two processes wrote it at the same time.
    """

    def __init__(self, folder: Path, name: str, identity: Identity, n_images: int, size: int) -> None:
        """Opens the cache files {name}-{hash}.f16, .crc and .json in the folder; creates missing ones.

        identity: everything that the embeddings depend on. The hash is computed from it, so that another teacher, or
        the same one on other data, has files of its own. size: dimension D of the embeddings. Raises UserError if the
        files cannot be created or are damaged.
        """
        identity = {**identity, "images": n_images, "embedding_size": size, "version": VERSION}
        self.path = folder / f"{name}-{_digest(json.dumps(identity).encode())}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.embeddings = _open_memmap(self._file(".f16"), np.float16, (n_images, 2, size))
            self.checks = _open_memmap(self._file(".crc"), np.uint32, (n_images, 2))  # 0: not written yet
            self._write_or_check_identity(identity)
        except OSError as error:
            raise UserError(
                f"config teacher_cache: cannot keep {n_images * (4 * size + 8) / 2**30:.2f} GiB in {folder} "
                f"({error.strerror or error})",
                fix="name another folder, or train without: teacher_cache=",
            ) from None

    def _file(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _write_or_check_identity(self, identity: Identity) -> None:
        """Writes the identity to the .json file, or raises UserError if the file there has another one."""
        path = self._file(".json")
        text = json.dumps(identity, indent=2) + "\n"
        if not path.exists():
            write_text_atomic(path, text)
        elif path.read_text(errors="replace") != text:
            raise UserError(f"{path}: is of another teacher or other data", fix="delete it and the files beside it")

    def read(self, indices: np.ndarray, flipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads embeddings by dataset index, (B,) int64, and flip flag, (B,) bool.

        Returns embeddings (B, D) float16 and a mask (B,) bool, False where the embedding is missing.
        """
        flips = flipped.astype(np.intp)
        embeddings = self.embeddings[indices, flips]
        return embeddings, _checksums(embeddings) == self.checks[indices, flips]

    def write(self, indices: np.ndarray, flipped: np.ndarray, embeddings: np.ndarray) -> None:
        """Stores (B, D) float16 embeddings by dataset index, (B,) int64, and flip flag, (B,) bool."""
        flips = flipped.astype(np.intp)
        self.embeddings[indices, flips] = embeddings
        self.checks[indices, flips] = _checksums(embeddings)

    def filled(self) -> float:
        """Returns the fraction of images with both embeddings written, by their checksums only."""
        return float(np.all(self.checks, axis=1).mean())

    def missing(self, shard: slice) -> np.ndarray:
        """Returns the indices of the shard that lack a valid embedding of the image or its flip; reads all of them."""
        indices = np.arange(shard.start, shard.stop)
        parts = np.array_split(indices, max(1, len(indices) * self.embeddings[:1].nbytes // CHUNK))
        valid = [self._is_valid(part, False) & self._is_valid(part, True) for part in parts]
        return indices[~np.concatenate(valid)]

    def _is_valid(self, indices: np.ndarray, flipped: bool) -> np.ndarray:
        """Returns whether each embedding matches its checksum: (B,) bool."""
        return self.read(indices, np.full(len(indices), flipped))[1]


def fill_cache(
    cache: TeacherCache, teacher: Teacher, data: ImageDataset, world: World, batch: int, workers: int = 0,
    skip_bad: bool = False, timeout: int = 0,
) -> int:  # fmt: skip
    """Embeds the missing images of this rank's shard and their flips; returns the number of images.

    batch: images per forward pass. workers, skip_bad, timeout: as for `SharedMemoryLoader`. With skip_bad a UserError
    of the loader ends the filling with a warning, else it is raised.
    """
    # Sharded by all images, not by the missing ones, because another rank may already be filling its shard.
    missing = cache.missing(shard_slice(len(data), world))
    if not len(missing):
        return 0
    with ProgressReporter(len(missing), "Teacher", "images", world.is_main) as progress:
        try:
            loader = SharedMemoryLoader(data, ListSampler(missing, batch), workers, skip_bad=skip_bad, timeout=timeout)
            for host_batch in loader.iter_epoch(0):
                images, indices = normalise(host_batch.images.to(world.device)), host_batch.indices.numpy()
                embed_and_cache(cache, teacher, images, indices, np.zeros(len(indices), bool))
                progress.update(len(indices))
        except UserError as error:
            if not skip_bad:
                raise
            log.warning(f"{error}: the teacher embeds the images after it during training")
    return len(missing)


def embed_and_cache(
    cache: TeacherCache, teacher: Teacher, images: Tensor, indices: np.ndarray, flipped: np.ndarray
) -> np.ndarray:
    """Embeds (B, 3, 112, 112) images and their horizontal flips, and writes both to the cache.

    indices: (B,) int64. flipped: (B,) bool, whether the given image is already flipped. Returns the embeddings of the
    given images, (B, D) float16.
    """
    embeddings, embeddings_of_flips = (teacher(inputs).half().cpu().numpy() for inputs in (images, images.flip(3)))
    cache.write(indices, flipped, embeddings)
    cache.write(indices, ~flipped, embeddings_of_flips)
    return embeddings


def teacher_fingerprint(path: Path) -> str:
    """Returns the SHA-256 of a teacher's file; for ONNX it includes the external weight files NAME.onnx… beside it."""
    siblings = path.parent.iterdir() if path.suffix.lower() == ".onnx" else ()
    weights = (other for other in siblings if other.name.startswith(path.name) and other.is_file() and other != path)
    return sha256(path, *sorted(weights))


def _checksums(embeddings: np.ndarray) -> np.ndarray:
    """Returns the CRC-32 of each row of (B, D): (B,) uint32; never 0, which marks a missing embedding."""
    return np.array([zlib.crc32(row) or 1 for row in np.ascontiguousarray(embeddings)], np.uint32)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _open_memmap(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """Maps the file as a writable array. A missing file, or the missing end of a truncated one, becomes zeros.

    Raises UserError if the file is too long, and OSError.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    with os.fdopen(open_no_follow(path, os.O_RDWR | os.O_CREAT), "r+b") as file:
        actual = file.seek(0, os.SEEK_END)
        if actual > size:
            raise UserError(f"{path}: {actual} bytes, should be {size}: it is damaged", fix="delete it")
        if actual < size:
            preallocate(file.fileno(), size)
        return np.memmap(file, dtype, "r+", shape=shape)
