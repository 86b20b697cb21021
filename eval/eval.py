"""Scores checkpoints on verification sets, or on your own photos: python eval/eval.py [--config FILE] [field=value …]

    python eval/eval.py                                  every checkpoint in config.output on config.val_targets
    python eval/eval.py --steps 11372,22744              some of them
    python eval/eval.py --pairs pairs.txt --images DIR   on your own pairs: LFW style, or a CSV of path,path,same
    python eval/eval.py --folder DIR                     on a folder of photos, one folder a person

Writes test.log, results.json, results.txt and roc.png beside the checkpoints (or in config.test_output), and
thresholds.json beside the checkpoints. On several GPUs it uses all; NPROC=1 keeps it to one.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

if not __package__:  # run as a script, this folder stands first on the path and the file shadows its package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from backbones import build_backbone
from config import add_config_arguments, load_config, make_folder, require_data
from eval.embedding import make_runtime
from eval.pairs import add_photo_arguments, photo_pairs
from eval.report import Results, format_tables, format_thresholds, write_results, write_thresholds
from eval.scoring import Scorer
from eval.sets import load_sets
from utils.checkpoint import CheckpointError, list_backbones, load_weights
from utils.distributed import place, processes, together
from utils.errors import run
from utils.launch import spread_over_gpus
from utils.run_log import init_logging, log


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Score checkpoints on verification sets, or on your own photos.")
    add_config_arguments(parser)
    parser.add_argument("--steps", help="global steps of the checkpoints, with commas between (default: all)")
    add_photo_arguments(parser)
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides)
    photos = photo_pairs(args)
    if photos is None:
        require_data(config)
    checkpoints = choose(list_backbones(config.output), args.steps, config.output)
    config.test_output = config.test_output or config.output
    folder = make_folder(config, "test_output")
    suffix = f"_{photos.name}" if photos else ""
    known = None if photos else config  # own photos are no published set, though the folder be called lfw
    if photos and args.folder:
        photos.write(folder / f"pairs{suffix}.csv")
    spread_over_gpus()

    with processes() as world:
        init_logging(folder / "test.log" if world.is_main else None)
        scorer = Scorer(config, world, load_sets(config, photos, world))
        backbone = place(build_backbone(config), world)
        results: Results = {}
        for done, (step, path) in enumerate(checkpoints.items(), start=1):
            log.info(f"Checkpoint {done} of {len(checkpoints)}: {path}")
            together(world, partial(load_weights, backbone, path))
            results[step] = scorer.score(make_runtime(backbone, config, world, scorer.n_images), step)
            if world.is_main:
                names = write_results(folder, results, known, suffix)  # each time: what follows cannot lose it
                thresholds = write_thresholds(Path(config.output), folder, results)
        if world.is_main:
            print(f"\n{format_tables(results, known)}\n\nWhich threshold:\n{format_thresholds(results)}")
            print(f"\nIn {folder}: test.log, {', '.join(names)}; {thresholds}")


def choose(checkpoints: dict[int, Path], steps: str | None, output: str) -> dict[int, Path]:
    """The checkpoints of these steps. Raises CheckpointError where one is not there."""
    if steps is None:
        return checkpoints
    wanted = [step.strip() for step in steps.split(",")]
    for step in wanted:
        if not step.isdecimal() or int(step) not in checkpoints:
            there = ", ".join(map(str, checkpoints))
            raise CheckpointError(f"--steps {step}: no such checkpoint in {output!r}; there are {there}")
    return {step: path for step, path in checkpoints.items() if step in map(int, wanted)}


if __name__ == "__main__":
    run(main)
