"""Reads and compares the published files of a run."""

import torch


def read_weights_files(folder) -> dict[str, dict[str, torch.Tensor]]:
    """Returns the state dicts of a run's published files by file name."""
    published = [*folder.glob("*backbone.pth"), *folder.glob("*header.pth")]
    return {path.name: torch.load(path, weights_only=True) for path in published}


def assert_same_weights(one, other) -> None:
    assert one.keys() == other.keys() and one
    for name, state in one.items():
        for key, value in state.items():
            assert torch.equal(value, other[name][key]), f"{name}: {key}"
