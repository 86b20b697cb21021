"""Lists the photos of each person in a folder, in tar files or in a CSV."""

import csv
import io
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from data.packing.photo import Photo
from data.packing.webdataset import list_tar
from utils.datasets.image_header import SUFFIXES
from utils.datasets.people_folder import describe_left_out, list_people
from utils.errors import UserError, quantity, shorten
from utils.filesystem import open_regular_file, path_exists

People = dict[str, list[Photo]]  # the photos of each person, by name; the order of the people is that of their labels

_FORMATS = ", ".join(SUFFIXES)


def find_people(source: Path) -> People:
    """Returns the photos of each person.

    source: a folder with one folder per person; a .tar of WebDataset's form, or a folder of them; a CSV of path,label.
    The people are sorted by name or label, numbers by value. Prints notes on what is left out.

    Raises OSError, and UserError unless at least two people have photos.
    """
    notes: tuple[str, ...] = ()
    if path_exists(source.is_dir):
        people, notes = _list_folder(source)
    elif source.suffix.lower() == ".tar":
        people, notes = _list_tars(source, [source])
    elif source.suffix.lower() == ".csv":
        people = _group(_list_csv(source))
    elif not path_exists(source.exists):
        raise UserError(f"{source}: No such file or folder")
    else:
        raise UserError(f"{source}: should be a folder, a .tar or a .csv")
    for note in notes:
        print(note, file=sys.stderr)
    if len(people) < 2:
        fix = "training needs at least two" + ", one folder each" * source.is_dir()
        raise UserError(f"{source}: photos of {quantity(len(people), 'person', 'people')} ({_FORMATS})", fix)
    return people


def _group(labelled: Iterable[tuple[str, Photo]]) -> People:
    """Groups photos by label, and sorts them by label."""
    people: People = defaultdict(list)
    labels: dict[Photo, str] = {}
    for label, photo in labelled:
        if labels.setdefault(photo, label) != label:
            raise UserError(f"{photo}: has the labels {shorten(labels[photo])} and {shorten(label)}", fix="keep one")
        people[label].append(photo)
    return _sort({label: list(dict.fromkeys(photos)) for label, photos in people.items()})  # each photo once


def _sort(people: People) -> People:
    """Sorts people by label: first the labels that are whole numbers, by value, then the others."""
    return dict(sorted(people.items(), key=lambda item: _sort_key(item[0])))


def _sort_key(label: str) -> tuple[int, int, str]:
    """Returns a key that is never equal for two labels."""
    is_number = label.isascii() and label.isdigit() and len(label) < 20
    return (0, int(label), label) if is_number else (1, 0, label)


def _list_folder(source: Path) -> tuple[People, tuple[str, ...]]:
    """Returns the people of a folder with one folder per person, or else of its tar files, and notes."""
    paths, notes = list_people(source, SUFFIXES)
    shards = sorted(source.glob("[!.]*.tar"))
    if shards and not paths:
        return _list_tars(source, shards)
    return _sort({name: [Photo(path) for path in photos] for name, photos in paths.items()}), notes


def _list_tars(source: Path, shards: list[Path]) -> tuple[People, tuple[str, ...]]:
    """Returns the people of tar files, and a note on the files that are left out."""
    left_out: Counter[str] = Counter()
    people = _group(pair for shard in shards for pair in list_tar(shard, left_out))
    return people, describe_left_out(source, left_out)


def _list_csv(path: Path) -> list[tuple[str, Photo]]:
    """Returns the label and the photo of each line of a CSV, whose paths are relative to its folder.

    A first line that names the columns path and label is a header; without one they are the first two columns. Raises
    UserError naming a line that has no path or no label.
    """
    labelled: list[tuple[str, Photo]] = []
    columns = (0, 1)
    # File names may hold bytes that are not UTF-8.
    with open_regular_file(path) as file, io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text:
        rows = csv.reader(text)
        try:
            for row in rows:
                names = [cell.strip().lower() for cell in row]
                if not labelled and "path" in names and "label" in names:
                    columns = names.index("path"), names.index("label")
                elif names:
                    name, label = (row[column].strip() if column < len(row) else "" for column in columns)
                    if not name or not label or "\0" in name:
                        raise UserError(f"{path} line {rows.line_num}: {shorten(row)}", fix="expected path,label")
                    labelled.append((label, Photo(path.parent / name)))
        except csv.Error as error:
            raise UserError(f"{path} line {rows.line_num}: {error}", fix="expected path,label") from error
    return labelled
