"""The files of an IJB evaluation: results.json, merged with what earlier commands left, table, pictures and scores."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from easydict import EasyDict

from eval.IJB.report import FPRS, IjbScore, Results, format_table, roc_figure
from eval.merging import by_step, keys_of, mark, read_entries, replace_entries
from utils.errors import UserError
from utils.filesystem import path_exists, save_figure, write_atomic, write_files, write_text_atomic
from utils.logs.run_log import log

_ADVICE = "make room, or name another --result-dir"


class Report:
    """What a command finds out about one target, and the files that it leaves."""

    def __init__(self, folder: Path, target: str, config: EasyDict, digest: str) -> None:
        """digest: of the target's lists."""
        self.folder = folder
        self.target = target
        self.config = config
        self.digest = digest
        self.results: Results = {}
        self._unwritten: UserError | None = None  # the scores of a checkpoint, which are not kept in memory

    def keys_of(self, names: Iterable[str], weights: Path) -> dict[str, str]:
        """What the results of checkpoints in the folder `weights` are called, by the checkpoints' names: another
        network that was scored into the same folder keeps its own."""
        entries = read_entries(self.folder / "results.json").get(self.target, {})
        paths = {name: entry.get("checkpoint") for name, entry in entries.items() if isinstance(entry, dict)}
        owners = {name: Path(path).parent for name, path in paths.items() if isinstance(path, str)}
        return keys_of(names, owners, weights)

    def add(self, name: str, result: IjbScore, scores: np.ndarray) -> None:
        """Take a checkpoint's result and the scores (P,) of all pairs, and write all files, so that what follows cannot
        lose them. What cannot be written now is told by `finish`."""
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
        """Write the files once more. Raises UserError where one, or the scores of a checkpoint, cannot be written."""
        self.write()
        if self._unwritten:
            raise self._unwritten

    def format_table(self) -> str:
        """The table of these results and those of earlier commands."""
        return format_table(self.target, readable(self._merged()[self.target]), self.config)

    def write(self) -> None:
        """Write results.json, the table, and the pictures of this command's curves. Raises UserError where a file
        cannot be written, after the others."""
        merged, figure = self._merged(), roc_figure(self.target, self.results)
        table = format_table(self.target, readable(merged[self.target]), self.config)
        writers: dict[Path, Callable[[Path], object]] = {
            self.folder / "results.json": lambda path: replace_entries(path, merged),
            self.folder / f"{self.target}.txt": lambda path: write_text_atomic(path, table + "\n"),
        }
        for kind in ("png", "pdf"):
            writers[self.folder / f"{self.target}.{kind}"] = lambda path: save_figure(path, figure, dpi=120)
        write_files(writers, _ADVICE)

    def _merged(self) -> dict[str, Any]:
        return merge(read_entries(self.folder / "results.json"), self.target, self.results, self.digest)


def _save_array(array: np.ndarray, path: Path) -> None:
    write_atomic(path, lambda file: np.save(file, array))


def merge(found: dict[str, Any], target: str, results: Results, digest: str) -> dict[str, Any]:
    """The content of results.json, {target: {checkpoint: numbers}}, with new results in place of those of the same
    name, in the order of steps.

    Other targets stay as they are. Of this one, results whose checkpoint's file is no longer what it was, or whose
    lists are not by their digest, are marked as outdated.
    """
    kept = {
        name: mark(entry, _existing(entry.get("checkpoint")), digest) if isinstance(entry, dict) else entry
        for name, entry in found.get(target, {}).items()
    }
    new = {name: result.asdict() for name, result in results.items()}
    return found | {target: dict(sorted((kept | new).items(), key=lambda item: by_step(item[0])))}


def _existing(path: object) -> Path | None:
    return Path(path) if isinstance(path, str) and path_exists(Path(path).is_file) else None


def readable(entries: dict[str, Any]) -> Results:
    """Those results of a target that are not outdated, and are as this version writes them."""
    read = {
        name: _read(entry) for name, entry in entries.items() if isinstance(entry, dict) and "outdated" not in entry
    }
    return {name: result for name, result in read.items() if result is not None}


def _read(entry: dict[str, Any]) -> IjbScore | None:
    try:
        tpr = {fpr: float(entry["tpr"][f"{fpr:.0e}"]) for fpr in FPRS}
        if entry["identification"] is not None and not {"rank1", "rank5", "tpir"} <= entry["identification"].keys():
            return None
        return IjbScore(**(entry | {"tpr": tpr, "auc": float(entry["auc"]), "curve": None}))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
