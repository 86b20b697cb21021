"""Measures time and memory of verification: loading a .bin, and the measures compared with a loop over thresholds.

Run from the root of the project:

    python benchmarks/verification.py --bin data/faces_emore/lfw.bin

The measures are computed on random embeddings of size 512 for the pairs of the set, because their time does not depend
on the values. Both implementations get the same embeddings and have to agree.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.verification import FAR_TARGET, FINE_THRESHOLDS, THRESHOLDS, evaluate, evaluate_distances, load_bin
from utils.errors import run_cli

FOLDS = 10
T = TypeVar("T")


def loop_distances(embeddings: NDArray[np.floating]) -> NDArray[np.floating]:
    """Returns the squared distances (N,) of normalised embeddings (2N, D)."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.sum(np.square(unit[0::2] - unit[1::2]), axis=1)


def loop_rates(threshold: float, dist: NDArray[np.floating], same: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Returns true accept rate, false accept rate and accuracy at one threshold."""
    accepted = np.less(dist, threshold)
    true_accepts, false_accepts = int(np.sum(accepted & same)), int(np.sum(accepted & ~same))
    different = int(np.sum(~same))
    accuracy = (true_accepts + different - false_accepts) / dist.size
    return true_accepts / int(np.sum(same)), false_accepts / different, accuracy


def loop_measures(dist: NDArray[np.floating], same: NDArray[np.bool_]) -> tuple[list[float], list[float]]:
    """Returns accuracy and VAL of every fold; loops over folds and thresholds, and computes the ROC curves as well."""
    accuracy, val, curves = [], [], []
    for held_out in np.array_split(np.arange(len(dist)), FOLDS):
        others = np.delete(np.arange(len(dist)), held_out)
        train = [loop_rates(t, dist[others], same[others])[2] for t in THRESHOLDS]
        curves.append([loop_rates(t, dist[held_out], same[held_out])[:2] for t in THRESHOLDS])
        accuracy.append(loop_rates(THRESHOLDS[np.argmax(train)], dist[held_out], same[held_out])[2])
        far = np.array([loop_rates(t, dist[others], same[others])[1] for t in FINE_THRESHOLDS])
        threshold = float(np.interp(FAR_TARGET, far, FINE_THRESHOLDS)) if far.max() >= FAR_TARGET else 0.0
        val.append(loop_rates(threshold, dist[held_out], same[held_out])[0])
    return accuracy, val


def random_embeddings(same: NDArray[np.bool_], dims: int = 512) -> NDArray[np.float32]:
    """Returns embeddings (2N, dims), closer in most same pairs than in different ones."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, len(same), dims), dtype=np.float32)
    similarity = np.where(same, 0.4, 0.0) + 0.08 * rng.standard_normal(len(same))
    second += (similarity[:, np.newaxis] * 2 * first).astype(np.float32)
    return np.stack([first, second], axis=1).reshape(-1, dims)


def best_time(function: Callable[[], T], repeats: int) -> tuple[float, T]:
    """Returns the shortest time in seconds, and the result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def main() -> None:
    """Runs the benchmark and prints its table. Raises SystemExit if the two implementations disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True, help="a verification set, such as lfw.bin")
    args = parser.parse_args()

    seconds, (images, same) = best_time(lambda: load_bin(args.bin), repeats=1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"load {len(same)} pairs: {seconds:.3f} s")
    print(f"peak memory: {peak / 1e9:.3f} GB, of which pixels {images.nbytes / 1e9:.3f} GB")
    del images

    embeddings = random_embeddings(same)
    dist = loop_distances(embeddings)
    loop_dist_time, _ = best_time(lambda: loop_distances(embeddings), repeats=3)
    loop_time, (accuracy, val) = best_time(lambda: loop_measures(dist, same), repeats=1)
    array_dist_time, result = best_time(lambda: evaluate_distances(dist, same, FOLDS), repeats=10)
    array_time, _ = best_time(lambda: evaluate(embeddings, same, FOLDS), repeats=10)
    if accuracy != result.accuracy_folds.tolist() or not np.isclose(np.mean(val), result.val):
        raise SystemExit("the two implementations disagree")

    print("measures              loop    arrays   ratio")
    for name, loop, arrays in (
        ("of the distances", loop_time, array_dist_time),
        ("of the embeddings", loop_time + loop_dist_time, array_time),
    ):
        print(f"{name:18}{loop * 1e3:8.1f}  {arrays * 1e3:8.2f}  {loop / arrays:6.0f}   (ms)")


if __name__ == "__main__":
    run_cli(main)
