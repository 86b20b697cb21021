"""Report of an architecture search after each epoch: genotype, entropy, accuracies and pictures."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backbones.genotypes import Genotype, to_text
from NAS.visualize import draw_alphas, draw_cells
from utils.filesystem import save_figure, write_text_atomic
from utils.logs.logger import log

COLLAPSE_THRESHOLD = (
    5  # number of skip_connect, of the eight edges of a normal cell, from which a search counts as collapsed
)


@dataclass(frozen=True)
class EpochReport:
    """The state of a search after an epoch."""

    epoch: int
    step: int
    genotype: Genotype
    operations: tuple[str, ...]  # of an edge, in the order of its weights
    alphas: dict[str, list[np.ndarray]]  # by cell, normal and reduce: for each node (input states, operations)
    normal: list[np.ndarray]  # for each node, the softmax of the alphas (input states, operations)
    reduce: list[np.ndarray]
    cost: float  # expected millions of multiply-adds of all cells
    accuracies: dict[str, float]  # supernet_train, derived_train, supernet_val, derived_val

    @property
    def entropy(self) -> float:
        """Mean over all edges of the entropy of an edge's operation weights, relative to that of equal weights.

        It is 1 at the start, and 0 if each edge has a single operation.
        """
        weights = np.concatenate([*self.normal, *self.reduce])
        entropies = -np.sum(weights * np.log(np.maximum(weights, 1e-30)), axis=1)
        return float(np.mean(entropies) / np.log(len(self.operations)))

    @property
    def skips(self) -> int:
        """Number of skip_connect in the normal cell."""
        return sum(operation == "skip_connect" for node in self.genotype.normal for operation, _ in node)


def write_epoch(folder: Path, report: EpochReport) -> None:
    """Logs a report and writes it to the output folder. A file that cannot be written is a warning.

    Writes genotypes.jsonl (a line per epoch), cells.png and alphas.png, and copies of both for each epoch in pictures/.
    """
    text = to_text(report.genotype)
    log.info(f"Genotype: {text}")
    measured = "   ".join(f"{name.replace('_', ' ')} {100 * value:.2f} %" for name, value in report.accuracies.items())
    log.info(f"Entropy {report.entropy:.4f}   Cost {report.cost:.2f} M   skip_connect {report.skips}   {measured}")
    if report.skips >= COLLAPSE_THRESHOLD:
        log.warning(
            f"The normal cell has {report.skips} skip_connect: the search is collapsing; stop earlier, or set "
            "skip_limit=2"
        )
    line = {
        "epoch": report.epoch,
        "step": report.step,
        "genotype": text,
        "entropy": report.entropy,
        "cost": report.cost,
        "skips": report.skips,
        **report.accuracies,
        "operations": report.operations,
        "alphas": {kind: [node.tolist() for node in nodes] for kind, nodes in report.alphas.items()},
    }
    try:
        _write(folder, report, line)
    except OSError as error:  # a full disk must not end the search
        log.warning(f"{folder}: epoch {report.epoch} could not be written ({error.strerror})")


def _write(folder: Path, report: EpochReport, line: dict[str, Any]) -> None:
    """Writes all files of an epoch. Raises OSError."""
    path = folder / "genotypes.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    kept = [text for text in lines if _epoch_of(text) < report.epoch]  # later lines come from an interrupted run
    write_text_atomic(path, "".join(f"{text}\n" for text in [*kept, json.dumps(line)]))
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    figures = {
        "cells.png": draw_cells(report.genotype, f"epoch {report.epoch}"),
        "alphas.png": draw_alphas(report.normal, report.reduce, report.operations),
    }
    for name, figure in figures.items():
        save_figure(pictures / f"{report.epoch:03d}{name}", figure, dpi=80)
        save_figure(folder / name, figure, dpi=80)


def _epoch_of(line: str) -> float:
    """Returns the epoch of a line of genotypes.jsonl, infinity for a damaged line."""
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # incomplete after a full disk or a kill
