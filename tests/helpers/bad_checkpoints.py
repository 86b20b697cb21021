"""Checkpoints that cannot be evaluated."""

from pathlib import Path

import torch


def write_overflowing(path: Path, to: Path) -> None:
    """Writes finite weights whose embeddings are not finite."""
    weights = torch.load(path, weights_only=True)
    for value in weights.values():
        if value.is_floating_point():
            value.fill_(3e38)
    torch.save(weights, to)


def add_bad_checkpoints(folder: Path) -> Path:
    """Adds a truncated checkpoint, one of another network and an overflowing one (steps 3, 4, 5) to that of step 6."""
    (folder / "3backbone.pth").write_bytes((folder / "6backbone.pth").read_bytes()[:5000])
    torch.save({"other.weight": torch.zeros(3)}, folder / "4backbone.pth")
    write_overflowing(folder / "6backbone.pth", folder / "5backbone.pth")
    return folder


def bad_checkpoints_error(total: int) -> str:
    """Returns a pattern for the one-line error that names them."""
    return (
        rf"error: 3 of {total} checkpoints could not be scored: \S*3backbone\.pth: not a readable .*; "
        r"\S*4backbone\.pth: belongs to another network: it has other\.weight .*; \S*5backbone\.pth: .*not finite.*\n"
    )
