"""The lists of an IJB-B or IJB-C folder: images and their landmarks, templates, pairs, galleries and probes.

meta/ijbc_name_5pts_score.txt        file, five landmarks x y, detector score: a line an image
meta/ijbc_face_tid_mid.txt           file, template, medium: the same images in the same order
meta/ijbc_template_pair_label.txt    template, template, 1 for the same person
meta/ijbc_1N_gallery_G1.csv, …       TEMPLATE_ID, SUBJECT_ID, …: optional, for identification
"""

import csv
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.errors import UserError
from utils.filesystem import open_regular_file, path_exists

TARGETS = ("IJBB", "IJBC")
SKIP = "--skip-missing leaves such out and counts them"
_ENCODING = "utf-8-sig"  # with or without a byte-order mark
_GALLERIES = {"IJBB": ("gallery_S1", "gallery_S2"), "IJBC": ("gallery_G1", "gallery_G2")}


class Images(NamedTuple):
    """The faces of a set, one a line of its lists."""

    source: Path  # the list of landmarks
    names: np.ndarray  # (N,) str, files in loose_crop
    landmarks: np.ndarray  # (N, 5, 2) float32, x and y in pixels of the file
    det_scores: np.ndarray  # (N,) float32, how sure the detector is
    templates: np.ndarray  # (N,) int64
    media: np.ndarray  # (N,) int64


class Pairs(NamedTuple):
    """Templates to compare, by their places in the ascending ids of all templates."""

    first: np.ndarray  # (P,) int32
    second: np.ndarray  # (P,) int32
    same: np.ndarray  # (P,) bool


class Subjects(NamedTuple):
    """The people of some templates: a gallery, or probes."""

    templates: np.ndarray  # (T,) int64 places in the ascending ids of all templates, each once
    subjects: np.ndarray  # (T,) int64
    skipped: int  # templates of the list that have no image, left out


@dataclass
class Protocol:
    """A whole set's lists, and how much of them is left out."""

    images: Images
    template_ids: np.ndarray  # (T,) int64 ascending
    pairs: Pairs
    galleries: list[Subjects]  # none where the set comes without lists for identification
    probes: Subjects | None
    skipped_pairs: int  # with a template that has no image


def read_protocol(folder: Path, target: str, skip_missing: bool = False) -> Protocol:
    """Reads and checks the lists of IJBB or IJBC. Raises UserError naming file and line.

    skip_missing: leave out what names a template that has no image.
    """
    if not path_exists((folder / "loose_crop").is_dir) or not path_exists((folder / "meta").is_dir):
        raise UserError(
            f"--image-path {str(folder)!r}: no folders loose_crop and meta in it; name an IJB set as InsightFace "
            "distributes it, or make one: python data/make_demo_ijb.py"
        )
    prefix = folder / "meta" / target.lower()
    images = read_images(Path(f"{prefix}_name_5pts_score.txt"), Path(f"{prefix}_face_tid_mid.txt"))
    ids = np.unique(images.templates)
    pairs, skipped = read_pairs(Path(f"{prefix}_template_pair_label.txt"), ids, skip_missing)
    lists = [Path(f"{prefix}_1N_{name}.csv") for name in (*_GALLERIES[target], "probe_mixed")]
    if not all(path_exists(path.exists) for path in lists):
        return Protocol(images, ids, pairs, [], None, skipped)
    *galleries, probes = (read_subjects(path, ids, skip_missing) for path in lists)
    return Protocol(images, ids, pairs, galleries, probes, skipped)


def read_images(landmark_list: Path, template_list: Path) -> Images:
    """Both lists of images. Raises UserError where they are not of the same images in the same order."""
    form = "file x1 y1 x2 y2 x3 y3 x4 y4 x5 y5 score"
    found = _table(landmark_list, [("name", object), ("numbers", np.float32, (11,))], form, _is_detection)
    known = _table(
        template_list,
        [("name", object), ("template", np.int64), ("medium", np.int64)],
        "file template medium",
        lambda fields: len(fields) == 3 and all(_whole(field) is not None for field in fields[1:]),
    )
    numbers = found["numbers"]
    if not np.isfinite(numbers).all():
        raise UserError(_malformed(landmark_list, form, _is_detection))
    differing = found["name"][: len(known)] != known["name"][: len(found)]
    if len(found) != len(known) or differing.any():
        row = int(np.argmax(differing)) if differing.any() else min(len(found), len(known))
        raise UserError(
            f"{template_list} line {line_of(template_list, row)}: {_name(known, row)}, but "
            f"line {line_of(landmark_list, row)} of {landmark_list.name}: {_name(found, row)}; both lists should have "
            "the same images in the same order"
        )
    landmarks = numbers[:, :10].reshape(-1, 5, 2)
    broken = np.ptp(landmarks, axis=1).max(axis=1) <= 0
    if broken.any():
        row = int(np.argmax(broken))
        where = f"{landmark_list} line {line_of(landmark_list, row)}"
        raise UserError(f"{where}: {found['name'][row]}: its landmarks are all in one point")
    return Images(landmark_list, found["name"], landmarks, numbers[:, 10], known["template"], known["medium"])


def read_pairs(path: Path, ids: np.ndarray, skip_missing: bool = False) -> tuple[Pairs, int]:
    """The pairs of templates, whose ascending ids are given, and how many were left out.

    Raises UserError where a template has no image (unless such pairs are to be skipped), or a kind of pair is lacking.
    """
    form = "template template label"

    def fits(fields: list[str]) -> bool:
        return len(fields) == 3 and all(_whole(field, 32) is not None for field in fields)

    table = _table(path, np.int32, form, fits)
    if table.shape[1] != 3:
        raise UserError(_malformed(path, form, fits))
    wrong = (table[:, 2] != 0) & (table[:, 2] != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        where = f"{path} line {line_of(path, row)}"
        raise UserError(f"{where}: label {table[row, 2]}, should be 1 (the same person) or 0")
    places = np.searchsorted(ids, table[:, :2]).astype(np.int32)
    np.minimum(places, len(ids) - 1, out=places)
    known = (ids[places] == table[:, :2]).all(axis=1)
    if not known.all() and not skip_missing:
        row = int(np.argmin(known))
        template = table[row, int(ids[places[row, 0]] == table[row, 0])]
        raise UserError(f"{path} line {line_of(path, row)}: template {template} has no image; {SKIP}")
    same = table[:, 2] == 1
    pairs = Pairs(places[known, 0], places[known, 1], same[known])
    if not pairs.same.any() or pairs.same.all():
        raise UserError(f"{path}: all {len(pairs.same)} pairs are of one kind; a ROC curve needs same and different")
    return pairs, int(len(table) - len(pairs.same))


def read_subjects(path: Path, ids: np.ndarray, skip_missing: bool = False) -> Subjects:
    """A gallery or the probes: a CSV with the columns TEMPLATE_ID and SUBJECT_ID, a line an image."""
    found: dict[int, int] = {}
    skipped: set[int] = set()
    known = {int(template): place for place, template in enumerate(ids)}
    rows = _csv_rows(path)
    where, first = next(rows, (f"{path} line 1", []))
    header = [name.strip().upper() for name in first]
    if not {"TEMPLATE_ID", "SUBJECT_ID"} <= set(header):
        raise UserError(f"{where}: should name the columns TEMPLATE_ID and SUBJECT_ID")
    template_column, subject_column = header.index("TEMPLATE_ID"), header.index("SUBJECT_ID")
    for where, fields in rows:
        try:
            template, subject = _whole(fields[template_column]), _whole(fields[subject_column])
        except (ValueError, IndexError):
            raise UserError(f"{where}: no template and subject in it") from None
        if template not in known:
            if not skip_missing:
                raise UserError(f"{where}: template {template} has no image; {SKIP}")
            skipped.add(template)
        elif found.setdefault(template, subject) != subject:
            raise UserError(f"{where}: template {template} is of subject {found[template]} above")
    if not found:
        raise UserError(f"{path}: holds no templates with images")
    places = np.array([known[template] for template in found])
    return Subjects(places, np.array(list(found.values())), len(skipped))


def line_of(path: Path, row: int) -> int:
    """The number of the line that a row of a list stands on, blank lines being no rows; after the last, that after."""
    number = 0
    with path.open(encoding=_ENCODING, errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            row -= bool(line.strip())
            if row < 0:
                return number
    return number + 1


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV that are not blank, each with where it stands."""
    with TextIOWrapper(open_regular_file(path), newline="", encoding=_ENCODING, errors="replace") as stream:
        reader = csv.reader(stream, strict=True)
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise UserError(f"{path} line {reader.line_num}: {error}") from None
            if fields is None:
                return
            if any(field.strip() for field in fields):
                yield f"{path} line {reader.line_num}", fields


def _table(path: Path, dtype: Any, form: str, fits: Callable[[list[str]], bool]) -> np.ndarray:
    """The rows of a list; where one is malformed, UserError with its line and the form it should have."""
    try:
        open_regular_file(path).close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a file is empty
            rows = np.loadtxt(
                path, dtype=dtype, comments=None, ndmin=1 if isinstance(dtype, list) else 2, encoding=_ENCODING
            )
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UserError:
        raise
    except (ValueError, OverflowError) as error:
        found = _malformed(path, form, fits) or f"{path}: {error!s:.100}; a line should read '{form}'"
        raise UserError(found) from None
    if not len(rows):
        raise UserError(f"{path}: is empty; a line should read '{form}'")
    return rows


def _malformed(path: Path, form: str, fits: Callable[[list[str]], bool]) -> str:
    """Where the first malformed line is, found line by line; empty where none is. fits may raise ValueError."""
    with path.open(encoding=_ENCODING, errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.encode()  # fails where a byte was no UTF-8
                good = not line.strip() or fits(line.split())
            except ValueError:
                good = False
            if not good:
                return f"{path} line {number}: should read '{form}', reads {line.strip()[:80]!r}"
    return ""


def _is_detection(fields: list[str]) -> bool:
    return len(fields) == 12 and all(_is_number(field) for field in fields[1:])


def _is_number(text: str) -> bool:
    """Whether numpy reads it as a finite float32, which is less than what Python reads as a float."""
    return text.isascii() and "_" not in text and abs(float(text)) <= float(np.finfo(np.float32).max)


def _whole(text: str, bits: int = 64) -> int:
    """The integer of so many bits, of what numpy reads as one. Raises ValueError."""
    if not text.isascii() or "_" in text or not -(1 << bits - 1) <= (number := int(text)) < 1 << bits - 1:
        raise ValueError(text)
    return number


def _name(rows: np.ndarray, row: int) -> str:
    return str(rows["name"][row]) if row < len(rows) else "nothing"
