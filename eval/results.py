"""The files of an evaluation: results.json and thresholds.json, merged with those of earlier commands, and the rest."""

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from easydict import EasyDict

from config import FOLDER, from_project, make_folder
from eval.pairs import PhotoPairs
from eval.report import Entries, entries_of, format_tables, format_thresholds, roc_figure
from eval.scoring import Score
from eval.sets import VerificationSet
from utils.checkpoint import backbone_name
from utils.errors import UserError, one_line
from utils.files import open_regular, replace_text, save_figure, sha256, write_files
from utils.run_log import log

_RUN_FILES = ("checkpoint.pth", "training.log", "search.log", "config.json")  # what a run of this project leaves


class Report:
    """What a command finds out, and the files that it leaves."""

    def __init__(
        self,
        folder: Path,
        weights: Path,
        sets: list[VerificationSet],
        config: EasyDict | None = None,
        photos: PhotoPairs | None = None,
    ) -> None:
        """folder: of the results. weights: of the checkpoints. config: None where nothing is published of the sets."""
        self.folder = folder
        self.weights = weights
        self.sets = {held.name: held for held in sets}
        self.config = config
        self.photos = photos
        self.scores: dict[str, dict[str, Score]] = {}
        self.sha256: dict[str, str] = {}
        suffix = f"_{photos.name}".replace("/", "_") if photos else ""
        self.json, self.txt, self.png = (
            folder / f"{name}{suffix}.{kind}"
            for name, kind in (("results", "json"), ("results", "txt"), ("roc", "png"))
        )
        self.csv = folder / f"pairs{suffix}.csv" if photos and photos.most_different is not None else None
        self.thresholds = folder / "thresholds.json"  # after write: where they are

    def add(self, path: Path, scores: dict[str, Score]) -> None:
        """Take a checkpoint's scores, by set."""
        name = backbone_name(path)
        self.scores[name] = scores
        self.sha256[name] = sha256(path)

    def entries(self) -> Entries:
        """Those of this command, and those that are in results.json of other checkpoints and sets."""
        new = entries_of(self.scores)
        return merge(read_json(self.json), self._signed(new), self.weights, self._digests())

    def format_tables(self) -> str:
        """The tables of results.txt."""
        return format_tables(self.entries(), self.config, self.photos.how_to_get if self.photos else None)

    def format_thresholds(self) -> str:
        """The table of thresholds; empty where the pairs can tell none."""
        return format_thresholds(self.scores, {name: held.warning for name, held in self.sets.items()})

    def write(self) -> None:
        """Write all files. Raises UserError, after those that can be written, where one cannot."""
        entries = self.entries()
        advice = self.photos.how_to_get if self.photos else None
        writers: dict[Path, Callable[[Path], object]] = {
            self.json: lambda path: replace_text(path, json.dumps(entries, indent=2) + "\n"),
            self.txt: lambda path: replace_text(path, format_tables(entries, self.config, advice) + "\n"),
            self.png: lambda path: save_figure(path, roc_figure(self.scores), dpi=120),
            self.folder / "thresholds.json": self._write_thresholds,
        }
        if self.csv and self.photos:
            writers[self.csv] = self.photos.write
        write_files(writers, "make room, or name another folder with test_output=FOLDER")

    def _write_thresholds(self, instead: Path) -> None:
        """thresholds.json in the checkpoints' folder, if that is of a run here, else or where it cannot be written in
        the results' folder."""
        beside = self.weights / instead.name
        if (
            is_run(self.weights) and self.weights.stat().st_mode & 0o222
        ):  # marked read-only: left alone, by root as well
            try:
                self.thresholds = self._write_thresholds_to(beside)
                return
            except OSError as error:
                if beside == instead:
                    raise
                log.warning(f"{beside} cannot be written: {error.strerror}")
        self.thresholds = self._write_thresholds_to(instead)

    def _write_thresholds_to(self, path: Path) -> Path:
        advice = self.photos.how_to_get if self.photos else None
        found = {
            step: {name: thresholds_of(score, advice) for name, score in sets.items()}
            for step, sets in self.scores.items()
        }
        merged = merge(read_json(path), self._signed(found), self.weights, self._digests())
        replace_text(path, json.dumps(merged, indent=2) + "\n")
        return path

    def _digests(self) -> dict[str, str]:
        return {name: held.digest for name, held in self.sets.items()}

    def _signed(self, entries: Entries) -> Entries:
        """The entries with what they were made of, and with the warning that belongs to the set."""
        return {
            step: {name: self._made_of(step, name) | entry for name, entry in sets.items()}
            for step, sets in entries.items()
        }

    def _made_of(self, step: str, name: str) -> dict[str, str]:
        held = self.sets[name]
        warning = {"warning": held.warning} if held.warning else {}
        return warning | {"sha256": self.sha256[step], "pairs_sha256": held.digest}


def thresholds_of(score: Score, advice: Callable[[int], str] | None = None) -> dict[str, Any]:
    """By FAR: the threshold as cosine and as squared distance, and what it costs; or why there is none."""
    entry: dict[str, Any] = {"pairs": score.pairs, "different": score.different}
    for far, point in score.operating.items():
        needed = round(1 / far)
        entry[f"{far:.0e}"] = (
            f"needs at least {needed} different pairs" + (f"; {advice(needed)}" if advice else "")
            if point is None
            else {
                "cosine": point.threshold,  # the same person from here on
                "squared_distance": 2 - 2 * point.threshold,  # of normalised embeddings: the same person below
                "far": point.far,
                "frr": point.frr,
            }
        )
    return entry


def merge(old: dict[str, Any], new: Entries, weights: Path, digests: dict[str, str]) -> Entries:
    """The entries of a file, with new ones in place of those of the same checkpoint and set, in the order of steps.

    Old ones whose checkpoint in the folder `weights`, or whose set by its digest, is no longer what they were made of
    are marked as outdated.
    """
    files = {backbone_name(path): path for path in sorted(weights.iterdir()) if path.is_file()}
    merged: dict[str, Any] = {}
    for step, sets in old.items():
        merged[step] = sets
        if isinstance(sets, dict):
            merged[step] = {
                name: mark(entry, files.get(step), digests.get(name)) if isinstance(entry, dict) else entry
                for name, entry in sets.items()
            }
    for step, sets in new.items():
        there = merged.get(step)
        merged[step] = {**(there if isinstance(there, dict) else {}), **sets}
    return dict(sorted(merged.items(), key=lambda item: by_step(item[0])))


def by_step(name: str) -> tuple[bool, int, str]:
    """The key that sorts names of checkpoints: steps as numbers, then other names."""
    is_step = name.isdecimal() and len(name) < 20
    return not is_step, int(name) if is_step else 0, name


def mark(entry: dict[str, Any], path: Path | None, digest: str | None) -> dict[str, Any]:
    """The entry with "outdated" and the reason where the checkpoint's file or the pairs (by their digest; None: not
    known) are no longer what it was made of."""
    if path is None:
        reason = "the checkpoint's file is gone"
    elif "sha256" not in entry:
        reason = "of an earlier version, which kept no checksums"
    elif entry["sha256"] != _sha256_of(path):
        reason = "the checkpoint's file has changed since"
    elif digest is not None and entry.get("pairs_sha256") != digest:
        reason = "the pairs have changed since"
    else:
        reason = ""
    plain = {name: value for name, value in entry.items() if name != "outdated"}
    return plain | {"outdated": reason} if reason else plain


def _sha256_of(path: Path) -> str:
    found = path.stat()
    return _sha256_once(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=1024)
def _sha256_once(path: Path, _mtime_ns: int, _size: int) -> str:
    return sha256(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds; empty where it holds none."""
    try:
        with open_regular(path) as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):  # a UserError over a pipe is a ValueError
        return {}
    return found if isinstance(found, dict) else {}


def raise_failed(failed: dict[Path, UserError], total: int) -> None:
    """Raises UserError where checkpoints, of so many in all, could not be scored: names the files and the reasons."""
    if failed and total == 1:
        raise next(iter(failed.values()))
    if failed:
        reasons = "; ".join(str(error) for error in list(failed.values())[:3])
        more = ", ".join(path.name for path in list(failed)[3:])
        raise UserError(
            f"{len(failed)} of {total} checkpoints could not be scored: {reasons}"
            + (f"; also {more}: see test.log" if more else "")
        )


def weights_folder(output: str) -> Path:
    """The folder of checkpoints that config.output names, or that the file it names lies in."""
    path = Path(output)
    return path if path.is_dir() else path.parent


def is_run(folder: Path) -> bool:
    """Whether the folder is the output of a run here, so that results may come there, too. A folder that was copied or
    downloaded is not: its config.json names another."""
    kept = read_json(folder / "config.json").get("output")
    if isinstance(kept, str):
        return Path(from_project(kept)).resolve() == folder.resolve()
    return any((folder / name).is_file() for name in _RUN_FILES)


def run_name(folder: Path) -> str:
    """The folder's name, and what tells it apart from others of the same name."""
    whole = folder.resolve()
    return f"{one_line(whole.name)}-{hashlib.sha256(bytes(whole)).hexdigest()[:6]}"


def result_folder(config: EasyDict) -> Path:
    """config.test_output, else the checkpoints' folder if a run of this project wrote it, else one in output/eval.

    Raises ConfigError where it cannot be written.
    """
    if not config.test_output:
        weights = weights_folder(config.output)
        config.test_output = str(weights if is_run(weights) else FOLDER.parent / "output" / "eval" / run_name(weights))
    return make_folder(config, "test_output")
