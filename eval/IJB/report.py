"""Formats IJB results: the tables of TPR at FPR and of identification, and a figure of the ROC curves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from config.base import Config
from eval.reporting.published import published_result
from eval.reporting.report import folder_notes, legend_label
from eval.reporting.roc import Roc

FPRS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # as published


@dataclass(frozen=True)
class IjbScore:
    """Result of one checkpoint on one IJB set. Rates are from 0 to 1."""

    checkpoint: str
    tpr: dict[float, float]  # TPR by FPR
    auc: float
    images: int
    missing_images: int  # number of images left out
    pairs: int
    different: int  # number of pairs of different people
    skipped_pairs: int  # number of pairs left out, because a template has no image
    switches: dict[str, bool]
    identification: dict[str, Any] | None
    curve: Roc | None  # None for a result of an earlier command
    sha256: str = ""  # of the checkpoint's file
    pairs_sha256: str = ""  # of the set's lists

    def asdict(self) -> dict[str, Any]:
        """Returns the entry of results.json: all fields but the curve."""
        numbers = {name: value for name, value in vars(self).items() if name != "curve"}
        return numbers | {"tpr": {f"{fpr:.0e}": rate for fpr, rate in self.tpr.items()}}


Results = dict[str, IjbScore]  # by result key


def format_table(target: str, results: Results, config: Config) -> str:
    """Returns the table of TPR in % at each FPR and AUC, the table of identification, and notes."""
    first = next(iter(results.values()))
    width = _key_width(results)
    lines = [f"{f'{target}: TPR in % at FPR':>{width}}" + "".join(f"{fpr:>9.0e}" for fpr in FPRS) + f"{'AUC':>10}"]
    for name, result in results.items():
        rates = "".join(f"{100 * rate:>9.2f}" for rate in result.tpr.values())
        lines.append(f"{name:>{width}}{rates}{result.auc:>10.6f}")
    reference = published_result(config, target)
    if reference is not None:
        lines.append(f"{'published':>{width}}{reference:>{9 * (FPRS.index(1e-4) + 1)}.2f}")
    if any(result.identification for result in results.values()):
        lines += ["", *_identification_table(target, results)]
    coarse = [
        f"{fpr:.0e} of {first.different} different pairs is less than one pair: its TPR is that without a false accept"
        for fpr in FPRS
        if fpr * first.different < 1
    ]
    left_out = [
        f"{name}: left out {result.missing_images} images and {result.skipped_pairs} pairs"
        for name, result in results.items()
        if result.missing_images or result.skipped_pairs
    ]
    disabled = {
        name: ", ".join(switch for switch, on in result.switches.items() if not on) for name, result in results.items()
    }
    if len(set(disabled.values())) == 1:
        switch_notes = [f"without {disabled[next(iter(disabled))]}"] if any(disabled.values()) else []
    else:
        switch_notes = [f"{name}: without {switches}" for name, switches in disabled.items() if switches]
    weights = {name: str(Path(result.checkpoint).parent) for name, result in results.items()}
    folders = folder_notes(weights, None if reference is None else config)
    notes = [*folders, *coarse[-1:], *left_out, *switch_notes]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _key_width(results: Results) -> int:
    """Returns the width of the column of keys."""
    return max(26, *(len(name) + 2 for name in results))


def _identification_table(target: str, results: Results) -> list[str]:
    width = _key_width(results)
    lines = [f"{f'{target}: 1:N in %':>{width}}{'rank 1':>9}{'rank 5':>9}{'TPIR at FPIR 0.01':>19}{'at 0.1':>9}"]
    for name, result in results.items():
        identification = result.identification
        if identification:
            rates = [identification["rank1"], identification["rank5"], *identification["tpir"].values()]
            rank1, rank5, low, high = ("-" if rate is None else f"{100 * rate:.2f}" for rate in rates)
            lines.append(f"{name:>{width}}{rank1:>9}{rank5:>9}{low:>19}{high:>9}")
    return lines


def roc_figure(target: str, results: Results) -> Figure:
    """Draws the ROC curves of results that have one, with a logarithmic axis of FPR."""
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.add_subplot()
    grid = np.logspace(-6, 0, 1201)  # interpolated: a curve of all pairs has too many points for a PDF
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(results)))
    for colour, (name, result) in zip(colours, results.items(), strict=True):
        if result.curve is None:
            continue
        rates = np.interp(grid, result.curve.fpr, result.curve.tpr)
        axes.plot(grid, rates, color=colour, label=legend_label(f"{name} (AUC {result.auc:.4f})"))
    axes.set(xscale="log", xlim=(1e-6, 1), xlabel="false positive rate", ylabel="true positive rate", title=target)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    return figure
