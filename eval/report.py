"""What is said of checkpoints on verification sets: tables, and the ROC curves as a picture."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from easydict import EasyDict
from matplotlib import colormaps
from matplotlib.figure import Figure

from eval.merging import Entries, split_key
from eval.published import published
from eval.scoring import FARS, Score
from utils.errors import one_line

Results = Mapping[str, Mapping[str, Score]]  # checkpoint -> set -> score

_FARS = [f"{far:.0e}" for far in FARS]
_NUMBERS = ("accuracy", "std", "auc", "eer", "xnorm")


def entries_of(results: Results) -> Entries:
    """The numbers of scores, as results.json has them."""
    return {name: {held: score.asdict() for held, score in scores.items()} for name, scores in results.items()}


def format_tables(entries: Entries, config: EasyDict | None, advice: Callable[[int], str] | None = None) -> str:
    """Accuracy of every checkpoint and set; then everything else, set by set.

    Entries that have changed since, and those that cannot be read, are not shown. config: None where the sets are a
    person's own, of which nothing is published. advice: how to get so many pairs of different people.
    """
    shown = {
        name: {held: row for held, entry in sets.items() if (row := _row(entry)) is not None}
        for name, sets in entries.items() if isinstance(sets, dict)
    }  # fmt: skip
    shown = {name: sets for name, sets in shown.items() if sets}
    names = list(dict.fromkeys(held for sets in shown.values() for held in sets))
    outdated = [
        f"{name} ({held})"
        for name, sets in entries.items() if isinstance(sets, dict)
        for held, entry in sets.items() if _is_outdated(entry)
    ]  # fmt: skip
    weights = {key: str(entry.get("weights", "?")) for key, sets in shown.items() for entry in sets.values()}
    is_known = config and any(published(config, name) is not None for name in names)
    notes = folder_notes(weights, config if is_known else None) + _footnotes(shown, names, advice)
    if outdated:
        notes.append(f"not shown, for files or pairs have changed since: {', '.join(outdated)}; score them again")
    parts = [_accuracy_table(shown, names, config), _detail_table(shown, names), "\n".join(notes)]
    return "\n\n".join(parts).rstrip()


def _is_outdated(entry: Any) -> bool:
    return isinstance(entry, dict) and "outdated" in entry


def _row(entry: Any) -> dict[str, Any] | None:
    """The numbers of an entry; None where it is outdated, or is not as this version writes it."""
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


def _step(key: str) -> str:
    name, folder = split_key(key)
    if name == "0":
        return f"untrained ({folder})" if folder else "untrained"
    return key


def _first_width(entries: Entries) -> int:
    return max(10, *(len(_step(name)) + 2 for name in entries), 0)


def _accuracy_table(entries: Entries, names: list[str], config: EasyDict | None) -> str:
    """Steps down, sets across; accuracy in percent, mean and standard deviation over the folds."""
    width = max([18, *(len(name) + 2 for name in names)])
    first = _first_width(entries)
    lines = ["".join([f"{'step':>{first}}", *(f"{name:>{width}}" for name in names)])]
    for step, scores in entries.items():
        cells = (
            f"{100 * scores[name]['accuracy']:.2f} ± {100 * scores[name]['std']:.2f}" if name in scores else "-"
            for name in names
        )  # fmt: skip
        lines.append("".join([f"{_step(step):>{first}}", *(f"{cell:>{width}}" for cell in cells)]))
    known = {name: value for name in names if config and (value := published(config, name)) is not None}
    if known:
        cells = (f"{known[name]:.2f}       " if name in known else "" for name in names)  # under our mean
        lines.append("".join([f"{'published':>{first}}", *(f"{cell:>{width}}" for cell in cells)]).rstrip())
    return "\n".join(lines)


def _detail_table(entries: Entries, names: list[str]) -> str:
    """In percent but for AUC, the squared distance that is the accuracy's threshold, and XNorm."""
    first = _first_width(entries)
    lines = [
        f"{'set':>12}{'step':>{first}}{'95 % interval':>18}{'AUC':>9}{'EER':>8}"
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
                f"{name:>12}{_step(step):>{first}}{f'{100 * low:.2f} to {100 * high:.2f}':>18}{row['auc']:>9.5f}"
                f"{100 * row['eer']:>8.2f}{tars}{row['squared_distance']:>14.3f}{row['xnorm']:>9.3f}"
            )
    return "\n".join(lines)


def folder_notes(weights: Mapping[str, str], known: EasyDict | None) -> list[str]:
    """Whose checkpoints are whose, where a table has those of several folders of weights.

    weights: the folder of each key. known: the config of the network whose published values the table has.
    """
    folders = {split_key(key)[1]: folder for key, folder in weights.items()}
    if len(folders) < 2:
        return []
    notes = [
        f"{f'steps with ({name})' if name else 'steps without a name'}: checkpoints in "
        f"{'this folder' if folder == '.' else one_line(folder)}"
        for name, folder in folders.items()
    ]
    if known:
        notes.append(f"published: of {known.net_name}, embedding_size {known.embedding_size}")
    return notes


def _footnotes(entries: Entries, names: list[str], advice: Callable[[int], str] | None) -> list[str]:
    lacking: dict[tuple[int, tuple[str, ...]], list[str]] = {}  # sets by their different pairs and the FARs left out
    warnings: list[str] = []
    for name in names:
        row = next(sets[name] for sets in entries.values() if name in sets)
        fars = tuple(far for far in _FARS if row["tar"][far] is None)
        if fars:
            lacking.setdefault((row["different"], fars), []).append(name)
        if row["warning"]:
            warnings.append(f"{name}: {row['warning']}")
    notes = []
    for (different, fars), sets in lacking.items():
        needed = round(1 / float(fars[0]))
        how = f"; {advice(needed)}" if advice else ""
        notes.append(
            f"{', '.join(sets)}: TAR at FAR {' and '.join(fars)} left out: it needs at least {needed:,} different "
            f"pairs, there are {different:,}{how}"
        )
    return notes + warnings


def format_thresholds(results: Results, warnings: Mapping[str, str] | None = None) -> str:
    """Which threshold: for every set and checkpoint, the FAR wanted, where to cut, and what that costs.

    Empty where the pairs can tell no FAR. warnings: what stands below the table, by set.
    """
    first = max([10, *(len(_step(step)) + 2 for step in results)])
    lines = []
    for name in next(iter(results.values())):
        for step, sets in results.items():
            for far, point in sets[name].operating_points.items():
                if point is not None:
                    lines.append(
                        f"{name:>12}{_step(step):>{first}}{far:>8.0e}{point.threshold:>10.4f}"
                        f"{2 - 2 * point.threshold:>14.4f}{100 * point.frr:>11.2f}"
                    )
    if not lines:
        return ""
    head = f"{'set':>12}{'step':>{first}}{'FAR':>8}{'cosine':>10}{'sq. distance':>14}{'FRR in %':>11}"
    return "\n".join([head, *lines, *(f"{name}: {text}" for name, text in (warnings or {}).items() if text)])


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
            axes.step(curve.fpr, curve.tpr, where="post", color=colour, label=legend_label(_step(step)))
            lowest = min(lowest, curve.tpr[np.searchsorted(curve.fpr, least)])
        axes.set(xscale="log", xlim=(least, 1), ylim=(lowest - 0.05 * (1 - lowest) - 1e-3, 1 + 0.05 * (1 - lowest)))
        axes.set(xlabel="false accept rate", ylabel="true accept rate")
        axes.set_title(name, parse_math=False)
        axes.grid(True, which="both", alpha=0.3)
        if place == 0 and len(results) <= 12:
            axes.legend(title="step", loc="lower right")
    if len(results) > 12:
        first, *_, last = results
        figure.suptitle(f"{len(results)} checkpoints, from {first} (dark) to {last} (light)", parse_math=False)
    return figure


def legend_label(name: str) -> str:
    """A file's name as matplotlib shows it: without math, and not left out for an underscore at its start."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")
