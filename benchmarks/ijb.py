"""Measures time and memory of IJB-C's pooling, scoring and table on random features, and of a scan per template.

    python benchmarks/ijb.py [--dims 128] [--scan 2000]

The sizes are IJB-C's: 469,375 images, 23,124 templates, 15,658,489 pairs. The scan is the method of the published code;
it runs for --scan templates and some of the pairs, 100,000 at a time, and its time is extrapolated to all of them.
"""

import argparse
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_curve

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.IJB.report import FPRS
from eval.IJB.templates import Embeddings, pool_templates, score_pairs
from eval.reporting.roc import auc, roc, tpr_nearest
from utils.errors import UserError, run_cli

IMAGES, TEMPLATES, PAIRS, SAME = 469_375, 23_124, 15_658_489, 19_557


def random_features(dims: int) -> tuple[np.ndarray, ...]:
    """Returns embeddings of images and flips (N, D), detector scores, templates and media (N,), and pairs.

    The pairs are two template arrays (P,) and a flag (P,), whether both show the same person.
    """
    rng = np.random.default_rng(0)
    templates = np.concatenate([np.arange(TEMPLATES), rng.integers(0, TEMPLATES, IMAGES - TEMPLATES)])
    rng.shuffle(templates)
    media = templates * 8 + rng.integers(0, 8, IMAGES)
    people = rng.standard_normal((TEMPLATES // 6, dims), dtype=np.float32)
    direct = rng.standard_normal((IMAGES, dims), dtype=np.float32)
    direct += 0.5 * people[templates % len(people)]
    flipped = direct + rng.standard_normal((IMAGES, dims), dtype=np.float32)
    first, second = rng.integers(0, TEMPLATES, (2, PAIRS), dtype=np.int32)
    second[:SAME] = (first[:SAME] + len(people)) % TEMPLATES  # the same person
    same = first % len(people) == second % len(people)
    return direct, flipped, rng.random(IMAGES, dtype=np.float32), templates, media, first, second, same


def scan(
    features: np.ndarray,
    templates: np.ndarray,
    media: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    n_templates: int,
) -> tuple[float, float, np.ndarray]:
    """Pools and scores as the published code does, for the first n_templates templates and a million pairs.

    Returns the extrapolated seconds of pooling and of scoring for all, and the features of those templates.
    """
    start = time.perf_counter()
    pooled = np.zeros((n_templates, features.shape[1]))
    for template in range(n_templates):
        rows = np.flatnonzero(templates == template)
        template_features = features[rows]
        for medium in np.unique(media[rows]):
            pooled[template] += template_features[media[rows] == medium].mean(axis=0)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    pooling = (time.perf_counter() - start) * TEMPLATES / n_templates
    all_features = np.resize(pooled, (TEMPLATES, pooled.shape[1]))
    start = time.perf_counter()
    chunks = 10
    for chunk in range(chunks):
        part = slice(chunk * 100_000, (chunk + 1) * 100_000)
        np.sum(all_features[first[part]] * all_features[second[part]], axis=-1)
    scoring = (time.perf_counter() - start) * PAIRS / (chunks * 100_000)
    return pooling, scoring, pooled


def main() -> None:
    """Runs the benchmark and prints its results. Raises SystemExit if the two methods disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, default=128, help="embedding size (%(default)s)")
    parser.add_argument("--scan", type=int, default=1000, help="templates of the scan (%(default)s)")
    args = parser.parse_args()
    if not 2 <= args.dims <= 4096 or not 1 <= args.scan <= TEMPLATES:
        raise UserError(f"--dims {args.dims} --scan {args.scan}: from 2 to 4096, and from 1 to {TEMPLATES}")
    direct, flipped, det, templates, media, first, second, same = random_features(args.dims)
    tracemalloc.start()  # numpy reports its arrays to it
    marks = [time.perf_counter()]
    pooled = pool_templates(Embeddings(direct, flipped, det), templates, media)
    marks.append(time.perf_counter())
    scores = score_pairs(pooled.features, first, second)
    marks.append(time.perf_counter())
    curve = roc(scores, same)
    table, area = tpr_nearest(curve, FPRS), auc(curve)
    marks.append(time.perf_counter())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    pooling, scoring, rating = np.diff(marks)
    print(f"{IMAGES:,} images with {args.dims}-dimensional embeddings, {TEMPLATES:,} templates, {PAIRS:,} pairs")
    print(
        f"pooling {pooling:.2f} s, scoring {scoring:.2f} s, ROC and table {rating:.2f} s: {sum(np.diff(marks)):.2f} s"
    )
    print(f"peak memory besides features, pairs and flags: {peak / 1e9:.2f} GB")
    print("TPR in % at " + ", ".join(f"{fpr:.0e}: {100 * rate:.2f}" for fpr, rate in zip(FPRS, table, strict=True)))

    weighted = (direct + flipped) * det[:, np.newaxis]
    scan_pooling, seconds, scanned = scan(weighted, templates, media, first, second, args.scan)
    if not np.allclose(scanned, pooled.features[: args.scan], atol=1e-5):
        raise SystemExit("the two methods disagree")
    start = time.perf_counter()
    fpr, tpr, _ = roc_curve(same, scores)
    seconds += scan_pooling + time.perf_counter() - start
    if not np.isclose(np.trapezoid(tpr, fpr), area):
        raise SystemExit("the two curves disagree")
    print(f"a scan per template, 100,000 pairs at a time, scikit-learn's curve: {seconds:.1f} s (extrapolated)")
    print(f"ratio {seconds / sum(np.diff(marks)):.1f}; of pooling only {scan_pooling / pooling:.1f}")


if __name__ == "__main__":
    run_cli(main)
