"""What an evaluation leaves: tables, results.json, thresholds.json and the ROC curves as a picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from easydict import EasyDict
from matplotlib import colormaps
from matplotlib.figure import Figure

from eval.published import published
from eval.scoring import FARS, Score
from utils.run_log import log

Results = dict[int, dict[str, Score]]  # global step -> set -> score


def write_results(folder: Path, results: Results, config: EasyDict | None, suffix: str = "") -> list[str]:
    """results.json ({step: {set: numbers}}), results.txt (the tables) and roc.png; returns their names.

    config: None where the sets are a person's own, of which nothing is published, whatever they are called.
    """
    scores = {step: {name: score.asdict() for name, score in sets.items()} for step, sets in results.items()}
    names = [f"results{suffix}.json", f"results{suffix}.txt", f"roc{suffix}.png"]
    (folder / names[0]).write_text(json.dumps(scores, indent=2) + "\n")
    (folder / names[1]).write_text(format_tables(results, config) + "\n")
    roc_figure(results).savefig(folder / names[2], dpi=120)
    return names


def format_tables(results: Results, config: EasyDict | None) -> str:
    """Accuracy of every checkpoint and set; then everything else, set by set."""
    return "\n\n".join([_accuracy_table(results, config), _detail_table(results), _footnotes(results)]).rstrip()


def _accuracy_table(results: Results, config: EasyDict | None) -> str:
    """Steps down, sets across; accuracy in percent, mean and standard deviation over the folds."""
    names = list(next(iter(results.values())))
    width = max(18, *(len(name) + 2 for name in names))
    lines = ["".join([f"{'step':>10}", *(f"{name:>{width}}" for name in names)])]
    for step, scores in results.items():
        cells = (f"{100 * scores[name].accuracy:.2f} ± {100 * scores[name].std:.2f}" for name in names)
        lines.append("".join([f"{step or 'untrained':>10}", *(f"{cell:>{width}}" for cell in cells)]))
    known = {name: value for name in names if config and (value := published(config, name)) is not None}
    if known:
        cells = (f"{known[name]:.2f}       " if name in known else "" for name in names)  # under our mean
        lines.append("".join([f"{'published':>10}", *(f"{cell:>{width}}" for cell in cells)]).rstrip())
    return "\n".join(lines)


def _detail_table(results: Results) -> str:
    """In percent but for AUC, thresholds (squared distance) and XNorm."""
    lines = [
        f"{'set':>12}{'step':>10}{'95 % interval':>18}{'AUC':>9}{'EER':>8}"
        f"{'TAR@1e-3':>10}{'TAR@1e-4':>10}{'threshold':>11}{'XNorm':>9}"
    ]
    for name in next(iter(results.values())):
        for step, sets in results.items():
            score = sets[name]
            low, high = score.interval
            tars = "".join(f"{'-' if tar is None else f'{100 * tar:.2f}':>10}" for tar in map(score.tar, FARS[1:]))
            lines.append(
                f"{name:>12}{step or 'untrained':>10}{f'{100 * low:.2f} to {100 * high:.2f}':>18}{score.auc:>9.5f}"
                f"{100 * score.eer:>8.2f}{tars}{score.threshold:>11.3f}{score.xnorm:>9.3f}"
            )
    return "\n".join(lines)


def _footnotes(results: Results) -> str:
    lacking: dict[tuple[int, tuple[float, ...]], list[str]] = {}  # sets by their different pairs and the FARs left out
    for name, score in next(iter(results.values())).items():
        fars = tuple(far for far in FARS if score.operating[far] is None)
        if fars:
            lacking.setdefault((score.different, fars), []).append(name)
    return "\n".join(
        f"{', '.join(names)}: TAR at FAR {' and '.join(f'{far:.0e}' for far in fars)} left out: it needs at least "
        f"{round(1 / fars[0]):,} different pairs, there are {different:,}"
        for (different, fars), names in lacking.items()
    )


def format_thresholds(results: Results) -> str:
    """Which threshold: for every set and checkpoint, the FAR wanted, where to cut, and what that costs."""
    lines = [f"{'set':>12}{'step':>10}{'FAR':>8}{'cosine':>10}{'sq. distance':>14}{'FRR in %':>11}"]
    for name in next(iter(results.values())):
        for step, sets in results.items():
            for far, point in sets[name].operating.items():
                if point is not None:
                    lines.append(
                        f"{name:>12}{step or 'untrained':>10}{far:>8.0e}{point.threshold:>10.4f}"
                        f"{2 - 2 * point.threshold:>14.4f}{100 * point.frr:>11.2f}"
                    )
    return "\n".join(lines)


def write_thresholds(beside: Path, instead: Path, results: Results) -> Path:
    """thresholds.json in the checkpoints' folder, or `instead` where that cannot be written; returns where.

    It holds {step: {set: {FAR: threshold and costs, or why not}}}; what stands there of other steps and sets stays.
    """
    found = {str(step): {name: _thresholds(score) for name, score in sets.items()} for step, sets in results.items()}
    for folder in dict.fromkeys((beside, instead)):
        path = folder / "thresholds.json"
        if folder != instead and not folder.stat().st_mode & 0o222:  # marked read-only: left alone, by root as well
            continue
        merged = read_json(path)
        for step, sets in found.items():
            there = merged.get(step)
            merged[step] = {**(there if isinstance(there, dict) else {}), **sets}
        try:
            path.write_text(json.dumps(merged, indent=2) + "\n")
        except OSError as error:
            log.warning(f"{path} cannot be written: {error.strerror}")
        else:
            return path
    return path


def _thresholds(score: Score) -> dict[str, Any]:
    entry: dict[str, Any] = {"pairs": score.pairs, "different": score.different}
    for far, point in score.operating.items():
        entry[f"{far:.0e}"] = (
            f"needs at least {round(1 / far)} different pairs"
            if point is None
            else {
                "cosine": point.threshold,  # the same person from here on
                "squared_distance": 2 - 2 * point.threshold,  # of normalised embeddings: the same person below
                "far": point.far,
                "frr": point.frr,
            }
        )
    return entry


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds; empty where it holds none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def roc_figure(results: Results) -> Figure:
    """A panel a set, a line a checkpoint, the false accept rate on a logarithmic axis."""
    names = list(next(iter(results.values())))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(5 * columns, 4 * rows), layout="constrained")
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(results)))
    for place, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, place + 1)
        least = 1 / max(2, next(iter(results.values()))[name].different)  # FAR: one pair
        lowest = 1.0
        for colour, (step, sets) in zip(colours, results.items(), strict=True):
            curve = sets[name].curve
            axes.step(curve.fpr, curve.tpr, where="post", color=colour, label=str(step or "untrained"))
            lowest = min(lowest, curve.tpr[np.searchsorted(curve.fpr, least)])
        axes.set(xscale="log", xlim=(least, 1), ylim=(lowest - 0.05 * (1 - lowest) - 1e-3, 1 + 0.05 * (1 - lowest)))
        axes.set(title=name, xlabel="false accept rate", ylabel="true accept rate")
        axes.grid(True, which="both", alpha=0.3)
        if place == 0 and len(results) <= 12:
            axes.legend(title="step", loc="lower right")
    if len(results) > 12:
        figure.suptitle(f"{len(results)} checkpoints, from {min(results)} (dark) to {max(results)} (light)")
    return figure
