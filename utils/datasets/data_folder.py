"""Checks that a folder holds training files, and explains what to do where it holds something else."""

from itertools import islice
from pathlib import Path

from utils.datasets.image_header import SUFFIXES
from utils.errors import UserError
from utils.filesystem import path_exists

NEEDED = "training needs train.rec, train.idx and property (data/README.md)"


def check_training_files(folder: Path) -> None:
    """Raises UserError unless train.rec and train.idx exist; the message says what the folder holds and what to do."""
    rec, idx = folder / "train.rec", folder / "train.idx"
    if not path_exists(rec.exists):
        found, fix = _describe(folder)
        raise UserError(f"{rec}: No such file: {found}", fix)
    if not path_exists(idx.exists):
        raise UserError(f"{idx}: No such file", fix=f"make it from the records: python data/reindex.py {folder}")


def _describe(folder: Path) -> tuple[str, str]:
    """Returns what the folder holds instead of train.rec, and what to do about it."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        return f"{folder} cannot be listed ({error.strerror})", NEEDED
    subfolders = [path for path in paths if path_exists(path.is_dir)]
    if nested := [path for path in subfolders if path_exists((path / "train.rec").is_file)]:
        return f"but {nested[0]} has one", f"type rec={nested[0]}"
    if records := [path.name for path in paths if path.suffix == ".rec"]:
        return f"but there is {records[0]!a:.60}", f"{NEEDED}: rename it and its .idx to train.rec and train.idx"
    if photo := next((path for path in paths if path.suffix.lower() in SUFFIXES), None) or _find_photo(subfolders):
        shown = str(photo.relative_to(folder))
        return (
            f"there are photos ({shown!a:.60})",
            f"{NEEDED}: pack aligned 112×112 photos, one folder per person, with "
            f"python data/pack.py {folder} OUT, and type rec=OUT",
        )
    if sets := [path.name for path in paths if path.suffix == ".bin"]:
        return (
            f"there are only verification sets ({', '.join(sets)!a:.60}), which eval/eval.py scores",
            f"{NEEDED}: put them there too, or name their folder with rec=FOLDER",
        )
    return NEEDED, "put them there, or name their folder with rec=FOLDER"


def _find_photo(folders: list[Path]) -> Path | None:
    """Returns a photo from one of the first 20 folders, None where there is none. There may be 100,000 folders."""
    for folder in folders[:20]:
        try:
            photos = [path for path in islice(folder.iterdir(), 1000) if path.suffix.lower() in SUFFIXES]
        except OSError:
            continue
        if photos:
            return min(photos)
    return None
