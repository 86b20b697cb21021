"""Statistics of runs that differ in one thing and share their seeds: paired differences, their table and picture."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, and its confidence interval."""

    mean: float
    low: float
    high: float


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Returns the mean difference of values of the same seeds, at least two, with Student's t interval of the mean."""
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * error
    return Difference(mean, mean - reach, mean + reach)


def table(accuracies: Mapping[str, Sequence[float]], baseline: str) -> str:
    """Returns a row for each method: mean ± standard deviation, and its paired difference to the baseline.

    accuracies: in %, by method, each one per seed and in the order of the seeds.
    """
    width = max(map(len, accuracies)) + 2
    lines = [f"{'':<{width}}{'accuracy':>15}{f'to {baseline}':>12}{'95 % interval':>18}   by seed"]
    for method, values in accuracies.items():
        spread = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
        difference = interval = ""
        if method != baseline:
            found = paired_difference(values, accuracies[baseline])
            difference, interval = f"{found.mean:+.2f}", f"{found.low:+.2f} to {found.high:+.2f}"
        by_seed = "  ".join(f"{value:.2f}" for value in values)
        lines.append(f"{method:<{width}}{spread:>15}{difference:>12}{interval:>18}   {by_seed}")
    return "\n".join(lines)


def draw(accuracies: Mapping[str, Sequence[float]], baseline: str, title: str) -> Figure:
    """Returns a figure: accuracy of every seed at the left, paired differences with intervals at the right."""
    figure = Figure(figsize=(10, 0.9 + 0.42 * len(accuracies)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for row, (method, values) in enumerate(accuracies.items()):
        left.plot(values, [row] * len(values), "o", color="tab:gray", markersize=4, alpha=0.6)
        left.plot(statistics.mean(values), row, "D", color="tab:red", markersize=6)
        if method != baseline:
            found = paired_difference(values, accuracies[baseline])
            right.plot([found.low, found.high], [row, row], color="tab:red")
            right.plot(found.mean, row, "D", color="tab:red", markersize=6)
    left.set_yticks(range(len(accuracies)), list(accuracies))
    left.invert_yaxis()
    left.set_xlabel(f"{title} (%), each seed and the mean")
    right.axvline(0, color="black", linewidth=0.8)
    right.set_xlabel(f"difference to {baseline} with the same seeds, 95 % interval")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure
