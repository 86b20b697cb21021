"""Reads the lists of an IJB-B or IJB-C folder: images, landmarks, templates, pairs, galleries and probes.

meta/ijbc_name_5pts_score.txt        file, five landmarks x y, detector score; one line per image
meta/ijbc_face_tid_mid.txt           file, template, medium; equal images in equal order
meta/ijbc_template_pair_label.txt    template, template, 1 for the same person, else 0
meta/ijbc_1N_gallery_G1.csv, …       TEMPLATE_ID, SUBJECT_ID, …; optional, for identification
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
SKIP_HINT = "--skip-missing leaves such images out and counts them"
_ENCODING = "utf-8-sig"  # with or without a byte-order mark
_GALLERIES = {"IJBB": ("gallery_S1", "gallery_S2"), "IJBC": ("gallery_G1", "gallery_G2")}


class Images(NamedTuple):
    """The N faces of a set, one per line of its lists."""

    source: Path  # file with the list of landmarks
    names: np.ndarray  # (N,) str, file names in loose_crop
    landmarks: np.ndarray  # (N, 5, 2) float32, x and y in pixels of the image
    det_scores: np.ndarray  # (N,) float32, confidence of the face detector
    templates: np.ndarray  # (N,) int64 template ids
    media: np.ndarray  # (N,) int64 medium ids


class Pairs(NamedTuple):
    """Pairs of templates to compare, as indices into the ascending ids of all templates."""

    first: np.ndarray  # (P,) int32
    second: np.ndarray  # (P,) int32
    same: np.ndarray  # (P,) bool


class Subjects(NamedTuple):
    """Templates and their subjects: a gallery, or the probes."""

    templates: np.ndarray  # (T,) int64 distinct indices into the ascending ids of all templates
    subjects: np.ndarray  # (T,) int64 subject ids
    skipped: int  # number of templates left out, because they have no image


@dataclass
class Protocol:
    """All lists of a set, and the number of pairs left out."""

    images: Images
    template_ids: np.ndarray  # (T,) int64 ascending
    pairs: Pairs
    galleries: list[Subjects]  # empty if the set has no lists for identification
    probes: Subjects | None
    skipped_pairs: int  # number of pairs left out, because a template has no image


def read_protocol(folder: Path, target: str, skip_missing: bool = False) -> Protocol:
    """Reads and checks the lists of IJBB or IJBC. Raises UserError that names file and line.

    skip_missing: leave out pairs and list entries with a template that has no image.
    """
    if not path_exists((folder / "loose_crop").is_dir) or not path_exists((folder / "meta").is_dir):
        raise UserError(
            f"--image-path {str(folder)!r}: no folders loose_crop and meta in it",
            fix="name an IJB set as InsightFace distributes it, or make one: python data/make_demo_ijb.py",
        )
    prefix = folder / "meta" / target.lower()
    images = read_images(Path(f"{prefix}_name_5pts_score.txt"), Path(f"{prefix}_face_tid_mid.txt"))
    ids = np.unique(images.templates)
    pairs, skipped = read_template_pairs(Path(f"{prefix}_template_pair_label.txt"), ids, skip_missing)
    lists = [Path(f"{prefix}_1N_{name}.csv") for name in (*_GALLERIES[target], "probe_mixed")]
    if not all(path_exists(path.exists) for path in lists):
        return Protocol(images, ids, pairs, [], None, skipped)
    *galleries, probes = (read_subjects(path, ids, skip_missing) for path in lists)
    return Protocol(images, ids, pairs, galleries, probes, skipped)


def read_images(landmark_list: Path, template_list: Path) -> Images:
    """Reads both lists of images. Raises UserError if they do not have equal images in equal order."""
    line_format = "file x1 y1 x2 y2 x3 y3 x4 y4 x5 y5 score"
    detections = _load_table(
        landmark_list, [("name", object), ("numbers", np.float32, (11,))], line_format, _is_detection
    )
    memberships = _load_table(
        template_list,
        [("name", object), ("template", np.int64), ("medium", np.int64)],
        "file template medium",
        lambda fields: len(fields) == 3 and all(_parse_int(field) is not None for field in fields[1:]),
    )
    numbers = detections["numbers"]
    if not np.isfinite(numbers).all():
        raise UserError(_find_malformed(landmark_list, line_format, _is_detection))
    differing = detections["name"][: len(memberships)] != memberships["name"][: len(detections)]
    if len(detections) != len(memberships) or differing.any():
        row = int(np.argmax(differing)) if differing.any() else min(len(detections), len(memberships))
        raise UserError(
            f"{template_list} line {line_number(template_list, row)}: {_name_at(memberships, row)}, but "
            f"line {line_number(landmark_list, row)} of {landmark_list.name}: {_name_at(detections, row)}",
            fix="both lists should have the same images in the same order",
        )
    landmarks = numbers[:, :10].reshape(-1, 5, 2)
    degenerate = np.ptp(landmarks, axis=1).max(axis=1) <= 0
    if degenerate.any():
        row = int(np.argmax(degenerate))
        location = f"{landmark_list} line {line_number(landmark_list, row)}"
        raise UserError(f"{location}: {detections['name'][row]}: its landmarks are all at one point")
    templates, media = memberships["template"], memberships["medium"]
    return Images(landmark_list, detections["name"], landmarks, numbers[:, 10], templates, media)


def read_template_pairs(path: Path, ids: np.ndarray, skip_missing: bool = False) -> tuple[Pairs, int]:
    """Reads the pairs of templates. Returns them and the number of pairs left out.

    ids: ascending ids of all templates that have images. Raises UserError if a template has no image, unless
    skip_missing leaves such pairs out, or if all pairs are of one kind.
    """
    line_format = "template template label"

    def is_valid(fields: list[str]) -> bool:
        return len(fields) == 3 and all(_parse_int(field, 32) is not None for field in fields)

    table = _load_table(path, np.int32, line_format, is_valid)
    if table.shape[1] != 3:
        raise UserError(_find_malformed(path, line_format, is_valid))
    invalid = (table[:, 2] != 0) & (table[:, 2] != 1)
    if invalid.any():
        row = int(np.argmax(invalid))
        location = f"{path} line {line_number(path, row)}"
        raise UserError(f"{location}: label {table[row, 2]}, should be 1 (the same person) or 0")
    indices = np.searchsorted(ids, table[:, :2]).astype(np.int32)
    np.minimum(indices, len(ids) - 1, out=indices)
    has_images = (ids[indices] == table[:, :2]).all(axis=1)
    if not has_images.all() and not skip_missing:
        row = int(np.argmin(has_images))
        template = table[row, int(ids[indices[row, 0]] == table[row, 0])]
        raise UserError(f"{path} line {line_number(path, row)}: template {template} has no image", fix=SKIP_HINT)
    same = table[:, 2] == 1
    pairs = Pairs(indices[has_images, 0], indices[has_images, 1], same[has_images])
    if not pairs.same.any() or pairs.same.all():
        raise UserError(f"{path}: all {len(pairs.same)} pairs are of one kind; a ROC curve needs same and different")
    return pairs, int(len(table) - len(pairs.same))


def read_subjects(path: Path, ids: np.ndarray, skip_missing: bool = False) -> Subjects:
    """Reads a gallery or the probes: a CSV with columns TEMPLATE_ID and SUBJECT_ID, one line per image.

    ids: ascending ids of all templates that have images. Raises UserError that names file and line.
    """
    subject_of: dict[int, int] = {}
    skipped: set[int] = set()
    index_of = {int(template): index for index, template in enumerate(ids)}
    rows = _csv_rows(path)
    location, first = next(rows, (f"{path} line 1", []))
    header = [name.strip().upper() for name in first]
    if not {"TEMPLATE_ID", "SUBJECT_ID"} <= set(header):
        raise UserError(f"{location}: should name the columns TEMPLATE_ID and SUBJECT_ID")
    template_column, subject_column = header.index("TEMPLATE_ID"), header.index("SUBJECT_ID")
    for location, fields in rows:
        try:
            template, subject = _parse_int(fields[template_column]), _parse_int(fields[subject_column])
        except (ValueError, IndexError):
            raise UserError(f"{location}: has no template and subject") from None
        if template not in index_of:
            if not skip_missing:
                raise UserError(f"{location}: template {template} has no image", fix=SKIP_HINT)
            skipped.add(template)
        elif subject_of.setdefault(template, subject) != subject:
            raise UserError(f"{location}: template {template} is of subject {subject_of[template]} above")
    if not subject_of:
        raise UserError(f"{path}: holds no templates with images")
    templates = np.array([index_of[template] for template in subject_of])
    return Subjects(templates, np.array(list(subject_of.values())), len(skipped))


def line_number(path: Path, row: int) -> int:
    """Returns the line number of a row of a list, where blank lines are not rows. After the last row: the next line."""
    number = 0
    with path.open(encoding=_ENCODING, errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            row -= bool(line.strip())
            if row < 0:
                return number
    return number + 1


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields the rows of a CSV that are not blank, each with its file and line for messages."""
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


def _load_table(path: Path, dtype: Any, line_format: str, is_valid: Callable[[list[str]], bool]) -> np.ndarray:
    """Loads the rows of a list. Raises UserError with the line and the expected format of a malformed row."""
    try:
        open_regular_file(path).close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the warning about an empty file
            rows = np.loadtxt(
                path, dtype=dtype, comments=None, ndmin=1 if isinstance(dtype, list) else 2, encoding=_ENCODING
            )
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UserError:
        raise
    except (ValueError, OverflowError) as error:
        problem = _find_malformed(path, line_format, is_valid)
        raise UserError(problem or f"{path}: {error!s:.100}; a line should read '{line_format}'") from None
    if not len(rows):
        raise UserError(f"{path}: is empty", fix=f"a line should read '{line_format}'")
    return rows


def _find_malformed(path: Path, line_format: str, is_valid: Callable[[list[str]], bool]) -> str:
    """Returns a message about the first malformed line, or "" if there is none. `is_valid` may raise ValueError."""
    with path.open(encoding=_ENCODING, errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.encode()  # fails if a byte is not UTF-8
                valid = not line.strip() or is_valid(line.split())
            except ValueError:
                valid = False
            if not valid:
                return f"{path} line {number}: should read '{line_format}', reads {line.strip()[:80]!r}"
    return ""


def _is_detection(fields: list[str]) -> bool:
    return len(fields) == 12 and all(_is_number(field) for field in fields[1:])


def _is_number(text: str) -> bool:
    """Returns whether numpy parses it as a finite float32, a stricter condition than Python's float()."""
    return text.isascii() and "_" not in text and abs(float(text)) <= float(np.finfo(np.float32).max)


def _parse_int(text: str, bits: int = 64) -> int:
    """Parses what numpy accepts as an integer of that many bits. Raises ValueError otherwise."""
    if not text.isascii() or "_" in text or not -(1 << bits - 1) <= (number := int(text)) < 1 << bits - 1:
        raise ValueError(text)
    return number


def _name_at(rows: np.ndarray, row: int) -> str:
    """Returns the file name in a row for messages, "nothing" after the last row."""
    return str(rows["name"][row]) if row < len(rows) else "nothing"
