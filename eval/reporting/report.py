"""Formats verification results: tables of accuracies and thresholds, and a figure of the ROC curves."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from config.base import Config
from eval.merging import Entries, split_key
from eval.reporting.published import published_result
from eval.scoring import FARS, Score
from utils.errors import one_line

Results = Mapping[str, Mapping[str, Score]]  # checkpoint -> set -> score

_FARS = [f"{far:.0e}" for far in FARS]
_NUMBERS = ("accuracy", "std", "auc", "eer", "xnorm")


def to_entries(results: Results) -> Entries:
    """Returns the entries of results.json for the scores."""
    return {name: {set_name: score.asdict() for set_name, score in scores.items()} for name, scores in results.items()}


def format_tables(entries: Entries, config: Config | None, more_pairs_hint: Callable[[int], str] | None = None) -> str:
    """Returns the table of accuracies by checkpoint and set, then the other metrics set by set, then notes.

    Leaves out outdated entries and entries that cannot be parsed. config: None for the user's own photos, which have no
    published results. more_pairs_hint: tells how to get that many pairs of different people.
    """
    shown = {
        name: {set_name: row for set_name, entry in sets.items() if (row := _parse_entry(entry)) is not None}
        for name, sets in entries.items() if isinstance(sets, dict)
    }  # fmt: skip
    shown = {name: sets for name, sets in shown.items() if sets}
    names = list(dict.fromkeys(set_name for sets in shown.values() for set_name in sets))
    outdated = [
        f"{name} ({set_name})"
        for name, sets in entries.items() if isinstance(sets, dict)
        for set_name, entry in sets.items() if _is_outdated(entry)
    ]  # fmt: skip
    weights = {key: str(entry.get("weights", "?")) for key, sets in shown.items() for entry in sets.values()}
    has_published = config and any(published_result(config, name) is not None for name in names)
    notes = folder_notes(weights, config if has_published else None)
    notes += _footnotes(shown, names, more_pairs_hint)
    if outdated:
        notes.append(f"not shown because files or pairs have changed: {', '.join(outdated)}; score them again")
    parts = [_accuracy_table(shown, names, config), _detail_table(shown, names), "\n".join(notes)]
    return "\n\n".join(parts).rstrip()


def _is_outdated(entry: Any) -> bool:
    return isinstance(entry, dict) and "outdated" in entry


def _parse_entry(entry: Any) -> dict[str, Any] | None:
    """Returns the fields of an entry, or None if it is outdated or malformed."""
    if not isinstance(entry, dict) or _is_outdated(entry):
        return None
    row = {"different": 0, "warning": "", **entry}
    row["squared_distance"] = row.get("squared_distance", row.get("threshold"))  # its name in earlier versions
    numbers = [row.get(name) for name in (*_NUMBERS, "squared_distance", "different")]
    interval, tars = row.get("interval"), row.get("tar")
    if not isinstance(interval, list | tuple) or len(interval) != 2 or not isinstance(tars, dict):
        return None
    numbers += [*interval, *(tars.get(far, "") or 0 for far in _FARS)]
    return row if all(isinstance(number, int | float) for number in numbers) else None


def _step_label(key: str) -> str:
    """Returns the key as shown in tables: step 0 is the untrained network."""
    name, folder = split_key(key)
    if name == "0":
        return f"untrained ({folder})" if folder else "untrained"
    return key


def _step_width(entries: Entries) -> int:
    """Returns the width of the column of steps."""
    return max(10, *(len(_step_label(name)) + 2 for name in entries), 0)


def _accuracy_table(entries: Entries, names: list[str], config: Config | None) -> str:
    """Formats accuracies in percent, mean ± standard deviation over folds, with a row per step and a column per set."""
    width = max([18, *(len(name) + 2 for name in names)])
    step_width = _step_width(entries)
    lines = ["".join([f"{'step':>{step_width}}", *(f"{name:>{width}}" for name in names)])]
    for step, scores in entries.items():
        cells = (
            f"{100 * scores[name]['accuracy']:.2f} ± {100 * scores[name]['std']:.2f}" if name in scores else "-"
            for name in names
        )  # fmt: skip
        lines.append("".join([f"{_step_label(step):>{step_width}}", *(f"{cell:>{width}}" for cell in cells)]))
    reference = {name: value for name in names if config and (value := published_result(config, name)) is not None}
    if reference:
        cells = (f"{reference[name]:.2f}       " if name in reference else "" for name in names)  # below the mean
        lines.append("".join([f"{'published':>{step_width}}", *(f"{cell:>{width}}" for cell in cells)]).rstrip())
    return "\n".join(lines)


def _detail_table(entries: Entries, names: list[str]) -> str:
    """Formats the other metrics, in percent except for AUC, the threshold's squared distance and XNorm."""
    step_width = _step_width(entries)
    lines = [
        f"{'set':>12}{'step':>{step_width}}{'95 % interval':>18}{'AUC':>9}{'EER':>8}"
        f"{'TAR@1e-3':>10}{'TAR@1e-4':>10}{'sq. distance':>14}{'XNorm':>9}"
    ]
    for name in names:
        for step, sets in entries.items():
            if name not in sets:
                continue
            row = sets[name]
            low, high = row["interval"]
            tars = "".join(
                f"{'-' if tar is None else f'{100 * tar:.2f}':>10}" for tar in (row["tar"][far] for far in _FARS[1:])
            )
            lines.append(
                f"{name:>12}{_step_label(step):>{step_width}}{f'{100 * low:.2f} to {100 * high:.2f}':>18}"
                f"{row['auc']:>9.5f}{100 * row['eer']:>8.2f}{tars}{row['squared_distance']:>14.3f}{row['xnorm']:>9.3f}"
            )
    return "\n".join(lines)


def folder_notes(weights: Mapping[str, str], published: Config | None) -> list[str]:
    """Returns notes that name the folder of each group of checkpoints, if a table has several folders of weights.

    weights: the folder of each key. published: the config of the network whose published results the table shows.
    """
    folders = {split_key(key)[1]: folder for key, folder in weights.items()}
    if len(folders) < 2:
        return []
    notes = [
        f"{f'steps with ({name})' if name else 'steps without a name'}: checkpoints in "
        f"{'this folder' if folder == '.' else one_line(folder)}"
        for name, folder in folders.items()
    ]
    if published:
        notes.append(f"published: {published.net_name}, embedding_size {published.embedding_size}")
    return notes


def _footnotes(entries: Entries, names: list[str], more_pairs_hint: Callable[[int], str] | None) -> list[str]:
    """Returns notes on the FARs left out for lack of pairs, and the warnings of the sets."""
    unmeasured: dict[tuple[int, tuple[str, ...]], list[str]] = {}  # (different pairs, FARs left out) -> set names
    warnings: list[str] = []
    for name in names:
        row = next(sets[name] for sets in entries.values() if name in sets)
        fars = tuple(far for far in _FARS if row["tar"][far] is None)
        if fars:
            unmeasured.setdefault((row["different"], fars), []).append(name)
        if row["warning"]:
            warnings.append(f"{name}: {row['warning']}")
    notes = []
    for (different, fars), sets in unmeasured.items():
        needed = round(1 / float(fars[0]))
        hint = f"; {more_pairs_hint(needed)}" if more_pairs_hint else ""
        notes.append(
            f"{', '.join(sets)}: TAR at FAR {' and '.join(fars)} left out: it needs at least {needed:,} different "
            f"pairs, there are {different:,}{hint}"
        )
    return notes + warnings


def format_thresholds(results: Results, warnings: Mapping[str, str] | None = None) -> str:
    """Returns the table of thresholds: for every set, checkpoint and FAR, the threshold and its FRR.

    Empty if there are too few pairs for any FAR. warnings: by set, shown below the table.
    """
    step_width = max([10, *(len(_step_label(step)) + 2 for step in results)])
    lines = []
    for name in next(iter(results.values())):
        for step, sets in results.items():
            for far, point in sets[name].operating_points.items():
                if point is not None:
                    lines.append(
                        f"{name:>12}{_step_label(step):>{step_width}}{far:>8.0e}{point.threshold:>10.4f}"
                        f"{2 - 2 * point.threshold:>14.4f}{100 * point.frr:>11.2f}"
                    )
    if not lines:
        return ""
    heading = f"{'set':>12}{'step':>{step_width}}{'FAR':>8}{'cosine':>10}{'sq. distance':>14}{'FRR in %':>11}"
    return "\n".join([heading, *lines, *(f"{name}: {text}" for name, text in (warnings or {}).items() if text)])


def roc_figure(results: Results) -> Figure:
    """Draws the ROC curves, one panel per set and one line per checkpoint, with a logarithmic axis of FAR."""
    names = list(next(iter(results.values())))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(5 * columns, 4 * rows), layout="constrained")
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(results)))
    for index, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, index + 1)
        min_far = 1 / max(2, next(iter(results.values()))[name].different)  # one false accept
        min_tar = 1.0
        for colour, (step, sets) in zip(colours, results.items(), strict=True):
            curve = sets[name].curve
            axes.step(curve.fpr, curve.tpr, where="post", color=colour, label=legend_label(_step_label(step)))
            min_tar = min(min_tar, curve.tpr[np.searchsorted(curve.fpr, min_far)])
        margin = 0.05 * (1 - min_tar)
        axes.set(xscale="log", xlim=(min_far, 1), ylim=(min_tar - margin - 1e-3, 1 + margin))
        axes.set(xlabel="false accept rate", ylabel="true accept rate")
        axes.set_title(name, parse_math=False)
        axes.grid(True, which="both", alpha=0.3)
        if index == 0 and len(results) <= 12:
            axes.legend(title="step", loc="lower right")
    if len(results) > 12:
        first, *_, last = results
        figure.suptitle(f"{len(results)} checkpoints, from {first} (dark) to {last} (light)", parse_math=False)
    return figure


def legend_label(name: str) -> str:
    """Escapes a file name for a legend: matplotlib parses `$` as math and skips labels that begin with `_`."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")
