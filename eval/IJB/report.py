"""What is said of checkpoints on an IJB set: the table of TPR at FPR, and the ROC curves as a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from easydict import EasyDict
from matplotlib import colormaps
from matplotlib.figure import Figure

from eval.published import published
from eval.report import folder_notes, legend_label
from eval.roc import Roc

FPRS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # as published


@dataclass(frozen=True)
class IjbScore:
    """One checkpoint on one set; rates from 0 to 1."""

    checkpoint: str
    tpr: dict[float, float]  # by FPR
    auc: float
    images: int
    missing_images: int  # left out
    pairs: int
    different: int  # of the pairs, those of two people
    skipped_pairs: int  # left out, of templates without an image
    switches: dict[str, bool]
    identification: dict[str, Any] | None
    curve: Roc | None  # None: of an earlier command
    sha256: str = ""  # of the checkpoint
    pairs_sha256: str = ""  # of the set's lists

    def asdict(self) -> dict[str, Any]:
        """For results.json: all but the curve."""
        numbers = {name: value for name, value in vars(self).items() if name != "curve"}
        return numbers | {"tpr": {f"{fpr:.0e}": rate for fpr, rate in self.tpr.items()}}


Results = dict[str, IjbScore]  # by the checkpoint's name


def format_table(target: str, results: Results, config: EasyDict) -> str:
    """TPR in % at each FPR and the AUC; identification; and what has to be known to read them."""
    first = next(iter(results.values()))
    width = _first_width(results)
    lines = [f"{f'{target}: TPR in % at FPR':>{width}}" + "".join(f"{fpr:>9.0e}" for fpr in FPRS) + f"{'AUC':>10}"]
    for name, result in results.items():
        rates = "".join(f"{100 * rate:>9.2f}" for rate in result.tpr.values())
        lines.append(f"{name:>{width}}{rates}{result.auc:>10.6f}")
    known = published(config, target)
    if known is not None:
        lines.append(f"{'published':>{width}}{known:>{9 * (FPRS.index(1e-4) + 1)}.2f}")
    if any(result.identification for result in results.values()):
        lines += ["", *_identification_table(target, results)]
    notes = [
        f"{fpr:.0e} of {first.different} different pairs is less than one of them: TPR without a false accept"
        for fpr in FPRS
        if fpr * first.different < 1
    ]
    left_out = [
        f"{name}: left out {result.missing_images} images and {result.skipped_pairs} pairs"
        for name, result in results.items()
        if result.missing_images or result.skipped_pairs
    ]
    off = {
        name: ", ".join(switch for switch, on in result.switches.items() if not on) for name, result in results.items()
    }
    if len(set(off.values())) == 1:
        switched = [f"without {off[next(iter(off))]}"] if any(off.values()) else []
    else:
        switched = [f"{name}: without {switches}" for name, switches in off.items() if switches]
    weights = {name: str(Path(result.checkpoint).parent) for name, result in results.items()}
    said = [*folder_notes(weights, None if known is None else config), *notes[-1:], *left_out, *switched]
    return "\n".join([*lines, *([""] if said else []), *said])


def _first_width(results: Results) -> int:
    return max(26, *(len(name) + 2 for name in results))


def _identification_table(target: str, results: Results) -> list[str]:
    width = _first_width(results)
    lines = [f"{f'{target}: 1:N in %':>{width}}{'rank 1':>9}{'rank 5':>9}{'TPIR at FPIR 0.01':>19}{'at 0.1':>9}"]
    for name, result in results.items():
        found = result.identification
        if found:
            rates = [found["rank1"], found["rank5"], *found["tpir"].values()]
            rank1, rank5, low, high = ("-" if rate is None else f"{100 * rate:.2f}" for rate in rates)
            lines.append(f"{name:>{width}}{rank1:>9}{rank5:>9}{low:>19}{high:>9}")
    return lines


def roc_figure(target: str, results: Results) -> Figure:
    """The ROC curves, the FPR on a logarithmic axis."""
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.add_subplot()
    grid = np.logspace(-6, 0, 1201)  # a curve of all pairs has too many corners for a PDF
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
