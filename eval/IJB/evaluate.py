"""Scores checkpoints on IJB-B or IJB-C: eval/IJB/runIJBEval.sh --target IJBC --image-path DIR [--config FILE] …

Leaves in RESULT_DIR/JOB (JOB: by default of the name of the checkpoints' folder): the scores of all pairs
({step}_{target}.npy), the ROC curves ({target}.pdf and .png), the table ({target}.txt), results.json and test.log. The
table and results.json keep what earlier commands found of other checkpoints. Interrupted, the same command goes on
where it was.
"""

import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

if not __package__:  # run as a script, this folder stands first on the path instead of the project's
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
from easydict import EasyDict

from backbones import build_backbone
from config import (
    CommandParser,
    ConfigError,
    add_config_arguments,
    from_project,
    from_working_folder,
    load_config,
    log_unused,
    overrides_of,
    typed_output,
    typed_path,
)
from eval.folders import run_name, weights_folder
from eval.IJB.features import Crops, Features, embed_images
from eval.IJB.identification import identify, mean_of
from eval.IJB.protocol import TARGETS, Protocol, read_protocol
from eval.IJB.report import FPRS, IjbScore
from eval.IJB.results import Report
from eval.IJB.templates import Embeddings, Switches, Templates, pool, score_pairs
from eval.inference.embedding import make_runtime
from eval.results import raise_failed
from eval.roc import auc, roc, tpr_nearest
from utils.checkpoints.weights import CheckpointError, find_backbones, load_weights
from utils.distributed.collectives import run_on_all, try_on_all
from utils.distributed.launch import launch_on_all_gpus
from utils.distributed.process_group import World, init_distributed, to_device
from utils.errors import UserError, run_cli
from utils.filesystem import make_writable, sha256
from utils.logs.run_log import init_logging, log


def main() -> None:
    """The command line."""
    args = parse_arguments()
    config = load_config(args.config, overrides_of(args), saved_in=args.model_prefix or typed_output(args.overrides))
    if args.batch_size is not None:
        config.eval_batch = args.batch_size
    prefix = args.model_prefix or config.output
    checkpoints = find_backbones(prefix, "--model-prefix")
    folder = make_result_folder(args.result_dir, args.job or run_name(weights_folder(prefix)))
    launch_on_all_gpus()
    with init_distributed() as world:
        init_logging(folder / "test.log" if world.is_main else None)
        log_unused(config, "eval")
        evaluate(args, config, checkpoints, folder, world)


def evaluate(
    args: argparse.Namespace, config: EasyDict, checkpoints: dict[str, Path], folder: Path, world: World
) -> None:
    """Score the checkpoints one by one. Raises UserError, after all the others, where one or a file failed."""
    protocol = run_on_all(world, lambda: read_protocol(args.image_path, args.target, args.skip_missing))
    crops = Crops(args.image_path / "loose_crop", protocol.images, args.skip_missing)
    run_on_all(world, crops.check_files)
    log.info(describe(protocol, args.target))
    backbone = to_device(build_backbone(config), world)
    made = {
        "lists": sha256(protocol.images.source),
        "folder": str(args.image_path.resolve()),
        "network": f"{config.net_name} {config.genotypes.get(config.genotype)}",  # weights may fit another as well
    }
    digest = sha256(*sorted(protocol.images.source.parent.glob(f"{args.target.lower()}_*"))) if world.is_main else ""
    report = Report(folder, args.target, config, digest)
    switches = Switches(args.flip, args.norm_score, args.detector_score)
    keys = report.keys_of(checkpoints, next(iter(checkpoints.values())).parent)
    failed: dict[Path, UserError] = {}
    embedded: list[Features] = []
    for name, path in zip(keys.values(), checkpoints.values(), strict=True):
        loaded = try_on_all(world, partial(load_weights, backbone, path))
        if isinstance(loaded, UserError):
            leave_out(path, loaded, failed)
            continue
        features = Features(
            folder / f"features_{name}_{args.target}",
            len(protocol.images.names),
            config.embedding_size,
            made | {"checkpoint": sha256(path)},
            world,
        )
        runtime = make_runtime(backbone, config, world, len(protocol.images.names))
        embed_images(features, crops, runtime, config.workers, world, f"{args.target} {name}")
        embedded.append(features)
        if world.is_main:
            try:
                result, scores = score(features, protocol, switches, path)
            except CheckpointError as error:
                leave_out(path, CheckpointError(f"{path}: {args.target}: {error}"), failed)
            else:
                report.add(name, replace(result, sha256=sha256(path), pairs_sha256=digest), scores)
    if world.is_main:
        if report.results:
            print(f"\n{report.format_table()}", flush=True)
            report.finish()
            print(f"\nIn {folder}: {', '.join(written(args.target))}")
        if not args.keep_features:
            for features in embedded:  # only now, when all that they are for is written: nothing is embedded twice
                features.remove()
        raise_failed(failed, len(checkpoints))


def leave_out(path: Path, error: UserError, failed: dict[Path, UserError]) -> None:
    """Note in the log that a checkpoint is not scored."""
    failed[path] = error
    log.warning(f"{error}: left out")


def parse_arguments() -> argparse.Namespace:
    """The command line. An environment variable IJB_… stands for an option that is not given."""
    parser = CommandParser("Score checkpoints on IJB-B or IJB-C.")
    add_config_arguments(parser)
    parser.set_defaults(config=os.environ.get("IJB_CONFIG"))
    parser.add_argument("--target", default=os.environ.get("IJB_TARGET", "IJBC"), help="IJBB or IJBC (%(default)s)")
    parser.add_argument("--image-path", metavar="DIR", default=os.environ.get("IJB_IMAGE_PATH"), help="its folder")
    parser.add_argument(
        "--model-prefix", metavar="PATH", default=os.environ.get("IJB_MODEL_PREFIX"),
        help="a checkpoint, or a folder of them (default: config.output)",
    )  # fmt: skip
    results = os.environ.get("IJB_RESULT_DIR") or from_project("output/IJB")
    parser.add_argument("--result-dir", type=typed_path, default=results, help="folder for the results (%(default)s)")
    parser.add_argument(
        "--job", default=os.environ.get("IJB_JOB"),
        help="folder in --result-dir (default: of the name of the checkpoints' folder)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, help="images at once (default: config.eval_batch)")
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--flip", action=switch, default=True, help="add the mirror image's embedding")
    parser.add_argument("--norm-score", action=switch, default=True, help="features keep their norm")
    parser.add_argument("--detector-score", action=switch, default=True, help="weight images by the detector's score")
    parser.add_argument("--skip-missing", action="store_true", help="leave out missing images and count them")
    parser.add_argument("--keep-features", action="store_true", help="keep all images' embeddings, for other switches")
    args = parser.parse()
    if args.target not in TARGETS:
        raise UserError(f"--target {args.target}: should be {' or '.join(TARGETS)}")
    if not args.image_path:
        raise UserError("--image-path: name the folder of the set, the one that holds loose_crop and meta")
    job = args.job
    if job is not None and (Path(job).name != job or job in ("", "..") or not job.isprintable()):
        raise UserError(f"--job {job!r}: should be a plain name, of a folder in --result-dir")
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: should be at least 1")
    args.image_path = typed_path(args.image_path)
    args.model_prefix = from_working_folder(args.model_prefix) if args.model_prefix else None
    return args


def make_result_folder(result_dir: Path, job: str) -> Path:
    """Where the results come. Raises ConfigError where they cannot."""
    try:
        return make_writable(Path(result_dir) / job)
    except OSError as error:
        raise ConfigError(f"--result-dir {str(result_dir)!r} --job {job!r}: {error.strerror}; name another") from None


def describe(protocol: Protocol, target: str) -> str:
    """The sizes of the set."""
    left_out = f" ({protocol.skipped_pairs} left out, of templates without an image)" if protocol.skipped_pairs else ""
    search = "with" if protocol.galleries else "without"
    return (
        f"{target}: {len(protocol.images.names)} images, {len(protocol.template_ids)} templates, "
        f"{len(protocol.pairs.same)} pairs{left_out}, {search} lists for identification"
    )


def score(features: Features, protocol: Protocol, switches: Switches, path: Path) -> tuple[IjbScore, np.ndarray]:
    """Everything that is said of a checkpoint, and the scores (P,) of all pairs, NaN where a template was left out.

    Raises CheckpointError where embeddings are not finite.
    """
    images = protocol.images
    kept = features.done == 1
    bad = ~(np.isfinite(features.direct).all(axis=1) & np.isfinite(features.flipped).all(axis=1)) & kept
    if bad.any():
        raise CheckpointError(
            f"the embeddings of {int(bad.sum())} of {len(bad)} images are not finite: these weights are damaged, or of "
            "a run that diverged; take another checkpoint"
        )
    embeddings = Embeddings(features.direct, features.flipped, images.det_scores)
    templates = pool(embeddings, images.templates, images.media, switches, kept)
    first, second, same = protocol.pairs
    scores = score_pairs(templates.features, first, second)
    there = templates.present[first] & templates.present[second]
    scores[~there] = np.nan
    curve = roc(scores[there], same[there]) if not there.all() else roc(scores, same)
    result = IjbScore(
        checkpoint=str(path.parent.resolve() / path.name),
        tpr=dict(zip(FPRS, tpr_nearest(curve, FPRS).tolist(), strict=True)),
        auc=auc(curve),
        images=int(kept.sum()),
        missing_images=int(len(kept) - kept.sum()),
        pairs=int(there.sum()),
        different=int(np.sum(~same[there])),
        skipped_pairs=protocol.skipped_pairs + int(len(there) - there.sum()),
        switches=switches._asdict(),
        identification=search(templates, protocol),
        curve=curve,
    )
    return result, scores


def search(templates: Templates, protocol: Protocol) -> dict | None:
    """1:N identification in each gallery, and the mean; None where the set has no lists for it."""
    if protocol.probes is None:
        return None
    probes = protocol.probes
    here = templates.present[probes.templates]
    found = []
    skipped = probes.skipped + int(np.sum(~here))
    for gallery in protocol.galleries:
        there = templates.present[gallery.templates]
        skipped += gallery.skipped + int(np.sum(~there))
        one = identify(
            templates.features[gallery.templates[there]],
            gallery.subjects[there],
            templates.features[probes.templates[here]],
            probes.subjects[here],
        )
        if one is not None:
            found.append(one)
    if not found:
        return None
    return mean_of(found) | {"skipped_templates": skipped, "galleries": [one.asdict() for one in found]}


def written(target: str) -> list[str]:
    """What the run leaves."""
    return [f"{target}.txt", f"{target}.png", f"{target}.pdf", f"*_{target}.npy", "results.json", "test.log"]


if __name__ == "__main__":
    run_cli(main)
