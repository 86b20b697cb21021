"""Record of each photo after alignment, in a journal from which an interrupted alignment resumes."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.filesystem import write_text_atomic

JOURNAL = "align.jsonl"
KILLED = "ended the process that read it, and is left out until the file changes"


@dataclass(frozen=True)
class FaceRecord:
    """A face that was written."""

    file: str  # relative to the output folder
    left: float
    top: float
    width: float
    height: float
    score: float
    scale: float
    sharpness: float
    hash: str
    is_tiny: bool
    is_blurred: bool


@dataclass(frozen=True)
class PhotoRecord:
    """A photo, and the faces written from it."""

    photo: str  # relative to the source folder
    size: int  # bytes of the file
    mtime_ns: int
    sha256: str = ""
    n_faces: int = 0  # that the detector has found
    error: str = ""  # why it could not be read; empty if it could
    faces: list[FaceRecord] = field(default_factory=list)
    others: list[list[float]] = field(default_factory=list)  # boxes of the faces that were not taken

    @property
    def status(self) -> str:
        """Result in a word or two: aligned, no face, or unreadable."""
        return "unreadable" if self.error else "aligned" if self.faces else "no face"


class Journal:
    """Context manager around align.jsonl in the output folder: a line for the settings, then one for each photo."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Reads the records of an earlier alignment with the same settings. Raises UserError for other settings."""
        self.path = folder / JOURNAL
        self.settings = settings
        self.records: dict[str, PhotoRecord] = {}
        if self.path.is_file():
            self._read()

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        try:
            settings = json.loads(lines[0]) if lines else self.settings
            if not isinstance(settings, dict):
                raise ValueError
        except ValueError:
            raise UserError(f"{self.path}: damaged", fix="delete its folder, or name another") from None
        detector = self.settings["detector"]
        if settings.get("detector") == detector.split()[0]:  # earlier journals name no version of the weights
            settings["detector"] = detector
        if settings != self.settings:
            changed = ", ".join(
                sorted(k for k in settings.keys() | self.settings if settings.get(k) != self.settings.get(k))
            )
            raise UserError(f"{self.path.parent}: was aligned with another {changed}", fix="name another folder")
        for line in lines[1:]:
            try:
                values = json.loads(line)
                faces = [FaceRecord(**face) for face in values.pop("faces")]
                record = PhotoRecord(**values, faces=faces)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # cut off by a kill or a full disk: the photo is aligned again
            self.records[record.photo] = record

    def is_done(self, photo: str, path: Path) -> bool:
        """Whether the photo, unchanged since, could be read and its faces exist, or it ended its process."""
        record = self.records.get(photo)
        try:
            stat = path.stat()
        except OSError:
            return False
        return (
            record is not None
            and record.error in ("", KILLED)
            and (record.size, record.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
            and all((self.path.parent / face.file).is_file() for face in record.faces)
        )

    def __enter__(self) -> "Journal":
        """Writes the records that were read, without damaged lines, and opens the file to add others."""
        lines = (self.settings, *map(asdict, self.records.values()))
        write_text_atomic(self.path, "".join(map(_to_line, lines)))
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, record: PhotoRecord) -> None:
        """Adds the record of a photo."""
        self.records[record.photo] = record
        self._file.write(_to_line(asdict(record)))
        self._file.flush()

    def keep(self, photos: set[str]) -> None:
        """Forgets other photos, which are aligned again or no longer in the source folder, and deletes their faces."""
        folder = self.path.parent.resolve()
        for name in self.records.keys() - photos:
            for face in self.records.pop(name).faces:
                file = (folder / face.file).resolve()
                if file.is_relative_to(folder):  # a journal may have been changed by hand
                    file.unlink(missing_ok=True)


def _to_line(content: object) -> str:
    return json.dumps(content) + "\n"  # in ASCII, which holds names of any bytes
