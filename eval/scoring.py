"""Scores a backbone on verification sets, the images shared between the processes."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from easydict import EasyDict
from torch import nn

from eval.embedding import embed
from eval.verification import decode, embedding_norm, evaluate, read_bin
from utils.distributed import World, gather_rows, share_buffers, share_of
from utils.errors import UserError
from utils.run_log import log

N_FOLDS = 10  # as LFW's protocol has it, and the published evaluation for every set


@dataclass(frozen=True)
class Score:
    """Ten-fold verification of one checkpoint on one set; embeddings are those of image and mirror image added."""

    accuracy: float  # mean over the folds
    std: float  # standard deviation over the folds
    threshold: float  # squared distance of normalised embeddings; mean over the folds
    val: float  # true accept rate at FAR 1e-3
    val_std: float
    far: float  # the false accept rate there
    xnorm: float  # mean L2 norm of the embeddings before they are normalised
    pairs: int

    asdict = asdict


@dataclass(frozen=True)
class VerificationSet:
    """This process's share of a set's images, and the flags of all its pairs."""

    name: str
    images: np.ndarray  # (n, 112, 112, 3) uint8 RGB
    issame: np.ndarray  # (pairs,) bool


class Scorer:
    """The verification sets of a config, decoded once, and the highest accuracies met."""

    def __init__(self, config: EasyDict, world: World) -> None:
        """Raises UserError when none of config.val_targets is in config.rec; single missing ones are left out."""
        self.world = world
        self.batch = config.eval_batch
        self.sets = [_load(Path(config.rec, f"{name}.bin"), world) for name in _present(config)]
        self.highest: dict[str, float] = {}

    def score(self, backbone: nn.Module, step: int) -> dict[str, Score]:
        """The backbone's score on every set, and the published log lines.

        The scores are those of the main process's batch-norm statistics, on every process: those are what is saved.
        """
        share_buffers(backbone, self.world)
        return {held.name: self._score(held, backbone, step) for held in self.sets}

    def accuracies(self, backbone: nn.Module, step: int) -> dict[str, float]:
        """The accuracy alone, for the training loop."""
        return {name: score.accuracy for name, score in self.score(backbone, step).items()}

    def _score(self, held: VerificationSet, backbone: nn.Module, step: int) -> Score:
        direct, mirrored = embed(backbone, held.images, self.world.device, self.batch, f"{held.name} {step}")
        direct, mirrored = gather_rows(direct, self.world), gather_rows(mirrored, self.world)
        result = evaluate(direct + mirrored, held.issame, N_FOLDS)
        xnorm = embedding_norm(direct, mirrored)
        self.highest[held.name] = max(result.accuracy, self.highest.get(held.name, 0.0))
        log.info(f"[{held.name}][{step}]XNorm: {xnorm:f}")
        log.info(f"[{held.name}][{step}]Accuracy-Flip: {result.accuracy:1.5f}+-{result.accuracy_std:1.5f}")
        log.info(f"[{held.name}][{step}]Accuracy-Highest: {self.highest[held.name]:1.5f}")
        return Score(
            accuracy=result.accuracy,
            std=result.accuracy_std,
            threshold=float(np.mean(result.thresholds)),
            val=result.val,
            val_std=result.val_std,
            far=result.far,
            xnorm=xnorm,
            pairs=len(held.issame),
        )


def _present(config: EasyDict) -> list[str]:
    present = [name for name in config.val_targets if Path(config.rec, f"{name}.bin").is_file()]
    missing = [name for name in config.val_targets if name not in present]
    if not present:
        raise UserError(
            f"config val_targets: none of {', '.join(f'{name}.bin' for name in missing) or '(nothing)'} is in "
            f"{config.rec!r}; name others with val_targets=NAME,NAME (or train without: eval_step=0)"
        )
    for name in missing:
        log.warning(f"No {name}.bin in {config.rec}: left out")
    return present


def _load(path: Path, world: World) -> VerificationSet:
    encoded, issame = read_bin(path)
    if len(issame) < N_FOLDS or issame.all() or not issame.any():
        raise UserError(
            f"{path}: {len(issame)} pairs, {int(issame.sum())} of them of one person: verification needs pairs of both "
            f"kinds, {N_FOLDS} at least"
        )
    share = decode(encoded, source=f"{path}: ", part=share_of(len(encoded), world))
    return VerificationSet(path.stem, share, issame)
