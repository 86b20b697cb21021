"""Embeds the images of an IJB set into files on disk, so that an interrupted evaluation resumes."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from eval.IJB.protocol import SKIP_HINT, Images, line_number
from eval.inference.embedding import Runtime
from utils.datasets.alignment import crop, similarity
from utils.datasets.sampler import ListSampler
from utils.datasets.shared_loader import SharedMemoryLoader
from utils.datasets.verification.bins import open_image
from utils.distributed.collectives import run_on_main, shard_slice
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.filesystem import open_regular_file, path_exists, preallocate, write_text_atomic
from utils.logs.logger import log
from utils.logs.progress_bar import ProgressReporter

_FLUSH_INTERVAL = 10.0  # seconds


class Crops:
    """Dataset of a set's aligned faces for the loader. A label is 0 for an image that is left out, else 1."""

    def __init__(self, folder: Path, images: Images, skip_missing: bool) -> None:
        self.folder = folder
        self.images = images
        self.skip_missing = skip_missing

    def read_into(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray) -> None:
        """Fills `images` (n, 112, 112, 3) with RGB crops and `labels` (n,) with 1, or with 0 for images left out.

        Raises UserError that names the list's line and the image if it is missing or unreadable.
        """
        for i, index in enumerate(indices):
            image = self._open(index)
            labels[i] = image is not None
            images[i] = 0 if image is None else crop(image, similarity(self.images.landmarks[index]))

    def check_files(self) -> int:
        """Returns the number of images without a file. Raises UserError at the first one unless skip_missing is set."""
        present = {path.name for path in self.folder.iterdir()}
        flat = np.array(["/" not in name for name in self.images.names])
        missing = [i for i in np.flatnonzero(flat) if self.images.names[i] not in present]
        missing += [i for i in np.flatnonzero(~flat) if not path_exists((self.folder / self.images.names[i]).exists)]
        if missing and not self.skip_missing:
            raise self._error(int(min(missing)), "is missing", len(missing))
        return len(missing)

    def _open(self, index: int) -> np.ndarray | None:
        try:
            with open_regular_file(self.folder / self.images.names[index]) as file:
                encoded = file.read()
        except UserError:
            problem = "is not a regular file"
        except (FileNotFoundError, ValueError):  # ValueError: a null byte in the name
            problem = "is missing"
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        else:
            image = open_image(encoded)
            if image is not None and max(image.shape) < 1 << 15:  # `crop` has int16 positions
                return image
            problem = "cannot be decoded" if image is None else f"is too large, {image.shape[1]}×{image.shape[0]}"
        if self.skip_missing:
            return None
        raise self._error(index, problem)

    def _error(self, index: int, problem: str, count: int = 1) -> UserError:
        more = f" (and {count - 1} more)" if count > 1 else ""
        path = self.folder / self.images.names[index]
        return UserError(
            f"{self.images.source} line {line_number(self.images.source, index)}: {path} {problem}{more}",
            fix=SKIP_HINT,
        )


class Features:
    """Memory-mapped embeddings of N images and of their hflips, whose rows may be written in any order."""

    def __init__(self, folder: Path, n_images: int, size: int, provenance: dict[str, Any], world: World) -> None:
        """Opens the files if their provenance is equal, else makes new ones. Collective.

        size: embedding size D. provenance: checksums and names of what the embeddings are computed from.
        """
        self.folder = folder
        run_on_main(world, lambda: self._prepare(n_images, size, provenance))
        try:
            self.direct, self.flipped, self.done = (  # (N, D), (N, D), (N,)
                np.load(folder / f"{name}.npy", mmap_mode="r+") for name in _layout(n_images, size)
            )
        except OSError as error:
            raise UserError(f"{folder}: {error.strerror}", fix="name another --result-dir") from None

    def _prepare(self, n_images: int, size: int, provenance: dict[str, Any]) -> None:
        """Makes new files of zeros unless those in the folder are complete and have the same provenance."""
        description = self.folder / "made.json"
        text = json.dumps(provenance | {"images": n_images, "size": size}, indent=1)
        try:
            if path_exists(description.is_file) and description.read_bytes() == text.encode():
                invalid = [
                    name
                    for name, (dtype, shape) in _layout(n_images, size).items()
                    if not _has_layout(self.folder / f"{name}.npy", dtype, shape)
                ]
                if not invalid:
                    return
                path = self.folder / f"{invalid[0]}.npy"
                log.warning(f"{path}: is cut short or of another kind; the embeddings are computed again")
            self.folder.mkdir(parents=True, exist_ok=True)
            description.unlink(missing_ok=True)
            for name, (dtype, shape) in _layout(n_images, size).items():
                _write_zeros(self.folder / f"{name}.npy", dtype, shape)
            write_text_atomic(description, text)  # last: its presence means that the other files are complete
        except OSError as error:
            raise UserError(f"{self.folder}: {error.strerror}", fix="name another --result-dir") from None

    def remove(self) -> None:
        """Deletes the files and the folder, the description first."""
        for name in ("made.json", "direct.npy", "mirrored.npy", "done.npy"):
            (self.folder / name).unlink(missing_ok=True)
        self.folder.rmdir()


def _layout(n_images: int, size: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    """Returns the dtypes and shapes of the arrays, by file name without .npy."""
    return {
        "direct": (np.float32, (n_images, size)),
        "mirrored": (np.float32, (n_images, size)),
        "done": (np.uint8, (n_images,)),
    }


def _has_layout(path: Path, dtype: type, shape: tuple[int, ...]) -> bool:
    """Returns whether a .npy file contains a complete array of that dtype and shape.

    Mapping an incomplete file would crash the process with a bus error, or extend the file with zeros.
    """
    try:
        if path.is_symlink():
            return False
        with open_regular_file(path) as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return False
            header = np.lib.format.read_array_header_1_0(file)
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            return header == (shape, False, np.dtype(dtype)) and os.fstat(file.fileno()).st_size == file.tell() + size
    except (OSError, ValueError):  # UserError is a ValueError
        return False


def _write_zeros(path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """Makes a new .npy file of zeros and allocates its disk space.

    A full disk thus raises OSError now, instead of a bus error later.
    """
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        preallocate(file.fileno(), file.tell() + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)


def embed_images(features: Features, crops: Crops, runtime: Runtime, workers: int, world: World, name: str) -> None:
    """Embeds the images that are not done yet, split between all ranks. Collective.

    workers: number of processes that read and crop images. name: label of the progress. Logs the progress (a bar on a
    terminal, else a line every minute), and finally the speed and its bottleneck.
    """
    # Listed by rank 0 only: other ranks may see rows that are done in the meantime, and would split other rows.
    pending = run_on_main(world, lambda: np.flatnonzero(features.done == 0))
    shard = pending[shard_slice(len(pending), world)]
    if len(pending) < len(features.done):
        log.info(f"{name}: {len(features.done) - len(pending)} images are already done, {len(pending)} to go")
    if len(shard):
        loader = SharedMemoryLoader(crops, ListSampler(shard, min(runtime.batch, len(shard))), workers)
        _embed(features, loader, runtime, len(shard), world.is_main, name)
    if world.size > 1:
        dist.barrier()


def _embed(
    features: Features, loader: SharedMemoryLoader, runtime: Runtime, total: int, is_main: bool, name: str
) -> None:
    """Embeds the loader's images, writes their rows and marks them as done about every ten seconds."""
    started = flushed = time.monotonic()
    embedding_time = 0.0
    unmarked: list[np.ndarray] = []
    try:
        with ProgressReporter(total, name, "images", is_main) as progress_bar:
            for batch in loader.iter_epoch(0):
                batch_started = time.monotonic()
                rows, present = batch.indices.numpy().copy(), batch.labels.numpy().astype(bool)
                features.direct[rows], features.flipped[rows] = runtime(batch.images.numpy())
                unmarked.append(rows[present])
                now = time.monotonic()
                embedding_time += now - batch_started
                progress_bar.update(len(rows))
                if now - flushed > _FLUSH_INTERVAL:
                    _flush_and_mark(features, unmarked)
                    flushed = now
    finally:  # also on Ctrl-C: a later run resumes from here
        _flush_and_mark(features, unmarked)
    seconds = time.monotonic() - started
    bottleneck = "embedding" if embedding_time > 0.5 * seconds else "reading and cropping (more workers may help)"
    log.info(
        f"{name}: {total} images in {seconds:.1f} s, {total / seconds:.0f} img/s, each with its hflip; "
        f"{100 * embedding_time / seconds:.0f} % of the time in the network: the bottleneck is {bottleneck}"
    )


def _flush_and_mark(features: Features, rows: list[np.ndarray]) -> None:
    """Flushes the embeddings to disk, then marks the rows as done and clears the list."""
    features.direct.flush()
    features.flipped.flush()
    for part in rows:
        features.done[part] = 1
    features.done.flush()
    rows.clear()
