"""What stands in a folder that should hold training images, and what to do where that is something else."""

from itertools import islice
from pathlib import Path

from utils.datasets.image_header import SUFFIXES
from utils.errors import UserError
from utils.filesystem import path_exists

NEEDED = "training takes train.rec, train.idx and property (data/README.md)"


def check_training_files(folder: Path) -> None:
    """Raise UserError unless train.rec and train.idx are there, with what is there instead and what to do next."""
    rec, idx = folder / "train.rec", folder / "train.idx"
    if not path_exists(rec.exists):
        raise UserError(f"{rec}: No such file: {_describe(folder)}")
    if not path_exists(idx.exists):
        raise UserError(f"{idx}: No such file; make it from the records: python data/reindex.py {folder}")


def _describe(folder: Path) -> str:
    """Return what the folder holds instead of train.rec, and what to do about it."""
    try:
        names = sorted(folder.iterdir())
    except OSError as error:
        return f"{folder} cannot be listed ({error.strerror}); {NEEDED}"
    folders = [path for path in names if path_exists(path.is_dir)]
    if nested := [path for path in folders if path_exists((path / "train.rec").is_file)]:
        return f"but {nested[0]} has one; type rec={nested[0]}"
    if records := [path.name for path in names if path.suffix == ".rec"]:
        return f"but there is {records[0]!a:.60}; {NEEDED}: rename it and its .idx to train.rec and train.idx"
    if photo := next((path for path in names if path.suffix.lower() in SUFFIXES), None) or _photo_in(folders):
        shown = str(photo.relative_to(folder))
        return (
            f"there are photos ({shown!a:.60}); {NEEDED}: pack aligned 112×112 photos, a folder a person, with "
            f"python data/pack.py {folder} OUT, and type rec=OUT"
        )
    if sets := [path.name for path in names if path.suffix == ".bin"]:
        return (
            f"there are verification sets alone ({', '.join(sets)!a:.60}), which eval/eval.py scores; {NEEDED}: put "
            "them there too, or name their folder with rec=FOLDER"
        )
    return f"{NEEDED}; put them there, or name their folder with rec=FOLDER"


def _photo_in(folders: list[Path]) -> Path | None:
    """Return a photo in one of the first folders, of which there may be 100,000."""
    for folder in folders[:20]:
        try:
            found = [path for path in islice(folder.iterdir(), 1000) if path.suffix.lower() in SUFFIXES]
        except OSError:
            continue
        if found:
            return min(found)
    return None
