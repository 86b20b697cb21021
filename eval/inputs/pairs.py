"""People's own pairs of photos, and the files that name them: in LFW's style, or of path, path, same."""

import csv
import io
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.inputs.photos import IMAGE_SUFFIXES
from utils.errors import UserError, one_line
from utils.filesystem import is_no_folder, path_exists, write_atomic

_FLAGS = dict.fromkeys(("1", "true", "yes", "same"), True) | dict.fromkeys(("0", "false", "no", "different"), False)

Pair = tuple[Path, Path, bool]  # true: the same person


@dataclass(frozen=True)
class PhotoPairs:
    """Pairs of photos, each photo named once."""

    name: str
    paths: list[Path]  # M photos
    pairs: np.ndarray  # (N, 2) int64, their places in paths
    issame: np.ndarray  # (N,) bool
    notes: tuple[str, ...] = ()  # what was left out, for the log
    most_different: int | None = None  # pairs of different people that the folder could make; None: pairs of a file

    @classmethod
    def of(
        cls, name: str, pairs: list[Pair], notes: tuple[str, ...] = (), most_different: int | None = None
    ) -> "PhotoPairs":
        """The pairs, each photo met again named once."""
        places: dict[Path, int] = {}
        rows = [[places.setdefault(path, len(places)) for path in pair[:2]] for pair in pairs]
        flags = np.array([pair[2] for pair in pairs])
        return cls(one_line(name), list(places), np.array(rows, np.int64).reshape(-1, 2), flags, notes, most_different)

    @property
    def source(self) -> str:
        """The option that they are from: folder or pairs."""
        return "pairs" if self.most_different is None else "folder"

    def write(self, file: Path) -> None:
        """Write them as a CSV that --pairs reads. Raises OSError."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["path1", "path2", "same"])
        for (first, second), same in zip(self.pairs, self.issame, strict=True):
            writer.writerow([self.paths[first].absolute(), self.paths[second].absolute(), int(same)])
        content = text.getvalue().encode("utf-8", "surrogateescape")  # names may hold bytes that are no UTF-8
        write_atomic(file, lambda stream: stream.write(content))

    def how_to_get(self, different: int) -> str:
        """What gives so many pairs of different people."""
        if self.most_different is None:
            return "add pairs to the --pairs file"
        if different <= self.most_different:
            return f"--n-pairs {2 * different} makes them"
        return f"these photos make {self.most_different:,} at most: add photos of more people"


def read_pairs(file: Path, images: Path | None = None) -> PhotoPairs:
    """Read the pairs of a file or a pipe; its first line shows whether it is a CSV (which has commas).

    CSV: `path,path,same`, same being 1 or 0 (also true, yes, same); spaces or tabs may stand for the commas. Paths are
    relative to IMAGES, or else to the file's folder (of a pipe: the working folder). LFW style: `name 1 2` is one
    person, `name 1 other 3` two; the photos are IMAGES/name/name_0001.jpg (or .png, …). Its first line may be a count.

    Raises UserError naming file and line.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig", "surrogateescape")  # file names may hold bytes that are no UTF-8
        is_pipe = not stat.S_ISREG(file.stat().st_mode)
    except OSError as error:
        raise UserError(f"--pairs {file}: {error.strerror}; name a pairs file") from None
    if images is not None and not path_exists(images.is_dir):
        raise UserError(f"--images {images}: no such folder")
    folder = images or (Path() if is_pipe else file.parent)
    pairs: list[Pair] = []
    first = True
    for number, row in _rows(text):
        try:
            pair = _path_pair(row, folder, first) if isinstance(row, list) else _line_pair(row, folder, images, first)
        except UserError as error:
            if not pairs and any("\udc80" <= char <= "\udcff" for char in text[:4096]):
                raise UserError(f"--pairs {file}: is not text; it should be an LFW-style pairs file or a CSV") from None
            raise UserError(f"{file} line {number}: {error}") from None
        pairs += [pair] if pair else []
        first = False
    if not pairs:
        raise UserError(f"--pairs {file}: {'is empty' if first else 'holds no pairs'}")
    return PhotoPairs.of("pairs" if is_pipe else file.stem, pairs)


def _rows(text: str) -> Iterator[tuple[int, list[str] | str]]:
    """The lines that are not blank, each with its number: as fields where the first has a comma. A field of a CSV may
    have line breaks in it."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if "," not in next((line for line in lines if line.strip()), ""):
        yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
        return
    reader = csv.reader(io.StringIO(text, newline=""))
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:  # a field of more than 128 KiB
            fields = [str(error)]
        if fields is None:
            return
        if any(field.strip() for field in fields):
            yield number, [field.strip() for field in fields]


def _path_pair(fields: list[str], folder: Path, first: bool) -> Pair | None:
    """None for a header."""
    flag = fields[2].lower() if len(fields) == 3 else ""
    if first and len(fields) == 3 and (flag == "same" or flag not in _FLAGS):  # "same" may be a flag or a column
        photos = [folder / field for field in fields[:2]]
        if not any(path.suffix.lower() in IMAGE_SUFFIXES or path_exists(path.is_file) for path in photos):
            return None
    if flag not in _FLAGS:
        raise UserError(f"should read path,path,same with 1 or 0 for same, reads {','.join(fields)[:80]!r}")
    one, other = (_existing(folder / field) for field in fields[:2])
    return one, other, _FLAGS[flag]


def _line_pair(line: str, folder: Path, images: Path | None, first: bool) -> Pair | None:
    """A line without commas; None for the count of folds and pairs in the first one, and for a header."""
    fields = [field.strip() for field in line.strip().split("\t")] if "\t" in line else line.split()
    if first and len(fields) <= 2 and all(field.isdecimal() for field in fields):
        return None
    numbers = [field.isdecimal() for field in fields]
    is_header = first and all(field.isidentifier() for field in fields)
    if len(fields) == 3 and not (numbers[1] and numbers[2]) and (fields[2].lower() in _FLAGS or is_header):
        return _path_pair(fields, folder, first)
    if len(fields) == 3:
        fields, numbers = [*fields[:2], fields[0], fields[2]], [*numbers[:2], numbers[0], numbers[2]]
    if len(fields) != 4 or not (numbers[1] and numbers[3]):
        raise UserError(
            f"should read 'name 1 2', 'name 1 other 3' or 'path path 1' (with tabs between names that have spaces), "
            f"reads {line.strip()[:80]!r}"
        )
    if images is None:
        raise UserError("an LFW-style file needs the folder of its photos, --images DIR")
    one, other = (_numbered(images, fields[i], fields[i + 1]) for i in (0, 2))
    return one, other, fields[0] == fields[2]


def _numbered(folder: Path, name: str, number: str) -> Path:
    stem = folder / name / f"{name}_{number.lstrip('0').zfill(4)}"
    suffixes = [spelled for suffix in IMAGE_SUFFIXES for spelled in (suffix, suffix.upper(), suffix.title())]
    candidates = [stem.with_name(stem.name + suffix) for suffix in suffixes]
    return next((path for path in candidates if path_exists(path.is_file)), None) or _existing(candidates[0])


def _existing(path: Path) -> Path:
    if not path_exists(path.is_file):
        name = one_line(path)
        raise UserError(f"{name} is not a regular file" if is_no_folder(path) else f"no photo {name}")
    return path
