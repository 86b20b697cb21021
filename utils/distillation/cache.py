"""A teacher's embeddings of every training image and its mirror image, kept on disk so that they are computed once."""

import hashlib
import json
import os
import zlib
from pathlib import Path

import numpy as np
from torch import Tensor

from utils.datasets.face_dataset import FaceDataset
from utils.datasets.sampler import ListSampler
from utils.datasets.shared_loader import Loader
from utils.datasets.transforms import normalise
from utils.distillation.teacher import Teacher
from utils.distributed.collectives import shard_slice
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.filesystem import open_no_follow, preallocate, sha256, write_text_atomic
from utils.logs.progress_bar import Progress
from utils.logs.run_log import log

VERSION = 1  # of the files
CHUNK = 1 << 20  # bytes

Identity = dict[str, str | int]


class TeacherCache:
    """Two arrays in files that all processes of a machine map: float16 embeddings (N, 2, D) of image and mirror image,
    and the CRC-32 of each (N, 2).

    An embedding whose CRC does not fit is not there: so nothing half written is ever read, whoever was killed or lost
    power while writing, or wrote to the same place at once.
    """

    def __init__(self, folder: Path, name: str, identity: Identity, n_images: int, size: int) -> None:
        """Opens the files in the folder, made where they are missing.

        `identity` is all that the embeddings depend on: the files are named by it, so that another teacher, or the
        same one on other data, has its own. Raises UserError where they cannot be made, or are damaged.
        """
        identity = {**identity, "images": n_images, "embedding_size": size, "version": VERSION}
        self.path = folder / f"{name}-{_digest(json.dumps(identity).encode())}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.embeddings = _mapped(self._file(".f16"), np.float16, (n_images, 2, size))
            self.checks = _mapped(self._file(".crc"), np.uint32, (n_images, 2))
            self._describe(identity)
        except OSError as error:
            raise UserError(
                f"config teacher_cache: cannot keep {n_images * (4 * size + 8) / 2**30:.2f} GiB in {folder} "
                f"({error.strerror or error}); name another folder, or train without: teacher_cache="
            ) from None

    def _file(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _describe(self, identity: Identity) -> None:
        """Writes what the embeddings are of, for people and for the next run to check."""
        path = self._file(".json")
        text = json.dumps(identity, indent=2) + "\n"
        if not path.exists():
            write_text_atomic(path, text)
        elif path.read_text(errors="replace") != text:
            raise UserError(f"{path}: is of another teacher or other data; delete it and the files beside it")

    def read(self, indices: np.ndarray, flipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,) int64, (B,) bool -> embeddings (B, D) float16, and (B,) bool: which of them are there."""
        sides = flipped.astype(np.intp)
        embeddings = self.embeddings[indices, sides]
        return embeddings, _checks(embeddings) == self.checks[indices, sides]

    def write(self, indices: np.ndarray, flipped: np.ndarray, embeddings: np.ndarray) -> None:
        """Keeps (B, D) float16 embeddings."""
        sides = flipped.astype(np.intp)
        self.embeddings[indices, sides] = embeddings
        self.checks[indices, sides] = _checks(embeddings)

    def filled(self) -> float:
        """The fraction of images that have been embedded both ways."""
        return float(np.all(self.checks, axis=1).mean())

    def missing(self, share: slice) -> np.ndarray:
        """Those indices of the share whose embeddings are not there, or not whole, both ways. Reads them all."""
        indices = np.arange(share.start, share.stop)
        parts = np.array_split(indices, max(1, len(indices) * self.embeddings[:1].nbytes // CHUNK))
        whole = [self._are_whole(part, False) & self._are_whole(part, True) for part in parts]
        return indices[~np.concatenate(whole)]

    def _are_whole(self, indices: np.ndarray, flipped: bool) -> np.ndarray:
        return self.read(indices, np.full(len(indices), flipped))[1]


def fill(
    cache: TeacherCache, teacher: Teacher, data: FaceDataset, world: World, batch: int, workers: int = 0,
    skip_bad: bool = False, timeout: int = 0,
) -> int:  # fmt: skip
    """Embeds this process's share of what is missing; returns how many images that were. skip_bad, timeout: as the
    loader's."""
    # Shared out by all images, not by the missing ones: another process may be filling already.
    missing = cache.missing(shard_slice(len(data), world))
    if not len(missing):
        return 0
    with Progress(len(missing), "Teacher", "images", world.is_main) as progress:
        try:
            loader = Loader(data, ListSampler(missing, batch), workers, skip_bad=skip_bad, timeout=timeout)
            for decoded in loader.epoch(0):
                images, indices = normalise(decoded.images.to(world.device)), decoded.indices.numpy()
                embed_and_cache(cache, teacher, images, indices, np.zeros(len(indices), bool))
                progress.update(len(indices))
        except UserError as error:
            if not skip_bad:
                raise
            log.warning(f"{error}: what the teacher says of others behind it is asked while training")
    return len(missing)


def embed_and_cache(
    cache: TeacherCache, teacher: Teacher, images: Tensor, indices: np.ndarray, flipped: np.ndarray
) -> np.ndarray:
    """The teacher's embeddings (B, D) float16 of (B, 3, 112, 112) images, kept with those of their mirror images."""
    asked, other = (teacher(turned).half().cpu().numpy() for turned in (images, images.flip(3)))
    cache.write(indices, flipped, asked)
    cache.write(indices, ~flipped, other)
    return asked


def fingerprint_of_teacher(path: Path) -> str:
    """SHA-256 of a file; of an ONNX file also of those named NAME.onnx…, in which a large network has its weights."""
    beside = path.parent.iterdir() if path.suffix.lower() == ".onnx" else ()
    parts = (other for other in beside if other.name.startswith(path.name) and other.is_file() and other != path)
    return sha256(path, *sorted(parts))


def _checks(embeddings: np.ndarray) -> np.ndarray:
    """The CRC-32 of each row of (B, D); never 0, which says that there is none."""
    return np.array([zlib.crc32(row) or 1 for row in np.ascontiguousarray(embeddings)], np.uint32)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _mapped(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """The file as an array, made of zeros where it is missing. A part that was cut off is zeros, too."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    with os.fdopen(open_no_follow(path, os.O_RDWR | os.O_CREAT), "r+b") as file:
        found = file.seek(0, os.SEEK_END)
        if found > size:
            raise UserError(f"{path}: {found} bytes, should be {size}: it is damaged; delete it")
        if found < size:
            preallocate(file.fileno(), size)
        return np.memmap(file, dtype, "r+", shape=shape)
