"""Proof that an exported file computes what the network does: similarity, verification and size."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from config import Config
from data.alignment.sheet import spread
from deploy.exporting.speed import all_threads
from deploy.networks.exported import ExportedNetwork
from eval.comparison import Comparison, compare_scores, format_table
from eval.inference.embedding import Runtime, embed, make_runtime
from eval.inputs.sets import VerificationSet
from eval.scoring import Score, compute_score
from utils.datasets.transforms import normalise
from utils.distributed.process_group import World

N_IMAGES = 256  # whose embeddings are compared with PyTorch's
_BATCH = 32  # images at once through PyTorch
# The lowest cosine to PyTorch of one of the images. int8 may change embeddings, if the accuracy stays.
MIN_COSINE = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.9}

Embeddings = tuple[NDArray[np.float32], NDArray[np.float32]]  # of images (N, D) and of their hflips (N, D)


@dataclass(frozen=True)
class Agreement:
    """How well a file's embeddings agree with PyTorch's.

    Attributes:
        cosines: (N,) of the embeddings of N images.
        comparisons: verification by PyTorch, A, and by the file, B, on each set.
        scores: of the file by set name. An image's embedding is that of the image plus that of its hflip.
        single: the same of the embeddings of the images alone, which the file gives.
        expected: PyTorch's scores.
    """

    cosines: NDArray[np.float64]
    comparisons: list[Comparison]
    scores: dict[str, Score]
    single: dict[str, Score]
    expected: dict[str, Score]

    @property
    def drop(self) -> float:
        """Largest drop of the accuracy on a set, in percentage points."""
        return max(100 * (comparison.a - comparison.b) for comparison in self.comparisons)

    @property
    def worst(self) -> float:
        """Lowest cosine."""
        return float(self.cosines.min())

    def format(self) -> str:
        """Returns the figures, with a table of the verification."""
        cosines = f"mean {self.cosines.mean():.6f}, worst {self.worst:.6f}"
        accuracies = [
            f"accuracy on {name}: PyTorch {_format_accuracy(self.expected[name])}, the file {_format_accuracy(score)}"
            for name, score in self.scores.items()
        ]
        head = [f"cosine to PyTorch on {len(self.cosines)} images: {cosines}", *accuracies, "A: PyTorch, B: the file"]
        return "\n".join([*head, format_table(self.comparisons)])


def _format_accuracy(score: Score) -> str:
    low, high = score.interval
    return f"{100 * score.accuracy:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f})"


class Prover:
    """Compares exported files with the network that they were made from, on verification sets."""

    def __init__(self, backbone: nn.Module, config: Config, sets: list[VerificationSet], unit: bool) -> None:
        """unit: whether the files' embeddings have length 1; those of the network are then normalised too."""
        self.backbone, self.sets, self._unit = backbone, sets, unit
        world = World(0, 1, torch.device("cpu"))
        runtime = make_runtime(backbone, config, world, sum(len(eval_set.images) for eval_set in sets))
        self.images = _sample(sets, N_IMAGES)
        with torch.inference_mode():
            parts = [backbone(normalise(part)) for part in torch.from_numpy(self.images).split(_BATCH)]
        self._expected = torch.cat(parts).numpy()
        self._scores = {eval_set.name: _score(self._embed(runtime, eval_set, "PyTorch"), eval_set) for eval_set in sets}

    def check(self, open_network: Callable[[int], ExportedNetwork]) -> Agreement:
        """Embeds the images with an exported network and compares. Raises UserError if an embedding is not finite.

        open_network: opens it for a number of threads.
        """
        runtime = _ExportedRuntime([open_network(1) for _ in range(all_threads())])
        cosines = row_cosines(runtime.run(self.images), self._expected)
        embeddings = {eval_set.name: self._embed(runtime, eval_set, "the file") for eval_set in self.sets}
        scores = {eval_set.name: _score(embeddings[eval_set.name], eval_set) for eval_set in self.sets}
        comparisons = [
            compare_scores(eval_set.name, self._scores[eval_set.name], scores[eval_set.name], eval_set.issame)
            for eval_set in self.sets
        ]
        single = {eval_set.name: _score((embeddings[eval_set.name][0],) * 2, eval_set) for eval_set in self.sets}
        return Agreement(cosines, comparisons, scores, single, self._scores)

    def _embed(self, runtime: Runtime, eval_set: VerificationSet, name: str) -> Embeddings:
        direct, flipped = embed(runtime, eval_set.images, f"{eval_set.name}, {name}")
        return (_normalise(direct), _normalise(flipped)) if self._unit else (direct, flipped)


class _ExportedRuntime:
    """Runs copies of an exported network, each in a thread of its own, which is the fastest for many images.

    See `eval.inference.embedding.Runtime`.
    """

    batch = 256

    def __init__(self, copies: list[ExportedNetwork]) -> None:
        self._copies = copies
        self._pool = ThreadPoolExecutor(len(copies))

    def __call__(self, images: NDArray[np.uint8]) -> Embeddings:
        return self.run(images), self.run(images[:, :, ::-1])

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Maps faces (N, 112, 112, 3) to embeddings (N, D)."""
        parts = [part for part in np.array_split(images, len(self._copies)) if len(part)]
        return np.concatenate([*self._pool.map(lambda copy, part: copy(part), self._copies, parts)])


def find_faults(precision: str, agreement: Agreement, max_drop: float) -> list[str]:
    """Returns where a file disagrees with PyTorch, empty if nowhere.

    max_drop: of the accuracy, in percentage points.
    """
    faults = []
    if agreement.drop > max_drop:
        faults.append(f"its accuracy is {agreement.drop:.2f} points lower, more than --max-drop {max_drop:g}")
    if not agreement.worst >= MIN_COSINE[precision]:
        faults.append(f"its worst cosine to PyTorch is {agreement.worst:.4f}, below {MIN_COSINE[precision]:g}")
    return faults


def row_cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the cosines (N,) of the rows of two arrays (N, D)."""
    a, b = (_normalise(rows.astype(np.float64)) for rows in (a, b))
    return (a * b).sum(axis=1)


def file_size(path: Path) -> int:
    """Returns the bytes of an exported file; of a folder, of all files in it; of OpenVINO's IR, of both files."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return sum(
        file.stat().st_size for file in (path, path.with_suffix(".bin")) if file == path or path.suffix == ".xml"
    )


def _sample(sets: list[VerificationSet], n: int) -> NDArray[np.uint8]:
    """Returns up to n images (n, 112, 112, 3), evenly spaced over those of all sets."""
    ends = np.cumsum([len(eval_set.images) for eval_set in sets])
    rows = np.array(spread(int(ends[-1]), n))
    numbers = np.searchsorted(ends, rows, side="right")
    starts = ends - [len(eval_set.images) for eval_set in sets]
    return np.stack([sets[i].images[row - starts[i]] for i, row in zip(numbers, rows, strict=True)])


def _score(embeddings: Embeddings, eval_set: VerificationSet) -> Score:
    return compute_score(*embeddings, eval_set.pairs, eval_set.issame)


def _normalise(rows: NDArray[Any]) -> NDArray[Any]:
    """Returns the rows (N, D) with length 1; a row of zeros stays."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)
