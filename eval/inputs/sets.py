"""Verification sets in memory: each distinct image once, as uint8, and the pairs of images."""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from config.base import Config
from eval.inputs.pairs import PhotoPairs
from utils.datasets.alignment import SIZE
from utils.datasets.photos import PhotoFiles
from utils.datasets.verification.bins import decode_images, read_bin
from utils.distributed.collectives import all_gather_rows, run_on_all, shard_slice
from utils.distributed.process_group import World
from utils.errors import UserError, one_line, quantity
from utils.filesystem import path_exists
from utils.logs.logger import log

N_FOLDS = 10  # of LFW's protocol; the published evaluation uses it for every set


@dataclass(frozen=True)
class VerificationSet:
    """This rank's shard of a set's distinct images, and all pairs of the set."""

    name: str
    images: np.ndarray  # (m, 112, 112, 3) uint8 RGB
    pairs: np.ndarray  # (N, 2) indices into the images of all ranks
    issame: np.ndarray  # (N,) bool
    resized: tuple[int, ...] = ()  # indices of photos that were not 112×112: of this shard; after load_sets, of all
    aligned: bool = False  # whether faces were searched for; `resized` then has the photos without one
    digest: str = ""  # SHA-256 of the pixels and pairs of all ranks; empty before load_sets

    @property
    def warning(self) -> str:
        """Warning shown with every threshold of this set; empty if there is none."""
        if not self.resized:
            return ""
        if self.aligned:
            return f"in {quantity(len(self.resized), 'photo')} no face was found: scored without alignment"
        return (
            f"{quantity(len(self.resized), 'photo')} not {SIZE}×{SIZE} and therefore resized, so probably not aligned "
            "faces: these thresholds hold only for such photos; --align aligns them"
        )


def load_verification_sets(config: Config, photos: PhotoPairs | None, world: World) -> list[VerificationSet]:
    """Loads the user's own photos if given, else the sets of the config.

    Logs warnings about pairs that measure nothing, such as an image paired with itself or a repeated pair. Collective.
    Raises UserError on all ranks if any rank fails.
    """
    sets = run_on_all(world, lambda: [load_photo_set(photos, world)] if photos else load_config_sets(config, world))
    sets = [_gather_contents(eval_set, world) for eval_set in sets]
    if photos:
        _warn_about_photos(sets[0], photos)
    return sets


def _gather_contents(eval_set: VerificationSet, world: World) -> VerificationSet:
    """Returns the set with its digest and the resized images of all ranks, and warns about its pairs. Collective."""
    hashes = b"".join(hashlib.blake2b(image, digest_size=16).digest() for image in eval_set.images)
    contents = all_gather_rows(np.frombuffer(hashes, np.uint64).reshape(-1, 2), world)  # (M, 2)
    resized = all_gather_rows(np.array(eval_set.resized, np.int64), world)
    _warn_about_pairs(eval_set, np.unique(contents, axis=0, return_inverse=True)[1].reshape(-1))
    digest = hashlib.sha256(contents.tobytes() + eval_set.pairs.astype(np.int64).tobytes() + eval_set.issame.tobytes())
    return replace(eval_set, resized=tuple(resized.tolist()), digest=digest.hexdigest())


def _warn_about_pairs(eval_set: VerificationSet, content_ids: np.ndarray) -> None:
    """Logs how many pairs measure nothing. content_ids (M,): equal for images with equal pixels."""
    pairs = np.sort(content_ids[eval_set.pairs], axis=1)  # (N, 2)
    self_pairs = pairs[:, 0] == pairs[:, 1]
    distinct, pair_ids = np.unique(pairs, axis=0, return_inverse=True)
    pair_ids = pair_ids.reshape(-1)
    repeated = len(pairs) - len(distinct)
    same, different = (
        np.bincount(pair_ids[flags], minlength=len(distinct)) > 0 for flags in (eval_set.issame, ~eval_set.issame)
    )
    if self_pairs.any():
        example = int(np.argmax(self_pairs)) + 1
        log.warning(
            f"{eval_set.name}: {int(self_pairs.sum())} of {len(pairs)} pairs compare an image with itself, for example "
            f"pair {example}: they measure nothing"
        )
    if repeated:
        log.warning(f"{eval_set.name}: {repeated} of {len(pairs)} pairs repeat another pair: every repetition counts")
    if (same & different).any():
        log.warning(
            f"{eval_set.name}: {quantity(int(np.sum(same & different)), 'pair')} listed both as the same person "
            "and as different people: one of the labels must be wrong"
        )


def _warn_about_photos(eval_set: VerificationSet, photos: PhotoPairs) -> None:
    for note in photos.notes:
        log.warning(note)
    if eval_set.resized:
        example = one_line(photos.paths[min(eval_set.resized)])
        if photos.is_aligned:
            log.warning(
                f"No face found in {len(eval_set.resized)} of {len(photos.paths)} photos, for example {example}: "
                "scored as they are"
            )
            return
        log.warning(
            f"{len(eval_set.resized)} of {len(photos.paths)} photos are not {SIZE}×{SIZE}, for example {example}: "
            "resized. The networks expect aligned faces (eyes, nose and mouth at fixed positions); other photos lower "
            "the accuracy; --align aligns them"
        )


def load_config_sets(config: Config, world: World) -> list[VerificationSet]:
    """Loads the sets of config.val_targets from config.rec. Leaves out missing files, with a warning in the log.

    A set has the name of its file, or the name in val_targets if files in two folders have the same name. A file that
    is named twice is scored once. Raises UserError if no file exists, or one is not a valid set.
    """
    paths = {target: Path(config.rec, f"{target}.bin") for target in config.val_targets}
    present = {target: path for target, path in paths.items() if path_exists(path.exists)}
    missing = [target for target in paths if target not in present]
    if not present:
        raise UserError(
            f"config val_targets: none of {', '.join(f'{name}.bin' for name in missing) or '(nothing)'} is in "
            f"{config.rec!r}",
            fix="name others with val_targets=NAME,NAME (or train without verification: eval_step=0)",
        )
    for name in missing:
        log.warning(f"No {name}.bin in {config.rec}: left out")
    files = {path.resolve(): target for target, path in reversed(present.items())}  # the first name of each file
    repeated = sum(target in present for target in config.val_targets) - len(files)
    if repeated:
        log.warning(f"config val_targets names {quantity(repeated, 'set')} more than once: scored once")
    distinct = {target: path for target, path in present.items() if files[path.resolve()] == target}
    count = Counter(path.stem for path in distinct.values())
    return [
        load_bin_set(path, world, path.stem if count[path.stem] == 1 else target) for target, path in distinct.items()
    ]


def load_bin_set(path: Path, world: World, name: str = "") -> VerificationSet:
    """Loads a .bin file. An image that is in several pairs, as in LFW and CFP, is kept and embedded once.

    name: of the set; default: the name of the file. Raises UserError.
    """
    encoded, issame = read_bin(path)
    _check_kinds(str(path), issame)
    index_of: dict[bytes, int] = {}
    rows = [index_of.setdefault(image, len(index_of)) for image in encoded]
    first_copies = np.unique(rows, return_index=True)[1]  # positions in the file, for messages
    images = decode_images(
        list(index_of),
        part=shard_slice(len(index_of), world),
        name=lambda index: f"{path}: image {first_copies[index]} of {len(encoded)}",
        progress=f"Decoding {path.stem}" if world.is_main else "",
    )
    return VerificationSet(name or path.stem, images, np.array(rows).reshape(-1, 2), issame)


def load_photo_set(photos: PhotoPairs, world: World) -> VerificationSet:
    """Loads the user's own photos. Those that are not 112×112 are resized. Raises UserError."""
    _check_kinds(photos.name, photos.issame)
    part = shard_slice(len(photos.paths), world)
    resized: list[int] = []
    images = decode_images(
        PhotoFiles(photos.paths),
        part=part,
        name=lambda index: one_line(photos.paths[index]),
        resized=resized,
        open_with=photos.opener,
        progress=f"Decoding {photos.name}" if world.is_main else "",
    )
    indices = tuple(sorted(resized))
    return VerificationSet(photos.name, images, photos.pairs, photos.issame, indices, photos.is_aligned)


def _check_kinds(source: str, issame: np.ndarray) -> None:
    """Raises UserError if there are fewer pairs than folds, or all pairs are of one kind."""
    if len(issame) < N_FOLDS or issame.all() or not issame.any():
        raise UserError(
            f"{source}: {quantity(len(issame), 'pair')}, {int(issame.sum())} of them of one person: verification needs "
            f"pairs of both kinds, {N_FOLDS} at least"
        )
