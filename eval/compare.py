"""Tests whether checkpoint B is better than A: python eval/compare.py A B [--config FILE] [field=value …]

A and B are checkpoints, or folders, whose last checkpoint is taken. Without --config, each network is read from the
config.json of its run; --config-b names B's config if it differs. Both are evaluated on the same pairs: those of
config.val_targets, or your own (--pairs, --folder; as in eval/eval.py). Writes to --out: compare.txt, compare.json, and
compare_{set}.png with the pairs on which they disagree. Files of another comparison there are moved to a folder old-N.

The confidence interval includes the choice of thresholds from the data, so the measured difference may be outside it.
McNemar's test takes the thresholds as given.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

if not __package__:  # run as a script: sys.path starts with this folder instead of the project's
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from backbones.build import build_backbone
from config import (
    CommandParser,
    add_config_arguments,
    expand_typed_path,
    load_config,
    path_argument,
    require_data,
    resolve_config_path,
    warn_unused_fields,
)
from config.base import Config
from eval.comparison import compare_all_sets, compare_scores, format_table, plot_disputed_pairs
from eval.inference.embedding import make_runtime
from eval.inputs.arguments import add_photo_arguments, load_photo_pairs
from eval.inputs.sets import VerificationSet, load_verification_sets
from eval.scoring import Score, Scorer
from utils.checkpoints.weights import backbone_name, find_backbones, load_weights
from utils.distributed.process_group import World, init_distributed, to_device
from utils.errors import UserError, run_cli
from utils.filesystem import (
    archive_files,
    ensure_writable_folder,
    open_regular_file,
    save_figure,
    write_files,
    write_text_atomic,
)
from utils.logs.logger import init_logging


def main() -> None:
    """Parses the command line, scores both checkpoints, compares them and writes the results."""
    args = parse_arguments()
    sides = ((args.config, args.a), (args.config_b or args.config, args.b))
    configs = [load_config(path, args.overrides, saved_in=weights) for path, weights in sides]
    files = [list(find_backbones(path, name).values())[-1] for path, name in ((args.a, "A"), (args.b, "B"))]
    photos = load_photo_pairs(args)
    if photos is None:
        require_data(configs[0])
    try:
        ensure_writable_folder(args.out)
    except OSError as error:
        raise UserError(f"--out {args.out}: {error.strerror}", fix="name another folder") from None

    with init_distributed(configs[0].device) as world:
        init_logging(args.out / "compare.log")
        for config in {id(config): config for config in configs}.values():
            warn_unused_fields(config, "eval")
        scorer = Scorer(configs[0], world, load_verification_sets(configs[0], photos, world))
        a, b = (score_checkpoint(scorer, config, path, world) for config, path in zip(configs, files, strict=True))
    write_results(args.out, files, scorer.sets, a, b)


def parse_arguments() -> argparse.Namespace:
    """Parses the command line. Expands '~' in A and B."""
    parser = CommandParser("Compare two checkpoints on the same pairs.")
    parser.add_argument("a", metavar="A", help="a checkpoint, or a folder of checkpoints")
    parser.add_argument("b", metavar="B", help="another one")
    add_config_arguments(parser)
    parser.add_argument("--config-b", metavar="FILE", help="B's config (default: that of its run, or A's)")
    out = Path(resolve_config_path("output/compare"))
    parser.add_argument("--out", type=path_argument, default=out, help="folder for the results (%(default)s)")
    add_photo_arguments(parser)
    args = parser.parse()
    args.a, args.b = expand_typed_path(args.a), expand_typed_path(args.b)
    return args


def score_checkpoint(scorer: Scorer, config: Config, path: Path, world: World) -> dict[str, Score]:
    """Returns a checkpoint's scores by set name. Raises UserError that names the file."""
    backbone = to_device(build_backbone(config), world)
    load_weights(backbone, path)
    runtime = make_runtime(backbone, config, world, scorer.n_images)
    try:
        return scorer.score(runtime, backbone_name(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write_results(
    folder: Path, files: list[Path], sets: list[VerificationSet], a: dict[str, Score], b: dict[str, Score]
) -> None:
    """Prints the table, archives an earlier comparison in the folder and writes the files. Raises UserError."""
    comparisons = [
        compare_scores(eval_set.name, a[eval_set.name], b[eval_set.name], eval_set.issame) for eval_set in sets
    ]
    if len(comparisons) > 1:
        comparisons.append(compare_all_sets(comparisons, list(a.values()), list(b.values()), sets))
    warnings = [f"{eval_set.name}: {eval_set.warning}" for eval_set in sets if eval_set.warning]
    text = "\n".join([f"A: {files[0]}\nB: {files[1]}\n\n{format_table(comparisons)}", *warnings])
    print(f"\n{text}", flush=True)
    rows = [asdict(comparison) | {"verdict": comparison.verdict} for comparison in comparisons]
    content = json.dumps({"a": str(files[0]), "b": str(files[1]), "sets": rows}, indent=2)
    writers: dict[Path, Callable[[Path], object]] = {
        folder / "compare.txt": lambda path: write_text_atomic(path, text + "\n"),
        folder / "compare.json": lambda path: write_text_atomic(path, content),
    }
    for eval_set in sets:
        name = eval_set.name
        writers[folder / f"compare_{name.replace('/', '_')}.png"] = partial(save_disputed, eval_set, a[name], b[name])
    if archived := archive_previous(folder, content):
        print(f"\nThe earlier comparison in {folder} is now in {archived}", flush=True)
    write_files(writers, "free disk space, or name another folder with --out")
    print(f"\nIn {folder}: compare.txt, compare.json and, as compare_SET.png, the pairs on which A and B disagree")


def save_disputed(eval_set: VerificationSet, a: Score, b: Score, path: Path) -> None:
    """Writes the figure of the pairs on which A and B disagree, or nothing if there are none."""
    figure = plot_disputed_pairs(eval_set, a, b)
    if figure is not None:
        save_figure(path, figure, dpi=100)


def archive_previous(folder: Path, content: str) -> Path | None:
    """Moves the files of a comparison in the folder to a folder old-N and returns that folder.

    content: of the new compare.json; if the folder already has the same one, nothing is moved. None if nothing was
    moved. Raises UserError if a file cannot be moved.
    """
    patterns = ("compare.txt", "compare.json", "compare_*.png")
    files = sorted(path for pattern in patterns for path in folder.glob(pattern))
    try:
        with open_regular_file(folder / "compare.json") as file:
            same = file.read() == content.encode()
    except (OSError, UserError):
        same = False
    if same or not files:
        return None
    try:
        return archive_files(folder, files)
    except OSError as error:
        raise UserError(
            f"--out {folder}: an earlier comparison there cannot be moved to a folder old-N ({error.strerror})",
            fix="name another folder",
        ) from None


if __name__ == "__main__":
    run_cli(main)
