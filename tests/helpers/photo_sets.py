"""Aligned faces of drawn people in the forms that data/pack.py reads."""

import io
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.helpers.commands import run_command
from tests.helpers.faces import draw_face, encode_image
from tests.helpers.paths import ROOT


def write_faces(folder: Path, people: int, photos: int) -> dict[str, bytes]:
    """Writes p00/0.jpg, p00/1.png, …; returns their bytes by path relative to the folder, sorted."""
    rng = np.random.default_rng(5)
    faces = {}
    for person in range(people):
        for i in range(photos):
            suffix = ".png" if i % 2 else ".jpg"
            faces[f"p{person:02}/{i}{suffix}"] = encode_image(draw_face(person, rng), suffix)
    for name, face in faces.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(face)
    return faces


def write_tar(path: Path, members: dict[str, bytes], links: Sequence[tuple[str, bytes, str]] = ()) -> Path:
    """Writes a tar of these files, and then of the members (name, type, name of the target)."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, member_type, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = member_type, target
            tar.addfile(member)
    return path


def as_samples(faces: dict[str, bytes], suffix: str = ".cls") -> dict[str, bytes]:
    """Returns the members of a tar of WebDataset's form: each face, and its label in a .cls or a .json."""
    members = {}
    for name, face in faces.items():
        key, _, image_suffix = name.partition(".")
        label = int(name[1:3])
        members[f"{key}.{image_suffix}"] = face
        members[key + suffix] = str(label).encode() if suffix == ".cls" else json.dumps({"label": label}).encode()
    return members


def run_pack(source, out, *options):
    """Runs data/pack.py."""
    return run_command(ROOT, sys.executable, "data/pack.py", source, out, *options)
