"""Is checkpoint B better than A, or is it chance? python eval/compare.py A B [--config FILE] [field=value …]

A and B are checkpoints, or folders (their last one is taken). Where no --config is named, the config.json of each
one's run says its network; --config-b names B's config where it is another. Both judge the same pairs: those of
config.val_targets, or your own (--pairs, --folder; as for eval/eval.py). Leaves in --out: compare.txt, compare.json,
and compare_{set}.png, the pairs on which they differ. Those of another comparison there are moved to a folder old-N.

The interval takes in that thresholds are chosen from data too, so it can lie off the difference seen; McNemar's test
takes the thresholds as they are.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

if not __package__:  # run as a script, this folder stands first on the path instead of the project's
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from easydict import EasyDict
from matplotlib.figure import Figure
from scipy import stats

from backbones import build_backbone
from config import (
    CommandParser,
    add_config_arguments,
    from_project,
    from_working_folder,
    load_config,
    log_unused,
    require_data,
    typed_path,
)
from eval.inference.embedding import make_runtime
from eval.inputs.arguments import add_photo_arguments, photo_pairs
from eval.inputs.sets import N_FOLDS, VerificationSet, load_sets
from eval.scoring import Score, Scorer
from eval.verification import resampled_accuracies
from utils.checkpoints.weights import backbone_name, find_backbones, load_weights
from utils.distributed.process_group import World, init_distributed, to_device
from utils.errors import UserError, run_cli
from utils.filesystem import archive, make_writable, open_regular_file, save_figure, write_files, write_text_atomic
from utils.logs.run_log import init_logging

_SHOWN = 24  # pairs of each kind in a picture


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints on the same pairs, each judged ten-fold."""

    name: str
    pairs: int
    a: float  # accuracies
    b: float
    interval: tuple[float, float]  # 95 %, of b - a: paired bootstrap
    only_a: int  # pairs that A alone judges rightly
    only_b: int
    p: float  # McNemar's test, exact: so uneven a split of the pairs in dispute, or more so, by chance

    @property
    def verdict(self) -> str:
        """In words."""
        if self.p >= 0.05:
            return "no difference shown"
        return f"{'B' if self.only_b > self.only_a else 'A'} is better"


def main() -> None:
    """The command line."""
    parser = CommandParser("Compare two checkpoints on the same pairs.")
    parser.add_argument("a", metavar="A", help="a checkpoint, or a folder of them")
    parser.add_argument("b", metavar="B", help="another")
    add_config_arguments(parser)
    parser.add_argument("--config-b", metavar="FILE", help="B's config (default: its run's own, or A's)")
    out = Path(from_project("output/compare"))
    parser.add_argument("--out", type=typed_path, default=out, help="folder for the results (%(default)s)")
    add_photo_arguments(parser)
    args = parser.parse()
    args.a, args.b = from_working_folder(args.a), from_working_folder(args.b)
    sides = ((args.config, args.a), (args.config_b or args.config, args.b))
    configs = [load_config(path, args.overrides, saved_in=weights) for path, weights in sides]
    files = [list(find_backbones(path, name).values())[-1] for path, name in ((args.a, "A"), (args.b, "B"))]
    photos = photo_pairs(args)
    if photos is None:
        require_data(configs[0])
    try:
        make_writable(args.out)
    except OSError as error:
        raise UserError(f"--out {args.out}: {error.strerror}; name another folder") from None

    with init_distributed() as world:
        init_logging(args.out / "compare.log")
        for config in {id(config): config for config in configs}.values():
            log_unused(config, "eval")
        scorer = Scorer(configs[0], world, load_sets(configs[0], photos, world))
        a, b = (score(scorer, config, path, world) for config, path in zip(configs, files, strict=True))
    comparisons = [compare(held.name, a[held.name], b[held.name], held.issame) for held in scorer.sets]
    if len(comparisons) > 1:
        comparisons.append(total(comparisons, list(a.values()), list(b.values()), scorer.sets))
    warnings = [f"{held.name}: {held.warning}" for held in scorer.sets if held.warning]
    text = "\n".join([f"A: {files[0]}\nB: {files[1]}\n\n{format_table(comparisons)}", *warnings])
    print(f"\n{text}", flush=True)
    rows = [asdict(comparison) | {"verdict": comparison.verdict} for comparison in comparisons]
    content = json.dumps({"a": str(files[0]), "b": str(files[1]), "sets": rows}, indent=2)
    writers: dict[Path, Callable[[Path], object]] = {
        args.out / "compare.txt": lambda path: write_text_atomic(path, text + "\n"),
        args.out / "compare.json": lambda path: write_text_atomic(path, content),
    }
    for held in scorer.sets:
        picture = args.out / f"compare_{held.name.replace('/', '_')}.png"
        writers[picture] = partial(write_differences, held, a[held.name], b[held.name])
    if old := set_aside(args.out, content):
        print(f"\nThe earlier comparison in {args.out} is now in {old}", flush=True)
    write_files(writers, "make room, or name another folder with --out")
    print(f"\nIn {args.out}: compare.txt, compare.json and, as compare_SET.png, the pairs in dispute")


def score(scorer: Scorer, config: EasyDict, path: Path, world: World) -> dict[str, Score]:
    """One checkpoint's scores. Raises UserError naming the file."""
    backbone = to_device(build_backbone(config), world)
    load_weights(backbone, path)
    runtime = make_runtime(backbone, config, world, scorer.n_images)
    try:
        return scorer.score(runtime, backbone_name(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def set_aside(folder: Path, content: str) -> Path | None:
    """Move the files of a comparison in a folder, other than the one of this compare.json, to a folder old-N; return
    that. Raises UserError."""
    names = ("compare.txt", "compare.json", "compare_*.png")
    files = sorted(path for name in names for path in folder.glob(name))
    try:
        with open_regular_file(folder / "compare.json") as file:
            same = file.read() == content.encode()
    except (OSError, UserError):
        same = False
    if same or not files:
        return None
    try:
        return archive(folder, files)
    except OSError as error:
        raise UserError(
            f"--out {folder}: an earlier comparison there cannot be moved to a folder old-N ({error.strerror}); name "
            "another folder"
        ) from None


def write_differences(held: VerificationSet, a: Score, b: Score, path: Path) -> None:
    """Write the picture of the pairs on which A and B differ, if there are any."""
    figure = differences(held, a, b)
    if figure is not None:
        save_figure(path, figure, dpi=100)


def compare(name: str, a: Score, b: Score, issame: np.ndarray) -> Comparison:
    """The comparison on one set."""
    return _comparison(name, [a], [b], _resampled(a, b, issame))


def total(comparisons: list[Comparison], a: list[Score], b: list[Score], sets: list[VerificationSet]) -> Comparison:
    """All pairs of all sets as one sample: with several sets one of them shows a difference by chance more easily."""
    weights = np.array([comparison.pairs for comparison in comparisons])
    resampled = [
        _resampled(one, other, held.issame, seed)  # sets are drawn independently
        for seed, (one, other, held) in enumerate(zip(a, b, sets, strict=True))
    ]
    return _comparison("all", a, b, np.average(resampled, axis=0, weights=weights))


def _resampled(a: Score, b: Score, issame: np.ndarray, seed: int = 0) -> np.ndarray:
    """How much better B is on bootstrap samples of the pairs, the same for both, with thresholds chosen anew."""
    accuracies_a, accuracies_b = (resampled_accuracies(s.distances, issame, N_FOLDS, seed=seed) for s in (a, b))
    return accuracies_b - accuracies_a


def _comparison(name: str, a: list[Score], b: list[Score], differences: np.ndarray) -> Comparison:
    right_a, right_b = (np.concatenate([score.correct for score in scores]) for scores in (a, b))
    only_a, only_b = int(np.sum(right_a & ~right_b)), int(np.sum(right_b & ~right_a))
    low, high = np.quantile(differences, [0.025, 0.975])
    disputed = only_a + only_b
    return Comparison(
        name=name,
        pairs=len(right_a),
        a=float(right_a.mean()),
        b=float(right_b.mean()),
        interval=(float(low), float(high)),
        only_a=only_a,
        only_b=only_b,
        p=float(stats.binomtest(only_a, disputed).pvalue) if disputed else 1.0,
    )


def format_table(comparisons: list[Comparison]) -> str:
    """In percent."""
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
    lines.append("\nonly A, only B: pairs that one alone judges rightly. p below 0.05 is taken as a difference.")
    return "\n".join(lines)


def differences(held: VerificationSet, a: Score, b: Score) -> Figure | None:
    """The pairs that one alone judges rightly, the clearest first; None where there are none."""
    disputed = np.flatnonzero(a.correct != b.correct)
    if not len(disputed):
        return None
    apart = np.abs(a.distances - a.threshold) + np.abs(b.distances - b.threshold)
    disputed = disputed[np.argsort(-apart[disputed], kind="stable")]
    kinds = {"only A is right": disputed[a.correct[disputed]], "only B is right": disputed[b.correct[disputed]]}
    shown = [(kind, pair) for kind, pairs in kinds.items() for pair in pairs[:_SHOWN]]
    columns = 6
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.4 * columns, 1.75 * rows + 0.6), layout="constrained")
    counts = ", ".join(f"{kind}: {len(pairs)}" for kind, pairs in kinds.items())
    title = f"{held.name}: {counts} (squared distances; A cuts at {a.threshold:.2f}, B at {b.threshold:.2f})"
    figure.suptitle(title, parse_math=False)
    for position, (kind, pair) in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, columns, position)
        axes.imshow(np.hstack([held.images[row] for row in held.pairs[pair]]))
        axes.set_axis_off()
        people = "same" if held.issame[pair] else "different"
        axes.set_title(
            f"{people}, {kind}\nA {a.distances[pair]:.2f}   B {b.distances[pair]:.2f}",
            fontsize=8, color="tab:blue" if kind.startswith("only A") else "tab:red",
        )  # fmt: skip
    return figure


if __name__ == "__main__":
    run_cli(main)
