"""Verification sets in memory: every distinct image once, as uint8, and the pairs of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from easydict import EasyDict

from eval.bins import decode, read_bin
from eval.pairs import PhotoPairs
from utils.distributed import World, share_of, together
from utils.errors import UserError
from utils.images import SIZE
from utils.run_log import log

N_FOLDS = 10  # as LFW's protocol has it, and the published evaluation for every set


@dataclass(frozen=True)
class VerificationSet:
    """This process's share of a set's distinct images, and all its pairs."""

    name: str
    images: np.ndarray  # (m, 112, 112, 3) uint8 RGB
    pairs: np.ndarray  # (N, 2) rows of the images of all processes
    issame: np.ndarray  # (N,) bool


def load_sets(config: EasyDict, photos: PhotoPairs | None, world: World) -> list[VerificationSet]:
    """A person's own photos where there are some, else the sets of the config; an error is told once."""
    return together(world, lambda: [photo_set(photos, world)] if photos else config_sets(config, world))


def config_sets(config: EasyDict, world: World) -> list[VerificationSet]:
    """The sets of config.val_targets in config.rec; single missing ones are left out, told in the log.

    Raises UserError where none is there, or one cannot be used.
    """
    present = [name for name in config.val_targets if Path(config.rec, f"{name}.bin").is_file()]
    missing = [name for name in config.val_targets if name not in present]
    if not present:
        raise UserError(
            f"config val_targets: none of {', '.join(f'{name}.bin' for name in missing) or '(nothing)'} is in "
            f"{config.rec!r}; name others with val_targets=NAME,NAME (or train without: eval_step=0)"
        )
    for name in missing:
        log.warning(f"No {name}.bin in {config.rec}: left out")
    return [bin_set(Path(config.rec, f"{name}.bin"), world) for name in present]


def bin_set(path: Path, world: World) -> VerificationSet:
    """A verification file. An image that stands in several pairs, as in LFW and CFP, is kept and embedded once."""
    encoded, issame = read_bin(path)
    _check_kinds(str(path), issame)
    firsts: dict[bytes, int] = {}
    rows = [firsts.setdefault(image, len(firsts)) for image in encoded]
    places = np.unique(rows, return_index=True)[1]  # of the first copies in the file, for messages
    images = decode(
        list(firsts),
        part=share_of(len(firsts), world),
        name=lambda index: f"{path}: image {places[index]} of {len(encoded)}",
    )
    return VerificationSet(path.stem, images, np.array(rows).reshape(-1, 2), issame)


def photo_set(photos: PhotoPairs, world: World) -> VerificationSet:
    """A person's own photos. Those that are not 112×112 are resized, and counted in the log."""
    _check_kinds(photos.name, photos.issame)
    part = share_of(len(photos.paths), world)
    resized: list[int] = []
    images = decode(
        [_read(path) for path in photos.paths[part]], name=lambda i: str(photos.paths[part][i]), resized=resized
    )
    if resized:
        example = photos.paths[part][min(resized)]
        log.warning(
            f"{len(resized)} of {len(images)} photos are not {SIZE}×{SIZE}, {example} for one: resized. The networks "
            "want aligned faces (eyes, nose and mouth at fixed places); others cost accuracy"
        )
    return VerificationSet(photos.name, images, photos.pairs, photos.issame)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _check_kinds(source: str, issame: np.ndarray) -> None:
    if len(issame) < N_FOLDS or issame.all() or not issame.any():
        raise UserError(
            f"{source}: {len(issame)} pairs, {int(issame.sum())} of them of one person: verification needs pairs of "
            f"both kinds, {N_FOLDS} at least"
        )
