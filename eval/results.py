"""The files of an evaluation: results.json and thresholds.json, merged with those of earlier commands, and the rest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from easydict import EasyDict

from eval.folders import is_run
from eval.inputs.pairs import PhotoPairs
from eval.inputs.sets import VerificationSet
from eval.merging import Entries, keys_of, merge, owners_of, replace_entries
from eval.report import Results, entries_of, format_tables, format_thresholds, roc_figure
from eval.scoring import Score
from utils.checkpoints.weights import backbone_name
from utils.errors import UserError
from utils.filesystem import save_figure, sha256, write_files, write_text_atomic
from utils.logs.run_log import log


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
        return self._merged(self.json, entries_of(self.scores))

    def format_tables(self) -> str:
        """The tables of results.txt."""
        return format_tables(self.entries(), self.config, self.photos.how_to_get if self.photos else None)

    def format_thresholds(self) -> str:
        """The table of thresholds; empty where the pairs can tell none."""
        return format_thresholds(self._named(), {name: held.warning for name, held in self.sets.items()})

    def write(self) -> None:
        """Write all files. Raises UserError, after those that can be written, where one cannot."""
        entries, figure = self.entries(), roc_figure(self._named())
        advice = self.photos.how_to_get if self.photos else None
        writers: dict[Path, Callable[[Path], object]] = {
            self.json: lambda path: replace_entries(path, entries),
            self.txt: lambda path: write_text_atomic(path, format_tables(entries, self.config, advice) + "\n"),
            self.png: lambda path: save_figure(path, figure, dpi=120),
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
        # "folder:lfw", as a folder of photos may be called as a verification set is.
        source = f"{self.photos.source}:" if self.photos else ""
        found = {
            step: {source + name: thresholds_of(score, advice) for name, score in sets.items()}
            for step, sets in self.scores.items()
        }
        replace_entries(path, self._merged(path, found, source))
        return path

    def _named(self) -> Results:
        """The scores of this command, by the names that their checkpoints have in results.json."""
        keys = keys_of(self.scores, owners_of(self.json, self.weights), self.weights)
        return {keys[step]: sets for step, sets in self.scores.items()}

    def _merged(self, path: Path, new: Entries, source: str = "") -> Entries:
        """New entries, each with what it was made of and the warning of its set, in place among those of a file.

        source: what stands before the names of the sets there.
        """
        signed = {
            step: {name: self._made_of(step, name.removeprefix(source)) | entry for name, entry in sets.items()}
            for step, sets in new.items()
        }
        return merge(path, signed, self.weights, {source + name: held.digest for name, held in self.sets.items()})

    def _made_of(self, step: str, name: str) -> dict[str, str]:
        held = self.sets[name]
        warning = {"warning": held.warning} if held.warning else {}
        return warning | {"sha256": self.sha256[step], "pairs_sha256": held.digest}


def thresholds_of(score: Score, advice: Callable[[int], str] | None = None) -> dict[str, Any]:
    """By FAR: the threshold as cosine and as squared distance, and what it costs; or why there is none."""
    entry: dict[str, Any] = {"pairs": score.pairs, "different": score.different}
    for far, point in score.operating_points.items():
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
