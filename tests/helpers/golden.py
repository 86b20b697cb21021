"""The inputs of the golden vectors."""

import zlib

import numpy as np
import torch


def golden_state(shapes: dict[str, list[int]], seed: int = 11) -> dict[str, torch.Tensor]:
    """Returns the state dict of the golden vectors: float32 values drawn from an RNG seeded by the key."""
    state = {}
    for key, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
        if key.endswith("num_batches_tracked"):
            values = np.zeros(shape, np.int64)
        elif key.endswith("running_var"):
            values = 0.5 + rng.random(shape)
        elif key.endswith("running_mean"):
            values = 0.1 * rng.standard_normal(shape)
        elif len(shape) == 1:
            values = 0.5 + 0.5 * rng.random(shape) if key.endswith("weight") else 0.1 * rng.standard_normal(shape)
        else:
            values = rng.standard_normal(shape) * np.sqrt(0.6 / np.prod(shape[1:]))
        state[key] = torch.from_numpy(np.asarray(values, np.int64 if values.dtype == np.int64 else np.float32))
    return state


def golden_images(seed: int, n: int) -> torch.Tensor:
    """Returns the inputs (n, 3, 112, 112) of the golden vectors."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (n, 3, 112, 112)).astype(np.float32))
