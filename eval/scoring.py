"""Scores a backbone on verification sets, with each set's images split between all ranks."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from config.base import Config
from eval.inference.embedding import Runtime, embed, make_runtime
from eval.inputs.sets import N_FOLDS, VerificationSet, load_verification_sets
from eval.reporting.roc import OperatingPoint, Roc, auc, eer, operating_point_at_far, roc
from eval.verification import embedding_norm, evaluate_distances, pair_distances, resampled_accuracies
from utils.distributed.collectives import all_gather_rows, broadcast_
from utils.distributed.process_group import World
from utils.errors import UserError
from utils.logs.logger import log

FARS = (1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class Score:
    """Verification of one checkpoint on one set. An image's embedding is that of the image plus that of its hflip."""

    accuracy: float  # ten-fold, mean over the folds
    std: float  # standard deviation over the folds
    threshold: float  # squared distance of normalised embeddings; mean over the folds
    val: float  # true accept rate at FAR 1e-3, ten-fold, as published
    val_std: float
    far: float  # false accept rate measured at that threshold
    xnorm: float  # mean L2 norm of the embeddings before normalisation
    issame: np.ndarray  # (pairs,) flags
    distances: np.ndarray  # (pairs,) squared Euclidean distances of the normalised embeddings
    correct: np.ndarray  # (pairs,) classified correctly, ten-fold

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return len(self.issame)

    @property
    def different(self) -> int:
        """Number of pairs of different people."""
        return int(np.sum(~self.issame))

    # The rest is computed on first access: verification during training needs none of it.

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy, by bootstrap over the pairs."""
        low, high = np.quantile(resampled_accuracies(self.distances, self.issame, N_FOLDS), [0.025, 0.975])
        if self.accuracy == 1:  # no errors to resample: take the exact binomial lower bound
            low = 0.025 ** (1 / self.pairs)
        return float(low), float(high)

    @cached_property
    def curve(self) -> Roc:
        """ROC curve of the cosine similarities, with all points."""
        return roc(1 - self.distances.astype(np.float64) / 2, self.issame, corners_only=False)

    @property
    def auc(self) -> float:
        """Area under the ROC curve of all pairs."""
        return auc(self.curve)

    @property
    def eer(self) -> float:
        """Equal error rate, from 0 to 1."""
        return eer(self.curve)

    @cached_property
    def operating_points(self) -> dict[float, OperatingPoint | None]:
        """Operating points by FAR; None where there are too few different pairs to measure that FAR."""
        return {far: operating_point_at_far(self.curve, far, self.different) for far in FARS}

    def tar(self, far: float) -> float | None:
        """Returns the true accept rate at a FAR of FARS, or None if there are too few different pairs to measure it."""
        point = self.operating_points[far]
        return None if point is None else 1 - point.frr

    def asdict(self) -> dict[str, Any]:
        """Returns the entry of results.json, which holds only numbers."""
        head, tail = ("accuracy", "std", "interval"), ("val", "val_std", "far", "auc", "eer", "xnorm")
        numbers = {name: getattr(self, name) for name in head} | {"squared_distance": self.threshold}
        numbers |= {name: getattr(self, name) for name in (*tail, "pairs", "different")}
        return numbers | {"tar": {f"{far:.0e}": self.tar(far) for far in FARS}}


class Scorer:
    """Scores backbones on verification sets, decoded once, and keeps the highest accuracy on each."""

    def __init__(self, config: Config, world: World, sets: list[VerificationSet] | None = None) -> None:
        """sets: default is the sets of the config. Raises UserError if it has none. Collective."""
        self.world = world
        self.config = config
        self.sets = load_verification_sets(config, None, world) if sets is None else sets
        self.highest: dict[str, float] = {}

    @property
    def n_images(self) -> int:
        """Number of images that this rank embeds, each with its hflip."""
        return sum(len(eval_set.images) for eval_set in self.sets)

    def score(self, runtime: Runtime, step: int | str) -> dict[str, Score]:
        """Returns the network's score by set name and logs the lines of the published format.

        Collective. Raises UserError on all ranks if an embedding is not finite.
        """
        return {eval_set.name: self._score(eval_set, runtime, step) for eval_set in self.sets}

    def accuracies(self, backbone: nn.Module, step: int) -> dict[str, float]:
        """Returns the accuracy by set name of a backbone in training.

        Collective: broadcasts the batch-norm statistics of rank 0, because these are the ones that are saved.
        """
        broadcast_(backbone.buffers(), self.world)
        runtime = make_runtime(backbone, self.config, self.world, self.n_images)
        return {name: score.accuracy for name, score in self.score(runtime, step).items()}

    def _score(self, eval_set: VerificationSet, runtime: Runtime, step: int | str) -> Score:
        direct, flipped = embed(runtime, eval_set.images, f"{eval_set.name} {step}")
        direct, flipped = all_gather_rows(direct, self.world), all_gather_rows(flipped, self.world)
        try:
            score = compute_score(direct, flipped, eval_set.pairs, eval_set.issame)
        except UserError as error:  # raised on all ranks, because they hold the same rows
            raise UserError(
                f"{eval_set.name}: {error}: the weights are damaged or the training diverged",
                fix="take another checkpoint",
            ) from None
        self.highest[eval_set.name] = max(score.accuracy, self.highest.get(eval_set.name, 0.0))
        log.info(f"[{eval_set.name}][{step}]XNorm: {score.xnorm:f}")
        log.info(f"[{eval_set.name}][{step}]Accuracy-Flip: {score.accuracy:1.5f}+-{score.std:1.5f}")
        log.info(f"[{eval_set.name}][{step}]Accuracy-Highest: {self.highest[eval_set.name]:1.5f}")
        return score


def compute_score(direct: np.ndarray, flipped: np.ndarray, pairs: np.ndarray, issame: np.ndarray) -> Score:
    """Computes the score of embeddings (M, D) of images and (M, D) of their hflips, on pairs (N, 2) of their rows."""
    distances = pair_distances(direct + flipped, pairs)
    result = evaluate_distances(distances, issame, N_FOLDS)
    rows = pairs.ravel()  # an image counts once per pair it is in, as in the published log
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
