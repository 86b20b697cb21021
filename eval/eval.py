"""Scores every checkpoint in config.output: python eval/eval.py [--config FILE] [field=value …]

Writes test.log and results.json beside the checkpoints (or in config.test_output) and prints a table.
"""

import json
import sys
from pathlib import Path

if not __package__:  # run as a script, this folder stands first on the path and the file shadows its package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from backbones import build_backbone
from config import make_folder, parse_command, require_data
from eval.scoring import Score, Scorer
from utils.checkpoint import list_backbones, load_weights
from utils.distributed import place, processes
from utils.errors import run
from utils.run_log import init_logging, log

Results = dict[int, dict[str, Score]]  # global step -> set -> score


def main() -> None:
    """The command line."""
    config = parse_command("Score checkpoints on verification sets.")
    require_data(config)
    checkpoints = list_backbones(config.output)
    config.test_output = config.test_output or config.output
    folder = make_folder(config, "test_output")

    with processes() as world:
        init_logging(folder / "test.log" if world.is_main else None)
        scorer = Scorer(config, world)
        backbone = place(build_backbone(config), world)
        results: Results = {}
        for done, (step, path) in enumerate(checkpoints.items(), start=1):
            log.info(f"Checkpoint {done} of {len(checkpoints)}: {path}")
            load_weights(backbone, path)
            results[step] = scorer.score(backbone, step)
            if world.is_main:
                write_results(folder, results)  # each time, so that what follows cannot lose it
        if world.is_main:
            table = format_table(results)
            print(f"\n{table}\n\nIn {folder}: test.log, results.json, results.txt")


def format_table(results: Results) -> str:
    """Steps down, sets across; accuracy in percent, mean and standard deviation over the folds."""
    names = list(next(iter(results.values())))
    lines = ["".join([f"{'step':>10}", *(f"{name:>18}" for name in names)])]
    for step, scores in results.items():
        cells = (f"{100 * scores[name].accuracy:.2f} ± {100 * scores[name].std:.2f}" for name in names)
        lines.append("".join([f"{step or 'untrained':>10}", *(f"{cell:>18}" for cell in cells)]))
    return "\n".join(lines)


def write_results(folder: Path, results: Results) -> None:
    """results.json: {step: {set: score}}; results.txt: the table."""
    scores = {step: {name: score.asdict() for name, score in sets.items()} for step, sets in results.items()}
    (folder / "results.json").write_text(json.dumps(scores, indent=2) + "\n")
    (folder / "results.txt").write_text(format_table(results) + "\n")


if __name__ == "__main__":
    run(main)
