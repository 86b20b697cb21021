"""Writes the files of an IJB evaluation: results.json, merged with earlier results, table, figures and scores."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from config.base import Config
from eval.IJB.report import FPRS, IjbScore, Results, format_table, roc_figure
from eval.merging import checkpoint_sort_key, mark_outdated, read_entries, result_keys, write_entries
from utils.errors import UserError
from utils.filesystem import path_exists, save_figure, write_atomic, write_files, write_text_atomic
from utils.logs.logger import log

_ADVICE = "free disk space, or name another --result-dir"


class IjbReport:
    """A command's results on one target, and the files that it writes."""

    def __init__(self, folder: Path, target: str, config: Config, digest: str) -> None:
        """digest: SHA-256 of the target's lists."""
        self.folder = folder
        self.target = target
        self.config = config
        self.digest = digest
        self.results: Results = {}
        self._unwritten: UserError | None = None  # error of writing scores, which are not kept in memory

    def result_keys(self, names: Iterable[str], weights: Path) -> dict[str, str]:
        """Returns by name the result keys of checkpoints in the folder `weights`.

        They differ from the keys of any other folder whose results are in the same results.json.
        """
        entries = read_entries(self.folder / "results.json").get(self.target, {})
        paths = {name: entry.get("checkpoint") for name, entry in entries.items() if isinstance(entry, dict)}
        folders = {name: Path(path).parent for name, path in paths.items() if isinstance(path, str)}
        return result_keys(names, folders, weights)

    def add(self, name: str, result: IjbScore, scores: np.ndarray) -> None:
        """Adds a checkpoint's result and the scores (P,) of all pairs, and writes all files.

        A later failure therefore loses no result. A file that cannot be written is logged; `finish` raises its error.
        """
        self.results[name] = result
        save = {self.folder / f"{name}_{self.target}.npy": partial(_save_array, scores)}
        try:
            write_files(save, _ADVICE)
        except UserError as error:
            self._unwritten = error
            log.warning(f"{error}")
        try:
            self.write()
        except UserError as error:
            log.warning(f"{error}")

    def finish(self) -> None:
        """Writes the files again. Raises UserError if one, or the scores of any checkpoint, could not be written."""
        self.write()
        if self._unwritten:
            raise self._unwritten

    def format_table(self) -> str:
        """Returns the table of these results and those of earlier commands."""
        return format_table(self.target, current_results(self._merge()[self.target]), self.config)

    def write(self) -> None:
        """Writes results.json, the table, and the figures of this command's curves.

        If some cannot be written, writes the others and then raises UserError.
        """
        merged, figure = self._merge(), roc_figure(self.target, self.results)
        table = format_table(self.target, current_results(merged[self.target]), self.config)
        writers: dict[Path, Callable[[Path], object]] = {
            self.folder / "results.json": lambda path: write_entries(path, merged),
            self.folder / f"{self.target}.txt": lambda path: write_text_atomic(path, table + "\n"),
        }
        for kind in ("png", "pdf"):
            writers[self.folder / f"{self.target}.{kind}"] = lambda path: save_figure(path, figure, dpi=120)
        write_files(writers, _ADVICE)

    def _merge(self) -> dict[str, Any]:
        """Returns the new content of results.json."""
        return merge_target(read_entries(self.folder / "results.json"), self.target, self.results, self.digest)


def _save_array(array: np.ndarray, path: Path) -> None:
    write_atomic(path, lambda file: np.save(file, array))


def merge_target(content: dict[str, Any], target: str, results: Results, digest: str) -> dict[str, Any]:
    """Returns the content of results.json, {target: {key: entry}}, with the target's new results, sorted by step.

    New results replace those of the same key. Old results of the target are marked as outdated if their checkpoint's
    file or the digest of the lists has changed. Other targets stay as they are.
    """
    old = {
        name: mark_outdated(entry, _existing_file(entry.get("checkpoint")), digest)
        if isinstance(entry, dict)
        else entry
        for name, entry in content.get(target, {}).items()
    }
    new = {name: result.asdict() for name, result in results.items()}
    return content | {target: dict(sorted((old | new).items(), key=lambda item: checkpoint_sort_key(item[0])))}


def _existing_file(path: object) -> Path | None:
    return Path(path) if isinstance(path, str) and path_exists(Path(path).is_file) else None


def current_results(entries: dict[str, Any]) -> Results:
    """Returns the results of a target, without outdated and malformed entries."""
    parsed = {
        name: _parse_entry(entry)
        for name, entry in entries.items()
        if isinstance(entry, dict) and "outdated" not in entry
    }
    return {name: result for name, result in parsed.items() if result is not None}


def _parse_entry(entry: dict[str, Any]) -> IjbScore | None:
    try:
        tpr = {fpr: float(entry["tpr"][f"{fpr:.0e}"]) for fpr in FPRS}
        if entry["identification"] is not None and not {"rank1", "rank5", "tpir"} <= entry["identification"].keys():
            return None
        return IjbScore(**(entry | {"tpr": tpr, "auc": float(entry["auc"]), "curve": None}))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
