"""The published files of a run, read and compared."""

import torch


def read_weights_files(folder) -> dict[str, dict[str, torch.Tensor]]:
    """The published files of a run, by name."""
    published = [*folder.glob("*backbone.pth"), *folder.glob("*header.pth")]
    return {path.name: torch.load(path, weights_only=True) for path in published}


def assert_same_weights(one, other) -> None:
    assert one.keys() == other.keys() and one
    for name, state in one.items():
        for key, value in state.items():
            assert torch.equal(value, other[name][key]), f"{name}: {key}"
