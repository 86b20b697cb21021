"""people.csv: the person of each label of a training set."""

import csv
import io
from collections import Counter
from pathlib import Path

from data.packing.sources import People
from utils.errors import UserError, shorten
from utils.filesystem import open_regular_file, path_exists, write_text_atomic

_COLUMNS = ["label", "person", "photos"]
_VAL = "val"  # label of the people held out


def write_names(path: Path, train: People, val: People) -> None:
    """Writes a CSV of each person's label, name and number of photos; those held out have the label "val"."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows((label, name, len(photos)) for label, (name, photos) in enumerate(train.items()))
    writer.writerows((_VAL, name, len(photos)) for name, photos in val.items())
    write_text_atomic(path, text.getvalue())


def read_names(path: Path) -> dict[int, str]:
    """Returns the name of the person of each label, without those held out; none where the file does not exist.

    Raises OSError, and UserError for a file that `write_names` has not written, and where two labels have one name.
    """
    if not path_exists(path.exists):
        return {}
    fix = "without this file the labels are the names"
    names: dict[int, str] = {}
    with open_regular_file(path) as file, io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="") as text:
        rows = csv.reader(text)
        try:
            for row in rows:
                if (rows.line_num == 1 and row == _COLUMNS) or row[:1] == [_VAL]:
                    continue
                if len(row) != len(_COLUMNS) or not (row[0].isascii() and row[0].isdigit() and len(row[0]) < 20):
                    raise UserError(f"{path} line {rows.line_num}: {shorten(row)} is not label,person,photos", fix)
                names[int(row[0])] = row[1]
        except csv.Error as error:
            raise UserError(f"{path} line {rows.line_num}: {error}", fix) from error
    for name, count in Counter(names.values()).most_common(1):
        if count > 1:
            raise UserError(f"{path}: {count} labels have the name {shorten(name)}", fix=f"give each its own; {fix}")
    return names
