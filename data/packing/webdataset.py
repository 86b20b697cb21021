"""Reads tar files of WebDataset's form: an image KEY.jpg (or .png, …) and its label in KEY.cls or KEY.json.

The key of a member is its path up to the first dot of its name, so that folder/7.jpg belongs to folder/7.cls.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data.packing.photo import Photo
from utils.datasets.image_header import SUFFIXES
from utils.errors import UserError, shorten
from utils.filesystem import open_regular_file

_LABEL_LIMIT = 1 << 20  # bytes of a .cls or .json file
_LABEL_NAMES = ("label", "cls")  # of the label in KEY.json


def list_tar(path: Path) -> Iterator[tuple[str, Photo]]:
    """Yields the label and the photo of each sample of an uncompressed tar file; reads no image.

    Raises UserError for a file that is not such a tar or is cut short, for a bad label, and for an image without one.
    """
    labels: dict[str, str] = {}  # of samples whose image has not come yet
    photos: dict[str, Photo] = {}  # of samples whose label has not come yet
    with open_regular_file(path) as file:
        for member in _iter_members(path, file):
            folder, slash, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            key, suffix = folder + slash + stem, f".{suffix.lower()}"
            if suffix in SUFFIXES:
                if key in photos:
                    raise UserError(f"{path}: {member.name}: its sample has two images", fix="keep one")
                photos[key] = Photo(path, member.name, member.offset_data, member.size)
            elif suffix in (".cls", ".json"):
                label = _read_label(file, member, suffix, f"{path}: {member.name}")
                labels.setdefault(key, label) if label else None
            if key in photos and key in labels:
                yield labels.pop(key), photos.pop(key)
    if photos:
        photo = next(iter(photos.values()))
        raise UserError(f"{photo}: has no label", fix="expected a .cls or a .json with a label beside each image")


def _iter_members(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yields the regular files of a tar. Raises UserError where it is damaged."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # those of a large set would fill the memory
                if member.isreg() and not member.issparse():
                    yield member
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"no member begins at byte {tar.offset}")
    except tarfile.TarError as error:
        raise UserError(
            f"{path}: not an uncompressed tar file, or damaged or cut short ({error})", fix="copy or unpack it again"
        ) from error


def _read_label(file: BinaryIO, member: tarfile.TarInfo, suffix: str, source: str) -> str:
    """Returns the label in a .cls or .json file, "" for a .json without one. Raises UserError for any other content."""
    file.seek(member.offset_data)
    content = file.read(min(member.size, _LABEL_LIMIT))
    try:
        if suffix == ".json":
            fields = json.loads(content)
            label = next((fields[name] for name in _LABEL_NAMES if name in fields), "")
        else:
            label = content.decode().strip()
    except (ValueError, TypeError, RecursionError):
        label = None
    if isinstance(label, bool) or not isinstance(label, int | str) or (suffix == ".cls" and not label):
        raise UserError(f"{source}: {shorten(content)} is not a label", fix="expected a number or a name")
    return str(label)
