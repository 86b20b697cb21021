"""People's own pairs of photos: an LFW-style pairs file, a CSV of path, path, same, or a folder for each person."""

import argparse
import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import is_there

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_FLAGS = dict.fromkeys(("1", "true", "yes", "same"), True) | dict.fromkeys(("0", "false", "no", "different"), False)

Pair = tuple[Path, Path, bool]  # true: the same person


@dataclass(frozen=True)
class PhotoPairs:
    """Pairs of photos, each photo named once."""

    name: str
    paths: list[Path]  # M photos
    pairs: np.ndarray  # (N, 2) int64, their places in paths
    issame: np.ndarray  # (N,) bool

    @classmethod
    def of(cls, name: str, pairs: list[Pair]) -> "PhotoPairs":
        """The pairs, each photo met again named once."""
        places: dict[Path, int] = {}
        rows = [[places.setdefault(path, len(places)) for path in pair[:2]] for pair in pairs]
        return cls(name, list(places), np.array(rows, np.int64).reshape(-1, 2), np.array([pair[2] for pair in pairs]))

    def write(self, file: Path) -> None:
        """Writes them as a CSV that --pairs reads."""
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["path1", "path2", "same"])
            for (first, second), same in zip(self.pairs, self.issame, strict=True):
                writer.writerow([self.paths[first].absolute(), self.paths[second].absolute(), int(same)])


def read_pairs(file: Path, images: Path | None = None) -> PhotoPairs:
    """The pairs of a file; which of both kinds it is shows in its first line (a CSV has commas).

    LFW style: `name 1 2` is one person, `name 1 other 3` two; the photos are IMAGES/name/name_0001.jpg (or .png, …).
    Its first line may be a count. CSV: `path,path,same`, same being 1 or 0 (also true, yes, same); paths are relative
    to IMAGES, or else to the file's folder.

    Raises UserError naming file and line.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"--pairs {file}: {error.strerror}; name a pairs file") from None
    except UnicodeDecodeError:
        raise UserError(f"--pairs {file}: is not text; it should be an LFW-style pairs file or a CSV") from None
    if images is not None and not is_there(images.is_dir):
        raise UserError(f"--images {images}: no such folder")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise UserError(f"--pairs {file}: is empty")
    is_csv = "," in numbered[0][1]
    if not is_csv and images is None:
        raise UserError(f"--pairs {file}: an LFW-style file needs the folder of its photos, --images DIR")
    read = _csv_pair if is_csv else _lfw_pair
    pairs = []
    for number, line in numbered:
        try:
            pair = read(line, images or file.parent, first=number == numbered[0][0])
        except UserError as error:
            raise UserError(f"{file} line {number}: {error}") from None
        pairs += [pair] if pair else []
    if not pairs:
        raise UserError(f"--pairs {file}: holds no pairs")
    return PhotoPairs.of(file.stem, pairs)


def _csv_pair(line: str, folder: Path, first: bool) -> Pair | None:
    """None for a header."""
    try:
        fields = [field.strip() for field in next(csv.reader([line]))]
    except csv.Error:  # a field of more than 128 KiB
        fields = []
    flag = fields[2].lower() if len(fields) == 3 else ""
    if first and len(fields) == 3 and (flag == "same" or flag not in _FLAGS):  # "same" may be a flag or a column
        photos = [folder / field for field in fields[:2]]
        if not any(path.suffix.lower() in IMAGE_SUFFIXES or is_there(path.is_file) for path in photos):
            return None
    if flag not in _FLAGS:
        raise UserError(f"should read path,path,same with 1 or 0 for same, reads {line[:80]!r}")
    one, other = (_existing(folder / field) for field in fields[:2])
    return one, other, _FLAGS[flag]


def _lfw_pair(line: str, folder: Path, first: bool) -> Pair | None:
    """None for the count of folds and pairs in the first line."""
    fields = line.strip().split("\t") if "\t" in line else line.split()
    if first and len(fields) <= 2 and all(field.isdecimal() for field in fields):
        return None
    if len(fields) == 3:
        fields = [*fields[:2], fields[0], fields[2]]
    if len(fields) != 4 or not (fields[1].isdecimal() and fields[3].isdecimal()):
        raise UserError(f"should read 'name 1 2' or 'name 1 other 3', reads {line[:80]!r}")
    one, other = (_numbered(folder, fields[i], fields[i + 1]) for i in (0, 2))
    return one, other, fields[0] == fields[2]


def _numbered(folder: Path, name: str, number: str) -> Path:
    stem = folder / name / f"{name}_{number.lstrip('0').zfill(4)}"
    candidates = [stem.with_name(stem.name + suffix) for suffix in IMAGE_SUFFIXES]
    return next((path for path in candidates if is_there(path.is_file)), None) or _existing(candidates[0])


def _existing(path: Path) -> Path:
    if not is_there(path.is_file):
        raise UserError(f"no photo {path}")
    return path


def make_pairs(folder: Path, n_pairs: int, seed: int) -> PhotoPairs:
    """Pairs of the photos in a folder that holds a folder for each person, no pair twice; the same for the same seed.

    Half are of one person, people taken by turns, in an order drawn at random, so that those of many photos do not
    outweigh the others; half are of two people drawn at random. Where there are fewer pairs of a kind than asked for,
    all of that kind are taken. Hidden files and folders are left out.

    Raises UserError where there are not two people, or nobody has two photos.
    """
    if not is_there(folder.is_dir):
        raise UserError(f"--folder {folder}: no such folder")
    people = [photos for person in _shown(folder) if person.is_dir() and (photos := _photos(person))]
    if len(people) < 2 or all(len(photos) < 2 for photos in people):
        raise UserError(
            f"--folder {folder}: {len(people)} folders with photos; it should hold one a person, two people at least, "
            "and two photos of somebody"
        )
    rng = np.random.default_rng(seed)
    people = [people[i] for i in rng.permutation(len(people))]
    same = _same_pairs(people, n_pairs // 2, rng)
    different = _different_pairs(people, n_pairs - n_pairs // 2, rng)
    mixed = itertools.chain.from_iterable(itertools.zip_longest(same, different))  # both kinds in every fold
    return PhotoPairs.of(folder.resolve().name, [pair for pair in mixed if pair])


def _photos(folder: Path) -> list[Path]:
    return [path for path in _shown(folder) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def _shown(folder: Path) -> list[Path]:
    """What is in a folder but for hidden things, such as the ._photo.jpg that other systems leave beside a photo."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _same_pairs(people: list[list[Path]], n: int, rng: np.random.Generator) -> list[Pair]:
    def of_one(photos: list[Path]) -> Iterator[Pair]:
        combinations = len(photos) * (len(photos) - 1) // 2
        for k in rng.choice(combinations, min(n, combinations), replace=False) if combinations else []:
            high = int((1 + (1 + 8 * int(k)) ** 0.5) / 2)  # the k-th pair: high > low, counted row by row
            yield photos[int(k) - high * (high - 1) // 2], photos[high], True

    by_turns = itertools.chain.from_iterable(itertools.zip_longest(*map(of_one, people)))
    return list(itertools.islice((pair for pair in by_turns if pair), n))


def _different_pairs(people: list[list[Path]], n: int, rng: np.random.Generator) -> list[Pair]:
    counts = np.array([len(photos) for photos in people])
    available = (counts.sum() ** 2 - (counts**2).sum()) // 2
    if available <= 2 * n:  # too few to find unused ones by chance
        every = [(a, b) for one, other in itertools.combinations(people, 2) for a in one for b in other]
        return [(*every[i], False) for i in rng.permutation(len(every))[:n]]
    found: dict[tuple[Path, Path], None] = {}
    while len(found) < n:
        one, other = sorted(rng.choice(len(people), 2, replace=False))
        photos = people[one][rng.integers(counts[one])], people[other][rng.integers(counts[other])]
        found.setdefault(photos)
    return [(*photos, False) for photos in found]


def add_photo_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name a person's own photos."""
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="your own pairs: LFW style, or path,path,same")
    parser.add_argument("--images", type=Path, metavar="DIR", help="the folder that the photos of --pairs lie in")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="make pairs of the photos in it, a folder a person")
    parser.add_argument("--n-pairs", type=int, default=6000, help="how many pairs --folder makes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs that --folder makes (%(default)s)")


def photo_pairs(args: argparse.Namespace) -> PhotoPairs | None:
    """The pairs that those options name; None where they name none."""
    if args.pairs and args.folder:
        raise UserError("--pairs and --folder: take one of them")
    if args.images and not args.pairs:
        raise UserError("--images: goes with --pairs")
    if args.n_pairs < 20 or args.seed < 0:
        raise UserError(f"--n-pairs {args.n_pairs} --seed {args.seed}: should be from 20 and from 0")
    if args.folder:
        return make_pairs(args.folder, args.n_pairs, args.seed)
    return read_pairs(args.pairs, args.images) if args.pairs else None
