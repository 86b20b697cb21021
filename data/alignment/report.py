"""The report of an alignment: a table as CSV, a summary in a few lines, and a contact sheet."""

import csv
import io
from collections import Counter
from pathlib import Path

from data.alignment.duplicates import first_equal, first_similar
from data.alignment.record import PhotoRecord
from data.alignment.sheet import Tile, draw_sheet, spread
from utils.errors import one_line, quantity
from utils.filesystem import write_atomic, write_text_atomic

COLUMNS = (
    "photo", "status", "file", "faces", "notes", "left", "top", "width", "height", "score", "scale", "sharpness",
)  # fmt: skip
MAX_TAKEN, MAX_PROBLEMS = 96, 96  # photos in each part of the contact sheet
MAX_OTHERS = 4  # faces shown of a photo besides the one that was taken

Notes = dict[str, list[str]]  # by photo


def find_notes(records: list[PhotoRecord]) -> Notes:
    """Returns what should be checked, by photo: several faces, tiny, blurred, and duplicates of an earlier photo."""
    notes: Notes = {record.photo: [] for record in records}
    for record in records:
        note = notes[record.photo]
        if record.n_faces > 1:
            note.append(f"{record.n_faces} faces")
        note += ["tiny"] if any(face.is_tiny for face in record.faces) else []
        note += ["blurred"] if any(face.is_blurred for face in record.faces) else []
    readable = [record for record in records if not record.error]
    equal = first_equal([record.sha256 for record in readable])
    for record, same in zip(readable, equal, strict=True):
        if same is not None:
            notes[record.photo].append(f"same file as {readable[same].photo}")
    different = [record for record, same in zip(readable, equal, strict=True) if same is None]
    faces = [(record.photo, face.hash) for record in different for face in record.faces]
    for (photo, _), first in zip(faces, first_similar([value for _, value in faces]), strict=True):
        if first is not None and (other := faces[first][0]) != photo:
            notes[photo] += {f"nearly the same as {other}"} - {*notes[photo]}
    return notes


def write_csv(path: Path, records: list[PhotoRecord], notes: Notes) -> None:
    """Writes a line for each aligned face, and one for each photo without. Raises OSError."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for record in records:
        note = "; ".join([*([record.error] if record.error else []), *notes[record.photo]])
        head = [record.photo, record.status]
        for face in record.faces:
            box = [round(value) for value in (face.left, face.top, face.width, face.height)]
            values = [round(face.score, 3), round(face.scale, 3), round(face.sharpness, 1)]
            writer.writerow([*head, face.file, record.n_faces, note, *box, *values])
        if not record.faces:
            writer.writerow([*head, "", record.n_faces, note, *[""] * 7])
    write_text_atomic(path, text.getvalue())


def summarise(records: list[PhotoRecord], notes: Notes) -> list[str]:
    """Returns the summary, in lines: what was aligned, what was not, and what should be checked."""
    n_faces = sum(len(record.faces) for record in records)
    lines = [f"{quantity(len(records), 'photo')}: {quantity(n_faces, 'face')} aligned"]
    for status in ("no face", "unreadable"):
        affected = [record for record in records if record.status == status]
        if affected:
            reason = f" {affected[0].error}" if affected[0].error else ""
            lines.append(f"{status}: {len(affected):,}, for example {one_line(affected[0].photo)}{reason}")
    kinds: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for photo, texts in notes.items():
        for kind in dict.fromkeys(map(_kind, texts)):
            kinds[kind] += 1
            examples.setdefault(kind, photo)
    lines += [f"{kind}: {count:,}, for example {one_line(examples[kind])}" for kind, count in kinds.most_common()]
    return lines


def _kind(note: str) -> str:
    """Returns a note without what differs from photo to photo."""
    if note.endswith(" faces"):
        return "several faces"
    return next((kind for kind in ("same file", "nearly the same") if note.startswith(kind)), note)


def write_sheet(path: Path, source: Path, out: Path, records: list[PhotoRecord], notes: Notes) -> None:
    """Draws the contact sheet: a sample of the aligned faces, then what was not taken or should be checked.

    After the face of a photo follow the MAX_OTHERS largest that were not taken. Raises OSError.
    """
    good = [record for record in records if record.faces and not notes[record.photo]]
    doubtful = [record for record in records if not record.faces or notes[record.photo]]
    doubtful.sort(key=lambda record: (bool(record.faces), record.photo))  # those without a face first
    sample = [good[i] for i in spread(len(good), MAX_TAKEN)]
    taken = [Tile(out / record.faces[0].file, record.photo) for record in sample]
    problems: list[Tile] = []
    for record in (doubtful[i] for i in spread(len(doubtful), MAX_PROBLEMS)):
        photo, name = source / record.photo, record.photo
        if record.faces:
            taken_faces = record.faces[: 1 + MAX_OTHERS]  # one, unless all are taken
            problems += [Tile(out / face.file, name, notes[name][0]) for face in taken_faces]
            boxes = sorted(record.others, key=lambda box: -box[2] * box[3])[:MAX_OTHERS]
            problems += [
                Tile(photo, name, f"not taken {i} of {len(record.others)}", box) for i, box in enumerate(boxes, 1)
            ]
        else:
            problems.append(Tile(photo, name, record.status))
    parts = {f"taken ({len(good):,})": taken, f"to look at ({len(doubtful):,})": problems}
    write_atomic(path, lambda file: file.write(draw_sheet(parts)))
