"""The speed of exported networks, measured in turn with PyTorch's."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deploy.networks.exported import ExportedNetwork
from utils.datasets.transforms import normalise

BATCH = 32  # images of a call that measures the throughput
MAX_RATIO = 1.05  # times the time of the baseline; smaller differences are those between two measurements
_CALLS = 3  # of a network in its turn
_ROUNDS, _SECONDS = (3, 9), 5.0  # least and most turns of each network, and seconds after which no more begin


@dataclass(frozen=True)
class Speed:
    """Seconds of one call of several networks, each called in turn: by name (rounds,)."""

    seconds: Mapping[str, NDArray[np.float64]]

    def typical(self, name: str) -> float:
        """Returns the median over the rounds, in seconds."""
        return float(np.median(self.seconds[name]))

    def ratio(self, name: str, other: str) -> float:
        """Returns how many times as long a network takes as another one: the median of the rounds' ratios."""
        return float(np.median(self.seconds[name] / self.seconds[other]))


def time_in_turn(
    backbone: nn.Module, files: Mapping[str, Callable[[int], ExportedNetwork]], faces: NDArray[np.uint8], threads: int
) -> Speed:
    """Measures PyTorch eager, under the name "PyTorch", and exported networks, called in turn on the same faces.

    files: by name, a function that opens the network for a number of threads. faces: (B, 112, 112, 3).
    """
    with _torch_threads(threads), torch.inference_mode():
        pixels = normalise(torch.from_numpy(faces)).contiguous()  # (B, 3, 112, 112)
        calls: dict[str, Callable[[], object]] = {"PyTorch": lambda: backbone(pixels)}
        for name, open_network in files.items():
            network = open_network(threads)
            calls[name] = partial(network.run, network.to_input(faces))
        for call in calls.values():
            call()
        rounds: list[list[float]] = []
        end = time.monotonic() + _SECONDS
        while len(rounds) < _ROUNDS[0] or (len(rounds) < _ROUNDS[1] and time.monotonic() < end):
            rounds.append([_seconds(call) for call in calls.values()])
    return Speed(dict(zip(calls, np.array(rounds).T, strict=True)))


def find_slowness(speed: Speed, what: str, name: str, baseline: str) -> str:
    """Returns by how much a network is slower than the baseline, empty if it is not.

    what: the images of a call, as a sentence says it: "one image takes".
    """
    ratio = speed.ratio(name, baseline)
    if ratio <= MAX_RATIO:
        return ""
    return f"it is slower here: {what} {ratio:.2f} times as long as with {baseline}"


def all_threads() -> int:
    """Returns the number of threads of the throughput: one for each core, or OMP_NUM_THREADS."""
    return torch.get_num_threads()


def _seconds(call: Callable[[], object]) -> float:
    """Returns the seconds of a call: the fastest of a few, after one that fills the caches."""
    call()
    times = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
