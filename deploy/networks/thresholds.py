"""Finds what evaluations wrote on a network, and chooses a decision threshold by its false accept rate."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from eval.folders import default_result_folder
from eval.inputs.pairs import is_own_set
from eval.merging import read_entries
from utils.errors import UserError, one_line

THRESHOLDS_FILE = "thresholds.json"
RESULTS_FILES = "results*.json"  # results of photos have names of their own
_RATE = re.compile(r"\de-\d\d")  # keys of false accept rates, such as 1e-03
SetEntries = dict[str, dict[str, Any]]  # name of a verification set -> what an evaluation wrote on it


@dataclass(frozen=True)
class Threshold:
    """The cosine similarity from which two faces count as one person."""

    cosine: float
    far: float  # nominal false accept rate of a comparison, 1e-3 for example
    eval_set: str  # on which it was computed
    warning: str = ""  # on the photos of that set

    def __str__(self) -> str:
        origin = one_line(f"{self.eval_set}{'; ' if self.warning else ''}{self.warning}")
        return f"{self.cosine:.3f} (FAR {self.far:g} on {origin})"


def read_evaluation(weights: Path, digest: str, pattern: str, test_output: str = "") -> SetEntries:
    """Returns what evaluations wrote on a file of weights, by verification set; empty if there is nothing.

    Reads the files of a pattern beside the weights, in test_output if given, and in the default folder for results.

    digest: SHA-256 of the weights; entries of other content do not count. pattern: THRESHOLDS_FILE or RESULTS_FILES.
    """
    entries: SetEntries = {}
    others = [Path(test_output)] if test_output else []
    for folder in (weights.parent, *others, default_result_folder(weights.parent)):
        for path in sorted(folder.glob(pattern)):
            prefix = "photos:" if path.name.startswith("results_") else ""  # own photos may have the name of a set
            for sets in read_entries(path).values():
                for name, entry in sets.items():
                    if isinstance(entry, dict) and entry.get("sha256") == digest and "outdated" not in entry:
                        entries.setdefault(prefix + name, entry)
    return entries


def choose_threshold(thresholds: SetEntries, far: float, source: str, eval_set: str | None = None) -> Threshold:
    """Returns the threshold at a false accept rate.

    Of several sets takes the one with the most pairs of different people; the user's own photos, "folder:NAME" and
    "pairs:NAME", come first, and sets of photos that were not aligned last.

    source: names the network in errors. eval_set: the set to take.

    Raises UserError if there are no thresholds, or none at this rate.
    """
    if not thresholds:
        raise UserError(
            f"{source}: there are no thresholds for this network",
            fix="evaluate it first: python eval/eval.py output=WEIGHTS.pth --config FILE --folder PHOTOS --align; of a "
            "shared folder or an exported file, evaluate the checkpoint and write it again",
        )
    if eval_set is not None and eval_set not in thresholds:
        raise UserError(f"{source}: no thresholds of the set {eval_set!r}", fix=f"there are {', '.join(thresholds)}")
    names = [eval_set] if eval_set else sorted(thresholds, key=lambda name: _preference(name, thresholds[name]))
    points = {name: _points(thresholds[name]) for name in names}
    for name in names:
        if far in points[name]:
            return Threshold(points[name][far], far, name, str(thresholds[name].get("warning", "")))
    known = sorted({rate for rates in points.values() for rate in rates}, reverse=True)
    fix = f"there are {', '.join(f'{rate:g}' for rate in known)}" if known else "evaluate it on more pairs"
    raise UserError(f"{source}: no threshold at FAR {far:g}", fix=fix)


def _preference(name: str, entry: dict[str, Any]) -> tuple[bool, bool, int]:
    """Sort key of sets, best first."""
    different = entry.get("different", 0)
    return bool(entry.get("warning")), not is_own_set(name), -different if isinstance(different, int) else 0


def _points(entry: dict[str, Any]) -> dict[float, float]:
    """Returns the cosine thresholds of a set by false accept rate. Leaves out rates that could not be measured."""
    points = {}
    for key, point in entry.items():
        cosine = point.get("cosine") if isinstance(point, dict) else None
        if _RATE.fullmatch(key) and is_cosine(cosine):
            points[float(key)] = float(cosine)
    return points


def is_cosine(value: object) -> TypeGuard[float]:
    """Whether a value read from JSON is a number from -1 to 1."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1 <= value <= 1
