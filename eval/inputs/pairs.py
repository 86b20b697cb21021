"""Reads the user's own pairs of photos from files in LFW style or with lines of path,path,same."""

import csv
import io
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.datasets.photos import IMAGE_SUFFIXES, open_photo
from utils.errors import UserError, one_line
from utils.filesystem import exists_as_non_folder, path_exists, write_text_atomic

_FLAGS = dict.fromkeys(("1", "true", "yes", "same"), True) | dict.fromkeys(("0", "false", "no", "different"), False)

Pair = tuple[Path, Path, bool]  # (photo, photo, same person)
PhotoOpener = Callable[[bytes], AbstractContextManager[NDArray[np.uint8]]]  # encoded photo -> RGB pixels

_FOLDER_PREFIX, _PAIRS_PREFIX = "folder:", "pairs:"  # by the option that the photos come from


@dataclass(frozen=True)
class PhotoPairs:
    """Pairs of photos. Each photo is listed once."""

    name: str
    paths: list[Path]  # M photos
    pairs: np.ndarray  # (N, 2) int64 indices into paths
    issame: np.ndarray  # (N,) bool
    notes: tuple[str, ...] = ()  # on files left out, for the log
    max_different: int | None = None  # number of different pairs that the folder allows; None for a pairs file
    opener: PhotoOpener = open_photo

    @classmethod
    def from_pairs(
        cls, name: str, pairs: list[Pair], notes: tuple[str, ...] = (), max_different: int | None = None
    ) -> "PhotoPairs":
        """Builds the set from pairs of paths, which may repeat photos."""
        index_of: dict[Path, int] = {}
        rows = [[index_of.setdefault(path, len(index_of)) for path in pair[:2]] for pair in pairs]
        flags = np.array([pair[2] for pair in pairs])
        indices = np.array(rows, np.int64).reshape(-1, 2)
        return cls(one_line(name), list(index_of), indices, flags, notes, max_different)

    def aligned(self, opener: "PhotoOpener") -> "PhotoPairs":
        """Returns the same pairs of photos, which `opener` aligns. Their name has the suffix -aligned."""
        return replace(self, name=f"{self.name}-aligned", opener=opener)

    @property
    def is_aligned(self) -> bool:
        """Whether the photos are aligned when they are opened."""
        return self.opener is not open_photo

    @property
    def prefix(self) -> str:
        """Prefix of the name among those of verification sets, as in "folder:lfw": a folder may be called so."""
        return _PAIRS_PREFIX if self.max_different is None else _FOLDER_PREFIX

    def write_csv(self, file: Path) -> None:
        """Writes the pairs as a CSV that --pairs reads, with absolute paths. Raises OSError."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["path1", "path2", "same"])
        for (first, second), same in zip(self.pairs, self.issame, strict=True):
            writer.writerow([self.paths[first].absolute(), self.paths[second].absolute(), int(same)])
        write_text_atomic(file, text.getvalue())

    def more_pairs_hint(self, different: int) -> str:
        """Tells how to get that many pairs of different people."""
        if self.max_different is None:
            return "add pairs to the --pairs file"
        if different <= self.max_different:
            return f"--n-pairs {2 * different} makes them"
        return f"these photos make {self.max_different:,} at most: add photos of more people"


def is_own_set(name: str) -> bool:
    """Whether the name of a set has the prefix of the user's own photos."""
    return name.startswith((_FOLDER_PREFIX, _PAIRS_PREFIX))


def read_pairs(file: Path, images: Path | None = None) -> PhotoPairs:
    """Reads pairs from a file or a pipe. A comma in the first line makes it a CSV.

    CSV: `path,path,same`, where same is 1 or 0 (also true, yes, same and their opposites); spaces or tabs may replace
    the commas. Paths are relative to `images`, by default to the file's folder (for a pipe: the working folder).
    LFW style: `name 1 2` is a pair of one person, `name 1 other 3` of two; the photos are images/name/name_0001.jpg (or
    .png, …). The first line may be a count.

    Raises UserError that names the file and the line.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig", "surrogateescape")  # file names may not be UTF-8
        is_pipe = not stat.S_ISREG(file.stat().st_mode)
    except OSError as error:
        raise UserError(f"--pairs {file}: {error.strerror}", fix="name a pairs file") from None
    if images is not None and not path_exists(images.is_dir):
        raise UserError(f"--images {images}: no such folder")
    folder = images or (Path() if is_pipe else file.parent)
    pairs: list[Pair] = []
    first = True
    for number, row in _iter_rows(text):
        try:
            if isinstance(row, list):
                pair = _parse_path_pair(row, folder, first)
            else:
                pair = _parse_line(row, folder, images, first)
        except UserError as error:
            if not pairs and any("\udc80" <= char <= "\udcff" for char in text[:4096]):
                raise UserError(
                    f"--pairs {file}: is not text", fix="it should be an LFW-style pairs file or a CSV"
                ) from None
            raise UserError(f"{file} line {number}: {error.problem}", error.fix) from None
        pairs += [pair] if pair else []
        first = False
    if not pairs:
        raise UserError(f"--pairs {file}: {'is empty' if first else 'holds no pairs'}")
    return PhotoPairs.from_pairs("pairs" if is_pipe else file.stem, pairs)


def _iter_rows(text: str) -> Iterator[tuple[int, list[str] | str]]:
    """Yields the number and content of each line that is not blank.

    The content is a list of fields if the first line has a comma, else a string. A CSV field may contain line breaks.
    """
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


def _parse_path_pair(fields: list[str], folder: Path, first: bool) -> Pair | None:
    """Parses `path, path, same`. None for a header, which only the first row can be."""
    flag = fields[2].lower() if len(fields) == 3 else ""
    if first and len(fields) == 3 and (flag == "same" or flag not in _FLAGS):  # "same" may be a flag or a column name
        photos = [folder / field for field in fields[:2]]
        if not any(path.suffix.lower() in IMAGE_SUFFIXES or path_exists(path.is_file) for path in photos):
            return None
    if flag not in _FLAGS:
        raise UserError(f"should read path,path,same with 1 or 0 for same, reads {','.join(fields)[:80]!r}")
    photo1, photo2 = (_check_photo(folder / field) for field in fields[:2])
    return photo1, photo2, _FLAGS[flag]


def _parse_line(line: str, folder: Path, images: Path | None, first: bool) -> Pair | None:
    """Parses a line without commas. None for a header or the counts of folds and pairs, which only the first can be."""
    fields = [field.strip() for field in line.strip().split("\t")] if "\t" in line else line.split()
    if first and len(fields) <= 2 and all(field.isdecimal() for field in fields):
        return None
    numbers = [field.isdecimal() for field in fields]
    is_header = first and all(field.isidentifier() for field in fields)
    if len(fields) == 3 and not (numbers[1] and numbers[2]) and (fields[2].lower() in _FLAGS or is_header):
        return _parse_path_pair(fields, folder, first)
    if len(fields) == 3:
        fields, numbers = [*fields[:2], fields[0], fields[2]], [*numbers[:2], numbers[0], numbers[2]]
    if len(fields) != 4 or not (numbers[1] and numbers[3]):
        raise UserError(
            f"should read 'name 1 2', 'name 1 other 3' or 'path path 1' (with tabs between names that have spaces), "
            f"reads {line.strip()[:80]!r}"
        )
    if images is None:
        raise UserError("an LFW-style file needs the folder of its photos, --images DIR")
    photo1, photo2 = (_numbered_photo(images, fields[i], fields[i + 1]) for i in (0, 2))
    return photo1, photo2, fields[0] == fields[2]


def _numbered_photo(folder: Path, name: str, number: str) -> Path:
    """Returns the photo folder/name/name_0001 with any known suffix. Raises UserError if there is none."""
    stem = folder / name / f"{name}_{number.lstrip('0').zfill(4)}"
    suffixes = [spelling for suffix in IMAGE_SUFFIXES for spelling in (suffix, suffix.upper(), suffix.title())]
    candidates = [stem.with_name(stem.name + suffix) for suffix in suffixes]
    return next((path for path in candidates if path_exists(path.is_file)), None) or _check_photo(candidates[0])


def _check_photo(path: Path) -> Path:
    """Returns the path. Raises UserError if it is not a regular file."""
    if not path_exists(path.is_file):
        name = one_line(path)
        raise UserError(f"{name} is not a regular file" if exists_as_non_folder(path) else f"no photo {name}")
    return path
