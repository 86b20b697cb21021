"""Scores checkpoints on IJB-B or IJB-C: eval/IJB/runIJBEval.sh --target IJBC --image-path DIR [--config FILE] …

Writes to RESULT_DIR/JOB (JOB: by default named after the checkpoints' folder): the scores of all pairs
({step}_{target}.npy), the ROC curves ({target}.pdf and .png), the table ({target}.txt), results.json and test.log. The
table and results.json keep the results of earlier commands for other checkpoints. After an interruption, the same
command resumes.
"""

import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

if not __package__:  # run as a script: sys.path starts with this folder instead of the project's
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from backbones.build import build_backbone
from config import (
    CommandParser,
    ConfigError,
    add_config_arguments,
    collect_overrides,
    expand_typed_path,
    load_config,
    output_override,
    path_argument,
    resolve_config_path,
    warn_unused_fields,
)
from config.base import Config
from eval.folders import unique_folder_name, weights_folder
from eval.IJB.features import Crops, Features, embed_images
from eval.IJB.identification import identify, mean_identification
from eval.IJB.protocol import TARGETS, Protocol, read_protocol
from eval.IJB.report import FPRS, IjbScore
from eval.IJB.results import IjbReport
from eval.IJB.templates import Embeddings, Switches, Templates, pool_templates, score_pairs
from eval.inference.embedding import make_runtime
from eval.reporting.roc import auc, roc, tpr_nearest
from eval.results import raise_failed
from utils.checkpoints.weights import CheckpointError, find_backbones, load_weights
from utils.distributed.collectives import run_on_all, try_on_all
from utils.distributed.launch import launch_on_all_gpus
from utils.distributed.process_group import World, init_distributed, to_device
from utils.errors import UserError, run_cli
from utils.filesystem import ensure_writable_folder, sha256
from utils.logs.logger import init_logging, log


def main() -> None:
    """Parses the command line, scores every checkpoint and writes the results."""
    args = parse_arguments()
    config = load_config(
        args.config, collect_overrides(args), saved_in=args.model_prefix or output_override(args.overrides)
    )
    if args.batch_size is not None:
        config.eval_batch = args.batch_size
    prefix = args.model_prefix or config.output
    checkpoints = find_backbones(prefix, "--model-prefix")
    folder = make_result_folder(args.result_dir, args.job or unique_folder_name(weights_folder(prefix)))
    launch_on_all_gpus(config.device)
    with init_distributed(config.device) as world:
        init_logging(folder / "test.log" if world.is_main else None)
        warn_unused_fields(config, "eval")
        evaluate(args, config, checkpoints, folder, world)


def evaluate(
    args: argparse.Namespace, config: Config, checkpoints: dict[str, Path], folder: Path, world: World
) -> None:
    """Scores the checkpoints one by one. Collective.

    Raises UserError, after all others are scored, if a checkpoint or a file failed.
    """
    protocol = run_on_all(world, lambda: read_protocol(args.image_path, args.target, args.skip_missing))
    crops = Crops(args.image_path / "loose_crop", protocol.images, args.skip_missing)
    run_on_all(world, crops.check_files)
    log.info(describe_protocol(protocol, args.target))
    backbone = to_device(build_backbone(config), world)
    # The network is part of it, because the same weights may fit several.
    provenance = {
        "lists": sha256(protocol.images.source),
        "folder": str(args.image_path.resolve()),
        "network": f"{config.net_name} {config.genotypes.get(config.genotype)}",
    }
    digest = sha256(*sorted(protocol.images.source.parent.glob(f"{args.target.lower()}_*"))) if world.is_main else ""
    report = IjbReport(folder, args.target, config, digest)
    switches = Switches(args.flip, args.norm_score, args.detector_score)
    keys = report.result_keys(checkpoints, next(iter(checkpoints.values())).parent)
    failed: dict[Path, UserError] = {}
    embedded: list[Features] = []
    for name, path in zip(keys.values(), checkpoints.values(), strict=True):
        loaded = try_on_all(world, partial(load_weights, backbone, path))
        if isinstance(loaded, UserError):
            skip_checkpoint(path, loaded, failed)
            continue
        features = Features(
            folder / f"features_{name}_{args.target}",
            len(protocol.images.names),
            config.embedding_size,
            provenance | {"checkpoint": sha256(path)},
            world,
        )
        runtime = make_runtime(backbone, config, world, len(protocol.images.names))
        embed_images(features, crops, runtime, config.workers, world, f"{args.target} {name}")
        embedded.append(features)
        if world.is_main:
            try:
                result, scores = score_checkpoint(features, protocol, switches, path)
            except CheckpointError as error:
                skip_checkpoint(path, CheckpointError(f"{path}: {args.target}: {error}"), failed)
            else:
                report.add(name, replace(result, sha256=sha256(path), pairs_sha256=digest), scores)
    if world.is_main:
        finish(report, [] if args.keep_features else embedded)
        raise_failed(failed, len(checkpoints))


def finish(report: IjbReport, embedded: list[Features]) -> None:
    """Prints the table, writes the files, then removes the embeddings. Raises UserError if a file cannot be written."""
    if report.results:
        print(f"\n{report.format_table()}", flush=True)
        report.finish()
        print(f"\nIn {report.folder}: {', '.join(output_files(report.target))}")
    for features in embedded:  # only after all results are written, so that a rerun embeds nothing twice
        features.remove()


def skip_checkpoint(path: Path, error: UserError, failed: dict[Path, UserError]) -> None:
    """Adds a checkpoint to `failed`, with a warning in the log."""
    failed[path] = error
    log.warning(f"{error}: left out")


def parse_arguments() -> argparse.Namespace:
    """Parses the command line; options default to the environment variables IJB_…. Raises UserError."""
    parser = CommandParser("Score checkpoints on IJB-B or IJB-C.")
    add_config_arguments(parser)
    parser.set_defaults(config=os.environ.get("IJB_CONFIG"))
    parser.add_argument("--target", default=os.environ.get("IJB_TARGET", "IJBC"), help="IJBB or IJBC (%(default)s)")
    parser.add_argument(
        "--image-path", metavar="DIR", default=os.environ.get("IJB_IMAGE_PATH"), help="folder of the set"
    )
    parser.add_argument(
        "--model-prefix", metavar="PATH", default=os.environ.get("IJB_MODEL_PREFIX"),
        help="a checkpoint, or a folder of checkpoints (default: config.output)",
    )  # fmt: skip
    results = os.environ.get("IJB_RESULT_DIR") or resolve_config_path("output/IJB")
    parser.add_argument(
        "--result-dir", type=path_argument, default=results, help="folder for the results (%(default)s)"
    )
    parser.add_argument(
        "--job", default=os.environ.get("IJB_JOB"),
        help="folder in --result-dir (default: named after the checkpoints' folder)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, help="images per batch (default: config.eval_batch)")
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--flip", action=switch, default=True, help="add the embedding of the flipped image")
    parser.add_argument("--norm-score", action=switch, default=True, help="keep the norm of the features")
    parser.add_argument("--detector-score", action=switch, default=True, help="weight images by their detector score")
    parser.add_argument("--skip-missing", action="store_true", help="leave out missing images and count them")
    parser.add_argument(
        "--keep-features", action="store_true", help="keep the embeddings, to score with other switches"
    )
    args = parser.parse()
    if args.target not in TARGETS:
        raise UserError(f"--target {args.target}: should be {' or '.join(TARGETS)}")
    if not args.image_path:
        raise UserError("--image-path: name the folder of the set, which contains loose_crop and meta")
    job = args.job
    if job is not None and (Path(job).name != job or job in ("", "..") or not job.isprintable()):
        raise UserError(f"--job {job!r}: should be a plain name without slashes, of a folder in --result-dir")
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: should be at least 1")
    args.image_path = path_argument(args.image_path)
    args.model_prefix = expand_typed_path(args.model_prefix) if args.model_prefix else None
    return args


def make_result_folder(result_dir: Path, job: str) -> Path:
    """Makes and returns the folder for the results. Raises ConfigError if it cannot be written."""
    try:
        return ensure_writable_folder(Path(result_dir) / job)
    except OSError as error:
        raise ConfigError(
            f"--result-dir {str(result_dir)!r} --job {job!r}: {error.strerror}", fix="name another"
        ) from None


def describe_protocol(protocol: Protocol, target: str) -> str:
    """Returns a line with the sizes of the set, for the log."""
    left_out = f" ({protocol.skipped_pairs} left out: a template has no image)" if protocol.skipped_pairs else ""
    identification = "with" if protocol.galleries else "without"
    return (
        f"{target}: {len(protocol.images.names)} images, {len(protocol.template_ids)} templates, "
        f"{len(protocol.pairs.same)} pairs{left_out}, {identification} lists for identification"
    )


def score_checkpoint(
    features: Features, protocol: Protocol, switches: Switches, path: Path
) -> tuple[IjbScore, np.ndarray]:
    """Returns a checkpoint's result and the scores (P,) of all pairs, NaN for pairs with a template left out.

    Raises CheckpointError if an embedding is not finite.
    """
    images = protocol.images
    done = features.done == 1
    bad = ~(np.isfinite(features.direct).all(axis=1) & np.isfinite(features.flipped).all(axis=1)) & done
    if bad.any():
        raise CheckpointError(
            f"the embeddings of {int(bad.sum())} of {len(bad)} images are not finite: the weights are damaged or the "
            "training diverged",
            fix="take another checkpoint",
        )
    embeddings = Embeddings(features.direct, features.flipped, images.det_scores)
    templates = pool_templates(embeddings, images.templates, images.media, switches, done)
    first, second, same = protocol.pairs
    scores = score_pairs(templates.features, first, second)
    valid = templates.present[first] & templates.present[second]
    scores[~valid] = np.nan
    curve = roc(scores[valid], same[valid]) if not valid.all() else roc(scores, same)
    result = IjbScore(
        checkpoint=str(path.parent.resolve() / path.name),
        tpr=dict(zip(FPRS, tpr_nearest(curve, FPRS).tolist(), strict=True)),
        auc=auc(curve),
        images=int(done.sum()),
        missing_images=int(len(done) - done.sum()),
        pairs=int(valid.sum()),
        different=int(np.sum(~same[valid])),
        skipped_pairs=protocol.skipped_pairs + int(len(valid) - valid.sum()),
        switches=switches._asdict(),
        identification=identify_probes(templates, protocol),
        curve=curve,
    )
    return result, scores


def identify_probes(templates: Templates, protocol: Protocol) -> dict | None:
    """Returns the 1:N identification rates by gallery and their mean, or None if the set has no lists for it."""
    if protocol.probes is None:
        return None
    probes = protocol.probes
    probe_mask = templates.present[probes.templates]
    results = []
    skipped = probes.skipped + int(np.sum(~probe_mask))
    for gallery in protocol.galleries:
        gallery_mask = templates.present[gallery.templates]
        skipped += gallery.skipped + int(np.sum(~gallery_mask))
        result = identify(
            templates.features[gallery.templates[gallery_mask]],
            gallery.subjects[gallery_mask],
            templates.features[probes.templates[probe_mask]],
            probes.subjects[probe_mask],
        )
        if result is not None:
            results.append(result)
    if not results:
        return None
    galleries = [result.asdict() for result in results]
    return mean_identification(results) | {"skipped_templates": skipped, "galleries": galleries}


def output_files(target: str) -> list[str]:
    """Returns the names of the files in the result folder."""
    return [f"{target}.txt", f"{target}.png", f"{target}.pdf", f"*_{target}.npy", "results.json", "test.log"]


if __name__ == "__main__":
    run_cli(main)
