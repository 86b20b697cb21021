"""Labels of large record files, remembered between runs.

To read them touches a page of every record, nearly the whole of a file like that of MS1MV2: minutes on a network disk.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from utils.filesystem import cache_folder, write_atomic

MIN_RECORDS = 200_000  # of a file whose labels are remembered; those of smaller ones are read within seconds


def remembered_labels(identity: str, n: int, read: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns what `read` returns, (n,) float32, from the user's cache folder if an earlier run has read it.

    identity: equal only for the same files. Raises what `read` raises, and then remembers nothing.
    """
    path = _path(identity)
    with suppress(OSError, ValueError, EOFError):  # missing, unreadable or damaged
        labels = np.load(path, allow_pickle=False)
        if labels.shape == (n,) and labels.dtype == np.float32:
            return labels
    labels = read()
    with suppress(OSError):  # a cache that cannot be written costs time only
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda file: np.save(file, labels))
    return labels


def are_remembered(identity: str) -> bool:
    """Returns whether the labels of these files are in the user's cache folder."""
    return _path(identity).exists()


def _path(identity: str) -> Path:
    return cache_folder() / f"labels-{identity}.npy"
