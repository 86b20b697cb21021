"""Reads tar files of WebDataset's form: an image KEY.jpg (or .png, …) and its label in KEY.cls or KEY.json.

The key of a file is its path up to the first dot of its name, and the rest is its kind: folder/7.jpg, folder/7.cls and
folder/7.seg.jpg are of the sample folder/7, whose photo is folder/7.jpg alone.
"""

import json
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data.packing.photo import Photo
from utils.datasets.image_header import SUFFIXES
from utils.errors import UserError, one_line, shorten
from utils.filesystem import open_regular_file

_LABEL_LIMIT = 1 << 20  # bytes of a .cls or .json file
_LINKS = 40  # in a row, as in Linux
_LABEL_NAMES = ("label", "cls")  # of the label in KEY.json


def list_tar(path: Path, left_out: Counter[str]) -> Iterator[tuple[str, Photo]]:
    """Yields the label and the photo of each sample of an uncompressed tar file; reads no image.

    Raises UserError for a file that is not such a tar or is cut short, for a bad label, and for an image without one.

    left_out: receives the number of files that are neither a photo nor a label, by kind. Hidden files do not count.
    """
    labels: dict[str, str] = {}  # of samples whose image has not come yet
    photos: dict[str, Photo] = {}  # of samples whose label has not come yet
    with open_regular_file(path) as file:
        for name, offset, size in _iter_files(path, file, left_out):
            folder, slash, file_name = name.rpartition("/")
            stem, dot, suffix = file_name.partition(".")
            key, suffix = folder + slash + stem, f"{dot}{suffix.lower()}"
            if suffix in SUFFIXES and stem:
                if key in photos:
                    raise UserError(f"{path}: {name}: its sample has two images", fix="keep one")
                photos[key] = Photo(path, name, offset, size)
            elif suffix in (".cls", ".json") and stem:
                file.seek(offset)
                label = _read_label(file.read(min(size, _LABEL_LIMIT)), suffix, f"{path}: {name}")
                labels.setdefault(key, label) if label else None
            elif stem:
                left_out[one_line(suffix)[:20] or "without a suffix"] += 1
            if key in photos and key in labels:
                yield labels.pop(key), photos.pop(key)
    if photos:
        photo = next(iter(photos.values()))
        raise UserError(f"{photo}: has no label", fix="expected a .cls or a .json with a label beside each image")
    if labels:
        left_out["labelling no image"] += len(labels)


def _iter_files(path: Path, file: BinaryIO, left_out: Counter[str]) -> Iterator[tuple[str, int, int]]:
    """Yields name, offset and size in bytes of each file in a tar, at last those that are links to others of them.

    Counts all other members than folders in `left_out`. Raises UserError where the tar is damaged.
    """
    links: dict[str, str] = {}  # the name of the file that each link names
    for member in _iter_members(path, file):
        if member.isreg() and not member.issparse():
            yield member.name, member.offset_data, member.size
        elif member.islnk() or member.issym():
            folder = posixpath.dirname(member.name) if member.issym() else ""
            links[member.name] = posixpath.normpath(posixpath.join(folder, member.linkname))
        elif not member.isdir():
            left_out["sparse" if member.isreg() else "no regular file"] += 1
    if not links:
        return
    wanted = {*links.values()}
    found: dict[str, tuple[int, int]] = {}
    for member in _iter_members(path, file):
        if member.isreg() and not member.issparse() and (name := posixpath.normpath(member.name)) in wanted:
            found[name] = member.offset_data, member.size
    targets = {posixpath.normpath(link): target for link, target in links.items()}
    for link, target in links.items():
        for _ in range(_LINKS):  # a link may name another
            target = targets.get(target, target)
        if target in found:
            yield link, *found[target]
        else:
            left_out["linking to no file in it"] += 1


def _iter_members(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yields the members of a tar. Raises UserError where it is damaged."""
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # those of a large set would fill the memory
                yield member
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"no member begins at byte {tar.offset}")
    except tarfile.TarError as error:
        raise UserError(
            f"{path}: not an uncompressed tar file, or damaged or cut short ({error})", fix="copy or unpack it again"
        ) from error


def _read_label(content: bytes, suffix: str, source: str) -> str:
    """Returns the label in a .cls or .json file, "" for a .json without one. Raises UserError for any other content."""
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
