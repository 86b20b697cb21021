"""What a search says after each epoch: the genotype, its entropy, accuracies; and its pictures."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backbones.genotypes import Genotype, to_text
from NAS.supernet import PRIMITIVES
from NAS.visualize import draw_alphas, draw_cells
from utils.filesystem import save_figure, write_text_atomic
from utils.logs.run_log import log

COLLAPSED = 5  # skip_connect among the eight edges of a normal cell, from which a search is taken to have collapsed


@dataclass(frozen=True)
class EpochReport:
    """The state of a search after an epoch."""

    epoch: int
    step: int
    genotype: Genotype
    normal: list[np.ndarray]  # for each node, the softmax (states before it, operations)
    reduce: list[np.ndarray]
    cost: float  # expected millions of multiply-adds of all cells
    accuracies: dict[str, float]  # supernet_train, derived_train, supernet_val, derived_val

    @property
    def entropy(self) -> float:
        """Of an edge's operations, the mean over all edges, relative to that of equal weights: 1 at the start, 0 when
        every edge has chosen."""
        weights = np.concatenate([*self.normal, *self.reduce])
        return float(np.mean(-np.sum(weights * np.log(np.maximum(weights, 1e-30)), axis=1)) / np.log(len(PRIMITIVES)))

    @property
    def skips(self) -> int:
        """skip_connect in the normal cell."""
        return sum(operation == "skip_connect" for node in self.genotype.normal for operation, _ in node)


def write_epoch(folder: Path, report: EpochReport) -> None:
    """The log lines; genotypes.jsonl, a line an epoch; cells.png and alphas.png, and each epoch's in pictures/."""
    text = to_text(report.genotype)
    log.info(f"Genotype: {text}")
    measured = "   ".join(f"{name.replace('_', ' ')} {100 * value:.2f} %" for name, value in report.accuracies.items())
    log.info(f"Entropy {report.entropy:.4f}   Cost {report.cost:.2f} M   skip_connect {report.skips}   {measured}")
    if report.skips >= COLLAPSED:
        log.warning(
            f"The normal cell has {report.skips} skip_connect: the search is collapsing; stop earlier, or take "
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
    }
    try:
        _write(folder, report, line)
    except OSError as error:  # a full disk is no reason to stop
        log.warning(f"{folder}: epoch {report.epoch} could not be written ({error.strerror})")


def _write(folder: Path, report: EpochReport, line: dict[str, Any]) -> None:
    path = folder / "genotypes.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    kept = [text for text in lines if _epoch_of(text) < report.epoch]  # the others are of a run that was cut off
    write_text_atomic(path, "".join(f"{text}\n" for text in [*kept, json.dumps(line)]))
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    figures = {
        "cells.png": draw_cells(report.genotype, f"epoch {report.epoch}"),
        "alphas.png": draw_alphas(report.normal, report.reduce, PRIMITIVES),
    }
    for name, figure in figures.items():
        save_figure(pictures / f"{report.epoch:03d}{name}", figure, dpi=80)
        save_figure(folder / name, figure, dpi=80)


def _epoch_of(line: str) -> float:
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # cut off by a full disk or a kill
