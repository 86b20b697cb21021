"""Writes the files of an evaluation. results.json and thresholds.json keep the results of earlier commands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from config.base import Config
from eval.folders import is_run_folder
from eval.inputs.pairs import PhotoPairs
from eval.inputs.sets import VerificationSet
from eval.merging import Entries, folders_by_key, merge_entries, result_keys, write_entries
from eval.reporting.report import Results, format_tables, format_thresholds, roc_figure, to_entries
from eval.scoring import Score
from utils.checkpoints.weights import backbone_name
from utils.errors import UserError
from utils.filesystem import save_figure, sha256, write_files, write_text_atomic
from utils.logs.logger import log


class Report:
    """The scores of a command's checkpoints, and the files that it writes."""

    def __init__(
        self,
        folder: Path,
        weights: Path,
        sets: list[VerificationSet],
        config: Config | None = None,
        photos: PhotoPairs | None = None,
    ) -> None:
        """folder: for the results. weights: the checkpoints' folder. config: None if no published results exist."""
        self.folder = folder
        self.weights = weights
        self.sets = {eval_set.name: eval_set for eval_set in sets}
        self.config = config
        self.photos = photos
        self.scores: dict[str, dict[str, Score]] = {}
        self.sha256: dict[str, str] = {}
        suffix = f"_{photos.name}".replace("/", "_") if photos else ""
        self.json_path, self.txt_path, self.png_path = (
            folder / f"{name}{suffix}.{kind}"
            for name, kind in (("results", "json"), ("results", "txt"), ("roc", "png"))
        )
        self.csv_path = folder / f"pairs{suffix}.csv" if photos and photos.max_different is not None else None
        self.thresholds_path = folder / "thresholds.json"  # `write` sets where they were written

    def add(self, path: Path, scores: dict[str, Score]) -> None:
        """Adds a checkpoint's scores by set name."""
        name = backbone_name(path)
        self.scores[name] = scores
        self.sha256[name] = sha256(path)

    def entries(self) -> Entries:
        """Returns the entries of this command, merged with those of results.json for other checkpoints and sets."""
        return self._merge_with(self.json_path, to_entries(self.scores))

    def format_tables(self) -> str:
        """Returns the tables of results.txt."""
        hint = self.photos.more_pairs_hint if self.photos else None
        return format_tables(self.entries(), self.config, hint)

    def format_thresholds(self) -> str:
        """Returns the table of thresholds, empty if there are too few pairs for any."""
        warnings = {name: eval_set.warning for name, eval_set in self.sets.items()}
        return format_thresholds(self._scores_by_key(), warnings)

    def write(self) -> None:
        """Writes all files. If some cannot be written, writes the others and then raises UserError."""
        entries, figure = self.entries(), roc_figure(self._scores_by_key())
        hint = self.photos.more_pairs_hint if self.photos else None
        writers: dict[Path, Callable[[Path], object]] = {
            self.json_path: lambda path: write_entries(path, entries),
            self.txt_path: lambda path: write_text_atomic(path, format_tables(entries, self.config, hint) + "\n"),
            self.png_path: lambda path: save_figure(path, figure, dpi=120),
            self.folder / "thresholds.json": self._write_thresholds,
        }
        if self.csv_path and self.photos:
            writers[self.csv_path] = self.photos.write_csv
        write_files(writers, "free disk space, or name another folder with test_output=FOLDER")

    def _write_thresholds(self, fallback: Path) -> None:
        """Writes thresholds.json to the checkpoints' folder if a run of this project wrote that folder and it can be
        written, else to the results' folder (`fallback`)."""
        preferred = self.weights / fallback.name
        # Respects a folder that is marked read-only even where root could write it.
        if is_run_folder(self.weights) and self.weights.stat().st_mode & 0o222:
            try:
                self.thresholds_path = self._write_thresholds_to(preferred)
                return
            except OSError as error:
                if preferred == fallback:
                    raise
                log.warning(f"{preferred} cannot be written: {error.strerror}")
        self.thresholds_path = self._write_thresholds_to(fallback)

    def _write_thresholds_to(self, path: Path) -> Path:
        hint = self.photos.more_pairs_hint if self.photos else None
        prefix = self.photos.prefix if self.photos else ""
        entries = {
            step: {prefix + name: to_thresholds_entry(score, hint) for name, score in sets.items()}
            for step, sets in self.scores.items()
        }
        write_entries(path, self._merge_with(path, entries, prefix))
        return path

    def _scores_by_key(self) -> Results:
        """Returns the scores of this command by their keys in results.json."""
        keys = result_keys(self.scores, folders_by_key(self.json_path, self.weights), self.weights)
        return {keys[step]: sets for step, sets in self.scores.items()}

    def _merge_with(self, path: Path, new: Entries, prefix: str = "") -> Entries:
        """Adds checksums and the set's warning to new entries and merges them with those of a file.

        prefix: what precedes the names of the sets in that file.
        """
        stamped = {
            step: {name: self._provenance(step, name.removeprefix(prefix)) | entry for name, entry in sets.items()}
            for step, sets in new.items()
        }
        digests = {prefix + name: eval_set.digest for name, eval_set in self.sets.items()}
        return merge_entries(path, stamped, self.weights, digests)

    def _provenance(self, step: str, name: str) -> dict[str, str]:
        """Returns the checksums of the checkpoint and of the set's pairs, and the set's warning if there is one."""
        eval_set = self.sets[name]
        warning = {"warning": eval_set.warning} if eval_set.warning else {}
        return warning | {"sha256": self.sha256[step], "pairs_sha256": eval_set.digest}


def to_thresholds_entry(score: Score, more_pairs_hint: Callable[[int], str] | None = None) -> dict[str, Any]:
    """Returns the entry of thresholds.json: by FAR, the threshold as cosine and as squared distance with its FAR and
    FRR, or why there is none. more_pairs_hint: tells how to get that many pairs of different people."""
    entry: dict[str, Any] = {"pairs": score.pairs, "different": score.different}
    for far, point in score.operating_points.items():
        needed = round(1 / far)
        entry[f"{far:.0e}"] = (
            f"needs at least {needed} different pairs" + (f"; {more_pairs_hint(needed)}" if more_pairs_hint else "")
            if point is None
            else {
                "cosine": point.threshold,  # the same person at or above
                "squared_distance": 2 - 2 * point.threshold,  # of normalised embeddings; the same person below
                "far": point.far,
                "frr": point.frr,
            }
        )
    return entry


def raise_failed(failed: dict[Path, UserError], total: int) -> None:
    """Raises UserError with the files and reasons if any of the `total` checkpoints could not be scored."""
    if failed and total == 1:
        raise next(iter(failed.values()))
    if failed:
        reasons = "; ".join(str(error) for error in list(failed.values())[:3])
        more = ", ".join(path.name for path in list(failed)[3:])
        raise UserError(
            f"{len(failed)} of {total} checkpoints could not be scored: {reasons}"
            + (f"; also {more}: see test.log" if more else "")
        )
