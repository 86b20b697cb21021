"""Compares two checkpoints, A and B, on the same pairs: statistics, a table, and a figure of the disputed pairs."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from eval.inputs.sets import N_FOLDS, VerificationSet
from eval.scoring import Score
from eval.verification import resampled_accuracies

_MAX_SHOWN = 24  # pairs of each kind in a figure


@dataclass(frozen=True)
class Comparison:
    """Ten-fold accuracies of checkpoints A and B on the same pairs, and the significance of their difference."""

    name: str
    pairs: int
    a: float  # accuracy of A
    b: float  # accuracy of B
    interval: tuple[float, float]  # 95 % confidence interval of b - a, by paired bootstrap
    only_a: int  # number of pairs that only A classifies correctly
    only_b: int
    p: float  # exact McNemar test: probability of a split of the disputed pairs at least this uneven by chance

    @property
    def verdict(self) -> str:
        """Result in words, at a significance level of 5 %."""
        if self.p >= 0.05:
            return "no difference shown"
        return f"{'B' if self.only_b > self.only_a else 'A'} is better"


def compare_scores(name: str, a: Score, b: Score, issame: np.ndarray) -> Comparison:
    """Compares two checkpoints on one set, whose pairs have flags (N,)."""
    return _summarise(name, [a], [b], _bootstrap_differences(a, b, issame))


def compare_all_sets(
    comparisons: list[Comparison], a: list[Score], b: list[Score], sets: list[VerificationSet]
) -> Comparison:
    """Compares two checkpoints on the pairs of all sets as one sample.

    With several sets, one of them is more likely to show a difference by chance. comparisons: those of the single sets.
    """
    weights = np.array([comparison.pairs for comparison in comparisons])
    differences = [
        _bootstrap_differences(score_a, score_b, eval_set.issame, seed)  # one seed per set: sets are independent
        for seed, (score_a, score_b, eval_set) in enumerate(zip(a, b, sets, strict=True))
    ]
    return _summarise("all", a, b, np.average(differences, axis=0, weights=weights))


def _bootstrap_differences(a: Score, b: Score, issame: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns the accuracy of B minus that of A (resamples,) on equal bootstrap samples of the pairs.

    The thresholds are chosen again on each sample.
    """
    accuracies_a, accuracies_b = (resampled_accuracies(s.distances, issame, N_FOLDS, seed=seed) for s in (a, b))
    return accuracies_b - accuracies_a


def _summarise(name: str, a: list[Score], b: list[Score], differences: np.ndarray) -> Comparison:
    correct_a, correct_b = (np.concatenate([score.correct for score in scores]) for scores in (a, b))
    only_a, only_b = int(np.sum(correct_a & ~correct_b)), int(np.sum(correct_b & ~correct_a))
    low, high = np.quantile(differences, [0.025, 0.975])
    disputed = only_a + only_b
    return Comparison(
        name=name,
        pairs=len(correct_a),
        a=float(correct_a.mean()),
        b=float(correct_b.mean()),
        interval=(float(low), float(high)),
        only_a=only_a,
        only_b=only_b,
        p=float(stats.binomtest(only_a, disputed).pvalue) if disputed else 1.0,
    )


def format_table(comparisons: list[Comparison]) -> str:
    """Returns the table of comparisons, with accuracies and intervals in percent."""
    lines = [
        f"{'set':>12}{'pairs':>8}{'A':>8}{'B':>8}{'B - A':>8}{'95 % interval':>18}"
        f"{'only A':>8}{'only B':>8}{'McNemar p':>11}"
    ]
    for c in comparisons:
        low, high = c.interval
        lines.append(
            f"{c.name:>12}{c.pairs:>8}{100 * c.a:>8.2f}{100 * c.b:>8.2f}{100 * (c.b - c.a):>+8.2f}"
            f"{f'{100 * low:+.2f} to {100 * high:+.2f}':>18}{c.only_a:>8}{c.only_b:>8}{c.p:>11.3g}  {c.verdict}"
        )
    lines.append(
        "\nonly A, only B: pairs that only this one classifies correctly. p below 0.05 is taken as a difference."
    )
    return "\n".join(lines)


def plot_disputed_pairs(eval_set: VerificationSet, a: Score, b: Score) -> Figure | None:
    """Draws the pairs that only one of A and B classifies correctly, the clearest first; None if there are none."""
    disputed = np.flatnonzero(a.correct != b.correct)
    if not len(disputed):
        return None
    margins = np.abs(a.distances - a.threshold) + np.abs(b.distances - b.threshold)
    disputed = disputed[np.argsort(-margins[disputed], kind="stable")]
    kinds = {"only A is right": disputed[a.correct[disputed]], "only B is right": disputed[b.correct[disputed]]}
    shown = [(kind, pair) for kind, pairs in kinds.items() for pair in pairs[:_MAX_SHOWN]]
    columns = 6
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.4 * columns, 1.75 * rows + 0.6), layout="constrained")
    counts = ", ".join(f"{kind}: {len(pairs)}" for kind, pairs in kinds.items())
    title = f"{eval_set.name}: {counts} (squared distances; thresholds: A {a.threshold:.2f}, B {b.threshold:.2f})"
    figure.suptitle(title, parse_math=False)
    for position, (kind, pair) in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, columns, position)
        axes.imshow(np.hstack([eval_set.images[row] for row in eval_set.pairs[pair]]))
        axes.set_axis_off()
        people = "same" if eval_set.issame[pair] else "different"
        axes.set_title(
            f"{people}, {kind}\nA {a.distances[pair]:.2f}   B {b.distances[pair]:.2f}",
            fontsize=8, color="tab:blue" if kind.startswith("only A") else "tab:red",
        )  # fmt: skip
    return figure
