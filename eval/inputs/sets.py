"""Verification sets in memory: every distinct image once, as uint8, and the pairs of them."""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from easydict import EasyDict

from eval.inputs.bins import decode, read_bin
from eval.inputs.pairs import PhotoPairs
from eval.inputs.photos import PhotoFiles, open_photo
from utils.datasets.transforms import SIZE
from utils.distributed.collectives import all_gather_rows, run_on_all, shard_slice
from utils.distributed.process_group import World
from utils.errors import UserError, one_line
from utils.filesystem import path_exists
from utils.logs.run_log import log

N_FOLDS = 10  # as LFW's protocol has it, and the published evaluation for every set


@dataclass(frozen=True)
class VerificationSet:
    """This process's share of a set's distinct images, and all its pairs."""

    name: str
    images: np.ndarray  # (m, 112, 112, 3) uint8 RGB
    pairs: np.ndarray  # (N, 2) rows of the images of all processes
    issame: np.ndarray  # (N,) bool
    resized: tuple[int, ...] = ()  # rows of photos that were not 112×112: those of this share, after load_sets all
    digest: str = ""  # of the pixels and pairs of all processes; empty before load_sets

    @property
    def warning(self) -> str:
        """What stands beside every threshold of this set; empty where nothing is to be said."""
        if not self.resized:
            return ""
        return (
            f"{len(self.resized)} photos were not {SIZE}×{SIZE} and were resized, so they are hardly aligned faces: "
            "these thresholds hold for such photos alone, align them first"
        )


def load_sets(config: EasyDict, photos: PhotoPairs | None, world: World) -> list[VerificationSet]:
    """Load a person's own photos where there are some, else the sets of the config.

    What is odd about a set (a photo paired with itself, a pair twice, …) is counted in warnings of the log. A UserError
    of any process ends all of them.
    """
    sets = run_on_all(world, lambda: [photo_set(photos, world)] if photos else config_sets(config, world))
    sets = [_identify(held, world) for held in sets]
    if photos:
        _warn_of_photos(sets[0], photos)
    return sets


def _identify(held: VerificationSet, world: World) -> VerificationSet:
    """The set with its digest, and what is known of all processes' images."""
    hashes = b"".join(hashlib.blake2b(image, digest_size=16).digest() for image in held.images)
    contents = all_gather_rows(np.frombuffer(hashes, np.uint64).reshape(-1, 2), world)  # (M, 2)
    resized = all_gather_rows(np.array(held.resized, np.int64), world)
    _warn_of_pairs(held, np.unique(contents, axis=0, return_inverse=True)[1].reshape(-1))
    whole = hashlib.sha256(contents.tobytes() + held.pairs.astype(np.int64).tobytes() + held.issame.tobytes())
    return replace(held, resized=tuple(resized.tolist()), digest=whole.hexdigest())


def _warn_of_pairs(held: VerificationSet, image_of: np.ndarray) -> None:
    """Count the pairs that measure nothing. image_of (M,): equal for rows whose pixels are equal."""
    pairs = np.sort(image_of[held.pairs], axis=1)  # (N, 2)
    itself = pairs[:, 0] == pairs[:, 1]
    distinct, which = np.unique(pairs, axis=0, return_inverse=True)
    which = which.reshape(-1)
    repeated = len(pairs) - len(distinct)
    same, different = (np.bincount(which[flags], minlength=len(distinct)) > 0 for flags in (held.issame, ~held.issame))
    if itself.any():
        example = int(np.argmax(itself)) + 1
        log.warning(
            f"{held.name}: {int(itself.sum())} of {len(pairs)} pairs are an image and itself, pair {example} for one: "
            "they measure nothing"
        )
    if repeated:
        log.warning(f"{held.name}: {repeated} of {len(pairs)} pairs are repetitions of another: each counts every time")
    if (same & different).any():
        log.warning(
            f"{held.name}: {int(np.sum(same & different))} pairs stand in it both as the same person and as different "
            "people: one of them has to be wrong"
        )


def _warn_of_photos(held: VerificationSet, photos: PhotoPairs) -> None:
    for note in photos.notes:
        log.warning(note)
    if held.resized:
        example = one_line(photos.paths[min(held.resized)])
        log.warning(
            f"{len(held.resized)} of {len(photos.paths)} photos are not {SIZE}×{SIZE}, {example} for one: resized. The "
            "networks want aligned faces (eyes, nose and mouth at fixed places); others cost accuracy"
        )


def config_sets(config: EasyDict, world: World) -> list[VerificationSet]:
    """The sets of config.val_targets in config.rec; single missing ones are left out, told in the log.

    A set is called by its file's name, or as in val_targets where another file has the same name in another folder; a
    file that is named twice is scored once. Raises UserError where none is there, or one cannot be used.
    """
    paths = {target: Path(config.rec, f"{target}.bin") for target in config.val_targets}
    present = {target: path for target, path in paths.items() if path_exists(path.exists)}
    missing = [target for target in paths if target not in present]
    if not present:
        raise UserError(
            f"config val_targets: none of {', '.join(f'{name}.bin' for name in missing) or '(nothing)'} is in "
            f"{config.rec!r}; name others with val_targets=NAME,NAME (or train without: eval_step=0)"
        )
    for name in missing:
        log.warning(f"No {name}.bin in {config.rec}: left out")
    files = {path.resolve(): target for target, path in reversed(present.items())}  # the first name of each
    twice = sum(target in present for target in config.val_targets) - len(files)
    if twice:
        log.warning(f"config val_targets names {twice} set{'s' if twice > 1 else ''} more than once: scored once")
    wanted = {target: path for target, path in present.items() if files[path.resolve()] == target}
    count = Counter(path.stem for path in wanted.values())
    return [bin_set(path, world, path.stem if count[path.stem] == 1 else target) for target, path in wanted.items()]


def bin_set(path: Path, world: World, name: str = "") -> VerificationSet:
    """A verification file. An image that stands in several pairs, as in LFW and CFP, is kept and embedded once.

    name: of the set; default: the file's.
    """
    encoded, issame = read_bin(path)
    _check_kinds(str(path), issame)
    firsts: dict[bytes, int] = {}
    rows = [firsts.setdefault(image, len(firsts)) for image in encoded]
    places = np.unique(rows, return_index=True)[1]  # of the first copies in the file, for messages
    images = decode(
        list(firsts),
        part=shard_slice(len(firsts), world),
        name=lambda index: f"{path}: image {places[index]} of {len(encoded)}",
        progress=f"Decoding {path.stem}" if world.is_main else "",
    )
    return VerificationSet(name or path.stem, images, np.array(rows).reshape(-1, 2), issame)


def photo_set(photos: PhotoPairs, world: World) -> VerificationSet:
    """A person's own photos, read by the threads that decode them. Those that are not 112×112 are resized."""
    _check_kinds(photos.name, photos.issame)
    part = shard_slice(len(photos.paths), world)
    resized: list[int] = []
    images = decode(
        PhotoFiles(photos.paths),
        part=part,
        name=lambda index: one_line(photos.paths[index]),
        resized=resized,
        open_with=open_photo,
        progress=f"Decoding {photos.name}" if world.is_main else "",
    )
    return VerificationSet(photos.name, images, photos.pairs, photos.issame, tuple(sorted(resized)))


def _check_kinds(source: str, issame: np.ndarray) -> None:
    if len(issame) < N_FOLDS or issame.all() or not issame.any():
        raise UserError(
            f"{source}: {len(issame)} pairs, {int(issame.sum())} of them of one person: verification needs pairs of "
            f"both kinds, {N_FOLDS} at least"
        )
