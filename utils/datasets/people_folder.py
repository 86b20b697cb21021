"""Lists the photos in a folder that has one folder per person."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from utils.datasets.photos import CONVERT_HEIC, HEIC_SUFFIXES
from utils.errors import one_line, quantity
from utils.filesystem import walk_files

_SHOWN = 8  # kinds of files that are left out


def list_people(folder: Path, suffixes: Collection[str]) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """Returns the photos of each person, both sorted by name, and notes on what is left out.

    The folders directly in `folder` are the people. A photo at any depth below such a folder is that person's. Hidden
    files and folders are ignored. People without photos are left out. Raises OSError.

    suffixes: those of photos, in lower case.
    """
    people: dict[str, list[Path]] = {}
    left_out: Counter[str] = Counter()
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            left_out[f"{suffix_of(path)} outside the people's folders"] += 1
            continue
        people[path.name] = []
        for file in sorted(walk_files(path)):
            if file.suffix.lower() not in suffixes:
                left_out[suffix_of(file)] += 1
            elif not file.is_file():
                left_out["no regular file"] += 1
            else:
                people[path.name].append(file)
    notes = describe_left_out(folder, left_out)
    empty = [name for name, photos in people.items() if not photos]
    people = {name: photos for name, photos in people.items() if photos}
    if empty:
        notes += (f"{one_line(folder)}: {quantity(len(empty), 'folder')} without photos, as {one_line(empty[0])}",)
    if people and all(path.parent != folder / name for name, photos in people.items() for path in photos):
        names = ", ".join([*people][:3]) + ", …" * (len(people) > 3)
        fix = f"if the folders below them are the people, name {folder / next(iter(people))}"
        notes += (one_line(f"{folder}: all photos of a person lie in further folders; the people are {names}; {fix}"),)
    return people, notes


def describe_left_out(source: Path, left_out: Counter[str]) -> tuple[str, ...]:
    """Returns a note on the files of a source that are left out, counted by kind, or () if there are none."""
    if not left_out:
        return ()
    kinds = [f"{count:,} {kind}" for kind, count in left_out.most_common()]
    shown = kinds if len(kinds) <= _SHOWN else [*kinds[: _SHOWN - 1], f"{len(kinds) - _SHOWN + 1} other kinds"]
    note = f"{one_line(source)}: {quantity(left_out.total(), 'file')} left out: {', '.join(shown)}"
    is_heic = any(kind.startswith(suffix) for suffix in HEIC_SUFFIXES for kind in left_out)
    return (f"{note}. {CONVERT_HEIC}" if is_heic else note,)


def suffix_of(path: Path) -> str:
    """Returns the suffix of a file, in lower case and cut to 20 characters, for a note on the files left out."""
    return one_line(path.suffix.lower())[:20] or "without a suffix"
