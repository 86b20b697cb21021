"""Spread of scores between cells against spread between seeds, and the rank of a score among them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from matplotlib.figure import Figure
from scipy import stats


@dataclass(frozen=True)
class Spread:
    """Analysis of variance of scores of several cells, each with the same number of seeds: one way, random effects.

    The model is score = mean + cell + error; the error is what the seed changes. (Searle, Casella, McCulloch: Variance
    Components, Section 3.6; intraclass correlations as in Shrout and Fleiss 1979.)
    """

    mean: float
    between_cells: float  # standard deviation of the cells' true means, without what seeds add to it; at least 0
    between_seeds: float  # standard deviation of a cell's scores over seeds
    icc: float  # intraclass correlation: the part of the variance of single scores that the cells make
    icc_low: float  # 95 % confidence interval
    icc_high: float
    icc_mean: float  # the same for means over the seeds; negative where cells differ less than by chance
    spearman: float  # rank correlation of the cells by two seeds, mean over all pairs of seeds

    def to_dict(self) -> dict[str, float]:
        """Returns all figures by name."""
        return asdict(self)


def measure_spread(scores: np.ndarray) -> Spread:
    """Analyses scores (cells, seeds), at least two of both."""
    cells, seeds = scores.shape
    between = seeds * float(np.var(scores.mean(axis=1), ddof=1))  # mean squares
    within = float(np.mean(np.var(scores, axis=1, ddof=1)))
    freedom = cells - 1, cells * (seeds - 1)
    ratio = between / within if within else math.inf

    def icc(f: float) -> float:
        """Returns the intraclass correlation for a ratio of mean squares."""
        return 1.0 if math.isinf(f) else float((f - 1) / (f - 1 + seeds))

    return Spread(
        mean=float(scores.mean()),
        between_cells=math.sqrt(max(0.0, (between - within) / seeds)),
        between_seeds=math.sqrt(within),
        icc=icc(ratio),
        icc_low=icc(ratio / float(stats.f.ppf(0.975, *freedom))),
        icc_high=icc(ratio / float(stats.f.ppf(0.025, *freedom))),
        icc_mean=1 - 1 / ratio if ratio else -math.inf,
        spearman=float(
            np.mean([stats.spearmanr(a, b).statistic for a, b in itertools.combinations(scores.T, 2)]),
        ),
    )


def percentile(score: float, others: Sequence[float]) -> float:
    """Returns the percentage of `others` below the score, with half of the equal ones."""
    below, equal = (np.asarray(others) < score).sum(), (np.asarray(others) == score).sum()
    return float(100 * (below + equal / 2) / len(others))


def draw_scores(
    names: Sequence[str], scores: np.ndarray, others: Mapping[str, Sequence[float]], measure: str
) -> Figure:
    """Draws the scores (cells, seeds) of random cells, sorted, and those of other cells as vertical lines, by name."""
    figure = Figure(figsize=(8, 1.5 + 0.28 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    order = np.argsort(scores.mean(axis=1))
    rows = np.arange(len(order))
    axes.hlines(rows, scores[order].min(axis=1), scores[order].max(axis=1), color="lightgray")
    for seed, column in enumerate(scores[order].T):
        axes.plot(column, rows, "o", color=f"C{seed}", label=f"seed {seed}")
    axes.plot(scores[order].mean(axis=1), rows, "|", color="black", markersize=12, label="mean")
    for i, (name, values) in enumerate(others.items(), start=scores.shape[1]):
        for n, value in enumerate(values):
            axes.axvline(value, color=f"C{i}", label=None if n else name)
    axes.set_yticks(rows, [names[i] for i in order])
    axes.set_xlabel(measure)
    figure.legend(loc="outside upper center", ncols=4)
    return figure
