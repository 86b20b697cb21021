"""The embeddings of a set's images, kept on disk as they come, so that what was interrupted goes on where it was."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from eval.IJB.alignment import crop, similarity
from eval.IJB.protocol import SKIP, Images, line_of
from eval.inference.embedding import Runtime
from eval.inputs.bins import open_image
from utils.datasets.sampler import ListSampler
from utils.datasets.shared_loader import Loader
from utils.distributed.collectives import run_on_main, shard_slice
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.filesystem import open_regular_file, path_exists, preallocate, write_text_atomic
from utils.logs.progress_bar import Progress
from utils.logs.run_log import log

_KEEP_EVERY = 10.0  # seconds


class Crops:
    """The aligned faces of a set, for the loader: `labels` says which are there."""

    def __init__(self, folder: Path, images: Images, skip_missing: bool) -> None:
        self.folder = folder
        self.images = images
        self.skip_missing = skip_missing

    def read_into(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray) -> None:
        """Writes crops (n, 112, 112, 3) RGB and (n,) flags: 0 where an image is left out.

        Raises UserError naming the list's line and the image that is missing or unreadable.
        """
        for i, index in enumerate(indices):
            image = self._open(index)
            labels[i] = image is not None
            images[i] = 0 if image is None else crop(image, similarity(self.images.landmarks[index]))

    def check_files(self) -> int:
        """How many images have no file; raises UserError at the first unless such are to be skipped."""
        there = {path.name for path in self.folder.iterdir()}
        flat = np.array(["/" not in name for name in self.images.names])
        missing = [i for i in np.flatnonzero(flat) if self.images.names[i] not in there]
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
        except (FileNotFoundError, ValueError):  # ValueError: a zero byte in the name
            problem = "is missing"
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        else:
            image = open_image(encoded)
            if image is not None and max(image.shape) < 1 << 15:  # of which positions are int16
                return image
            problem = "cannot be decoded" if image is None else f"is too large, {image.shape[1]}×{image.shape[0]}"
        if self.skip_missing:
            return None
        raise self._error(index, problem)

    def _error(self, index: int, problem: str, count: int = 1) -> UserError:
        more = f" (and {count - 1} more)" if count > 1 else ""
        path = self.folder / self.images.names[index]
        return UserError(
            f"{self.images.source} line {line_of(self.images.source, index)}: {path} {problem}{more}; {SKIP}"
        )


class Features:
    """Embeddings of N images and of their mirror images, mapped from files: written row by row, in any order."""

    def __init__(self, folder: Path, n_images: int, size: int, made: dict[str, Any], world: World) -> None:
        """Opens what is there where it was made of the same things, else begins anew."""
        self.folder = folder
        run_on_main(world, lambda: self._prepare(n_images, size, made))
        try:
            self.direct, self.flipped, self.done = (  # (N, D), (N, D), (N,)
                np.load(folder / f"{name}.npy", mmap_mode="r+") for name in _layout(n_images, size)
            )
        except OSError as error:
            raise UserError(f"{folder}: {error.strerror}; name another --result-dir") from None

    def _prepare(self, n_images: int, size: int, made: dict[str, Any]) -> None:
        described = self.folder / "made.json"
        text = json.dumps(made | {"images": n_images, "size": size}, indent=1)
        try:
            if path_exists(described.is_file) and described.read_bytes() == text.encode():
                wrong = [
                    n for n, of in _layout(n_images, size).items() if not _has_layout(self.folder / f"{n}.npy", *of)
                ]
                if not wrong:
                    return
                log.warning(
                    f"{self.folder / wrong[0]}.npy: is cut short or of another kind; the embeddings are made anew"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            described.unlink(missing_ok=True)
            for name, (dtype, shape) in _layout(n_images, size).items():
                _write_zeros(self.folder / f"{name}.npy", dtype, shape)
            write_text_atomic(described, text)  # last: where it stands the files are whole
        except OSError as error:
            raise UserError(f"{self.folder}: {error.strerror}; name another --result-dir") from None

    def remove(self) -> None:
        """Deletes the files, the description first."""
        for name in ("made.json", "direct.npy", "mirrored.npy", "done.npy"):
            (self.folder / name).unlink(missing_ok=True)
        self.folder.rmdir()


def _layout(n_images: int, size: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    """The types and shapes of the kept arrays, by name."""
    return {
        "direct": (np.float32, (n_images, size)),
        "mirrored": (np.float32, (n_images, size)),
        "done": (np.uint8, (n_images,)),
    }


def _has_layout(path: Path, dtype: type, shape: tuple[int, ...]) -> bool:
    """Whether a .npy file holds such an array in full. Mapped otherwise, it would end the process with a bus error, or
    grow by zeros."""
    try:
        if path.is_symlink():
            return False
        with open_regular_file(path) as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return False
            found = np.lib.format.read_array_header_1_0(file)
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            return found == (shape, False, np.dtype(dtype)) and os.fstat(file.fileno()).st_size == file.tell() + size
    except (OSError, ValueError):  # with UserError
        return False


def _write_zeros(path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """Makes a .npy file anew, with its place on the disk, so that a full one is told now and is no bus error later.
    Raises OSError."""
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        preallocate(file.fileno(), file.tell() + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)


def embed_images(features: Features, crops: Crops, runtime: Runtime, workers: int, world: World, name: str) -> None:
    """Embeds those images that are not done yet, each process its share; workers cut the crops.

    Shows a bar on a terminal, else a line of the log every minute, and in the end what limited the speed.
    """
    # Seen by one process: another may see rows that the first has meanwhile done, and would take another share.
    open_rows = run_on_main(world, lambda: np.flatnonzero(features.done == 0))
    mine = open_rows[shard_slice(len(open_rows), world)]
    if len(open_rows) < len(features.done):
        log.info(f"{name}: {len(features.done) - len(open_rows)} images are done already, {len(open_rows)} to go")
    if len(mine):
        loader = Loader(crops, ListSampler(mine, min(runtime.batch, len(mine))), workers)
        _embed(features, loader, runtime, len(mine), world.is_main, name)
    if world.size > 1:
        dist.barrier()


def _embed(features: Features, loader: Loader, runtime: Runtime, total: int, is_main: bool, name: str) -> None:
    started = kept = time.monotonic()
    embedding = 0.0
    marked: list[np.ndarray] = []
    try:
        with Progress(total, name, "images", is_main) as shown:
            for batch in loader.epoch(0):
                begun = time.monotonic()
                rows, there = batch.indices.numpy().copy(), batch.labels.numpy().astype(bool)
                features.direct[rows], features.flipped[rows] = runtime(batch.images.numpy())
                marked.append(rows[there])
                now = time.monotonic()
                embedding += now - begun
                shown.update(len(rows))
                if now - kept > _KEEP_EVERY:
                    _mark(features, marked)
                    kept = now
    finally:  # Ctrl-C as well: a later run goes on from here
        _mark(features, marked)
    seconds = time.monotonic() - started
    limit = "embedding" if embedding > 0.5 * seconds else "reading and cropping (more workers may help)"
    log.info(
        f"{name}: {total} images in {seconds:.1f} s, {total / seconds:.0f} img/s, each both ways; "
        f"{100 * embedding / seconds:.0f} % of the time in the network: what limits is {limit}"
    )


def _mark(features: Features, rows: list[np.ndarray]) -> None:
    features.direct.flush()
    features.flipped.flush()
    for part in rows:
        features.done[part] = 1
    features.done.flush()
    rows.clear()
