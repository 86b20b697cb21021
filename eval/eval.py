"""Scores checkpoints on verification sets or on your own photos: python eval/eval.py [--config FILE] [field=value …]

    python eval/eval.py                                  every checkpoint in config.output on config.val_targets
    python eval/eval.py output=FOLDER                    the checkpoints of a run, with the config.json in its folder
    python eval/eval.py --steps 11372,22744              only these steps
    python eval/eval.py output=DIR/PocketNetS-128.pth    a file of any name, .pth or .safetensors
    python eval/eval.py output=SHARED                    a folder of python -m deploy.share
    python eval/eval.py --pairs pairs.txt --images DIR   on your own pairs: LFW style, or a CSV of path,path,same
    python eval/eval.py --folder DIR                     on a folder of photos, one folder per person

Writes test.log, results.json, results.txt and roc.png to config.test_output; by default to the checkpoints' folder if a
run wrote it, else to a folder in output/eval. thresholds.json goes to the checkpoints' folder if a run wrote it, else
to the results' folder. results.json, results.txt and thresholds.json keep the results of earlier commands for other
checkpoints, also for another network with the same steps. roc.png shows only the checkpoints of this command. Uses all
GPUs of the machine; NPROC=1 restricts it to one.
"""

import sys
from functools import partial
from pathlib import Path

if not __package__:  # run as a script: sys.path starts with this folder, where this file shadows its package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from torch import nn

from backbones.build import build_backbone
from config import (
    CommandParser,
    add_config_arguments,
    collect_overrides,
    load_config,
    output_override,
    require_data,
    warn_unused_fields,
)
from config.base import Config
from eval.folders import result_folder, weights_folder
from eval.inference.embedding import make_runtime
from eval.inputs.arguments import add_photo_arguments, keep_pairs_readable, load_photo_pairs
from eval.inputs.sets import load_verification_sets
from eval.results import Report, raise_failed
from eval.scoring import Score, Scorer
from utils.checkpoints.weights import CheckpointError, find_backbones, load_weights
from utils.distributed.collectives import try_on_all
from utils.distributed.launch import launch_on_all_gpus
from utils.distributed.process_group import World, init_distributed, to_device
from utils.errors import UserError, run_cli
from utils.logs.logger import init_logging, log


def main() -> None:
    """Parses the command line, scores every checkpoint and writes the results."""
    parser = CommandParser("Score checkpoints on verification sets, or on your own photos.")
    add_config_arguments(parser)
    parser.add_argument("--steps", help="global steps of the checkpoints to score, separated by commas (default: all)")
    add_photo_arguments(parser)
    args = parser.parse()
    config = load_config(args.config, collect_overrides(args), saved_in=output_override(args.overrides))
    photos = load_photo_pairs(args)
    if photos is None:
        require_data(config)
    checkpoints = select_steps(find_backbones(config.output, "config output"), args.steps, config.output)
    folder = result_folder(config)
    with keep_pairs_readable(args, photos):
        launch_on_all_gpus(config.device)

    failed: dict[Path, UserError] = {}
    with init_distributed(config.device) as world:
        init_logging(folder / "test.log" if world.is_main else None)
        warn_unused_fields(config, "eval")
        sets = load_verification_sets(config, photos, world)
        scorer = Scorer(config, world, sets)
        backbone = to_device(build_backbone(config), world)
        # The user's own photos have no published results, even if their folder is called lfw.
        report = Report(folder, weights_folder(config.output), sets, None if photos else config, photos)
        for number, (step, path) in enumerate(checkpoints.items(), start=1):
            log.info(f"Checkpoint {number} of {len(checkpoints)}: {path}")
            scores = score_checkpoint(scorer, backbone, config, step, path, world)
            if isinstance(scores, UserError):
                failed[path] = scores
                log.warning(f"{scores}: left out")
            elif world.is_main:
                report.add(path, scores)
                try:
                    report.write()  # after every checkpoint, so that a later failure loses no result
                except UserError as error:
                    log.warning(f"{error}")
        if world.is_main:
            finish(report, failed)


def score_checkpoint(
    scorer: Scorer, backbone: nn.Module, config: Config, step: str, path: Path, world: World
) -> dict[str, Score] | UserError:
    """Returns the checkpoint's scores by set name, or on all ranks the error that names its file. Collective."""
    loaded = try_on_all(world, partial(load_weights, backbone, path))
    if isinstance(loaded, UserError):
        return loaded
    runtime = make_runtime(backbone, config, world, scorer.n_images)
    scores = try_on_all(world, partial(scorer.score, runtime, step))
    return UserError(f"{path}: {scores}") if isinstance(scores, UserError) else scores


def finish(report: Report, failed: dict[Path, UserError]) -> None:
    """Prints the tables, then writes the files. Raises UserError if a file or a checkpoint failed."""
    if report.scores:
        print(f"\n{report.format_tables()}")
        if thresholds := report.format_thresholds():
            print(f"\nThresholds:\n{thresholds}")
        try:
            report.write()
        except UserError as error:
            unscored = f"; not scored: {', '.join(path.name for path in failed)}" if failed else ""
            raise UserError(f"{error}{unscored}") from None
        paths = (report.json_path, report.txt_path, report.png_path, report.csv_path)
        names = [path.name for path in paths if path]
        print(f"\nIn {report.folder}: test.log, {', '.join(names)}; {report.thresholds_path}", flush=True)
    raise_failed(failed, len(failed) + len(report.scores))


def select_steps(checkpoints: dict[str, Path], steps: str | None, output: str) -> dict[str, Path]:
    """Returns the checkpoints of the given steps (None: all). Raises CheckpointError if one does not exist."""
    if steps is None:
        return checkpoints
    wanted = [
        str(int(step)) if step.isdecimal() and len(step) < 20 else step for step in map(str.strip, steps.split(","))
    ]
    for step in wanted:
        if step not in checkpoints:
            raise CheckpointError(
                f"--steps {step}: no such checkpoint in {output!r}", fix=f"there are {', '.join(checkpoints)}"
            )
    return {step: path for step, path in checkpoints.items() if step in wanted}


if __name__ == "__main__":
    run_cli(main)
