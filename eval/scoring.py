"""Scores a backbone on verification sets, the images shared between the processes."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from easydict import EasyDict
from torch import nn

from eval.inference.embedding import Runtime, TorchRuntime, embed
from eval.inputs.sets import N_FOLDS, VerificationSet, load_sets
from eval.roc import OperatingPoint, Roc, auc, eer, operating_point_at_far, roc
from eval.verification import embedding_norm, evaluate_distances, pair_distances, resampled_accuracies
from utils.distributed.collectives import all_gather_rows, broadcast_
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.logs.run_log import log

FARS = (1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class Score:
    """Verification of one checkpoint on one set; embeddings are those of image and mirror image added."""

    accuracy: float  # ten-fold, mean over the folds
    std: float  # standard deviation over the folds
    threshold: float  # squared distance of normalised embeddings; mean over the folds
    val: float  # true accept rate at FAR 1e-3, ten-fold as published
    val_std: float
    far: float  # the false accept rate there
    xnorm: float  # mean L2 norm of the embeddings before they are normalised
    issame: np.ndarray  # (pairs,) flags
    distances: np.ndarray  # (pairs,) squared, of the normalised embeddings
    correct: np.ndarray  # (pairs,) judged rightly, ten-fold

    @property
    def pairs(self) -> int:
        """How many there are."""
        return len(self.issame)

    @property
    def different(self) -> int:
        """Of the pairs, those of two people."""
        return int(np.sum(~self.issame))

    # The rest is computed when it is asked for: verification in training asks for none of it.

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 %, of the accuracy: bootstrap over the pairs."""
        low, high = np.quantile(resampled_accuracies(self.distances, self.issame, N_FOLDS), [0.025, 0.975])
        if self.accuracy == 1:  # a sample without an error resamples to none; the lower end is the binomial's, exact
            low = 0.025 ** (1 / self.pairs)
        return float(low), float(high)

    @cached_property
    def curve(self) -> Roc:
        """The ROC curve of cosine similarities, all points."""
        return roc(1 - self.distances.astype(np.float64) / 2, self.issame, corners_only=False)

    @property
    def auc(self) -> float:
        """The area under the ROC curve of all pairs."""
        return auc(self.curve)

    @property
    def eer(self) -> float:
        """The equal error rate."""
        return eer(self.curve)

    @cached_property
    def operating_points(self) -> dict[float, OperatingPoint | None]:
        """By FAR; None where the different pairs are too few to tell."""
        return {far: operating_point_at_far(self.curve, far, self.different) for far in FARS}

    def tar(self, far: float) -> float | None:
        """The true accept rate at a FAR; None where the different pairs are too few to tell."""
        point = self.operating_points[far]
        return None if point is None else 1 - point.frr

    def asdict(self) -> dict[str, Any]:
        """For results.json: numbers alone."""
        first, last = ("accuracy", "std", "interval"), ("val", "val_std", "far", "auc", "eer", "xnorm")
        numbers = {name: getattr(self, name) for name in first} | {"squared_distance": self.threshold}
        numbers |= {name: getattr(self, name) for name in (*last, "pairs", "different")}
        return numbers | {"tar": {f"{far:.0e}": self.tar(far) for far in FARS}}


class Scorer:
    """Verification sets, decoded once, and the highest accuracies met on them."""

    def __init__(self, config: EasyDict, world: World, sets: list[VerificationSet] | None = None) -> None:
        """sets: default those of the config; raises UserError where there is none."""
        self.world = world
        self.batch = config.eval_batch
        self.sets = load_sets(config, None, world) if sets is None else sets
        self.highest: dict[str, float] = {}

    @property
    def n_images(self) -> int:
        """How many this process embeds, each both ways."""
        return sum(len(held.images) for held in self.sets)

    def score(self, runtime: Runtime, step: int | str) -> dict[str, Score]:
        """The network's score on every set, and the published log lines. Raises UserError, on every process, where
        embeddings are not finite."""
        return {held.name: self._score(held, runtime, step) for held in self.sets}

    def accuracies(self, backbone: nn.Module, step: int) -> dict[str, float]:
        """The accuracy alone, of a backbone in training.

        It is that of the main process's batch-norm statistics, on every process: those are what is saved.
        """
        broadcast_(backbone.buffers(), self.world)
        runtime = TorchRuntime(backbone, self.world.device, self.batch)
        return {name: score.accuracy for name, score in self.score(runtime, step).items()}

    def _score(self, held: VerificationSet, runtime: Runtime, step: int | str) -> Score:
        direct, flipped = embed(runtime, held.images, f"{held.name} {step}")
        direct, flipped = all_gather_rows(direct, self.world), all_gather_rows(flipped, self.world)
        try:
            score = measure(direct, flipped, held.pairs, held.issame)
        except UserError as error:  # on every process, for all have the same rows
            raise UserError(
                f"{held.name}: {error}: these weights are damaged, or of a run that diverged; take another checkpoint"
            ) from None
        self.highest[held.name] = max(score.accuracy, self.highest.get(held.name, 0.0))
        log.info(f"[{held.name}][{step}]XNorm: {score.xnorm:f}")
        log.info(f"[{held.name}][{step}]Accuracy-Flip: {score.accuracy:1.5f}+-{score.std:1.5f}")
        log.info(f"[{held.name}][{step}]Accuracy-Highest: {self.highest[held.name]:1.5f}")
        return score


def measure(direct: np.ndarray, flipped: np.ndarray, pairs: np.ndarray, issame: np.ndarray) -> Score:
    """The score of embeddings (M, D) of images and (M, D) of their mirror images, on pairs (N, 2) of them."""
    distances = pair_distances(direct + flipped, pairs)
    result = evaluate_distances(distances, issame, N_FOLDS)
    rows = pairs.ravel()  # an image counts as often as it is met, as in the published log
    return Score(
        accuracy=result.accuracy,
        std=result.accuracy_std,
        threshold=float(np.mean(result.thresholds)),
        val=result.val,
        val_std=result.val_std,
        far=result.far,
        xnorm=embedding_norm(direct[rows], flipped[rows]),
        issame=issame,
        distances=distances,
        correct=result.correct,
    )
