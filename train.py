"""Trains a backbone with ArcFace: ./train.sh, or python train.py [--config FILE] [field=value …]"""

import argparse
from functools import partial
from pathlib import Path

import torch

from backbones import build_backbone
from config import load_config, require_data
from eval.scoring import Scorer
from utils.dataset import load_training_data
from utils.distributed import place, processes, wrap
from utils.engine import train
from utils.errors import run
from utils.losses import ArcFace, ArcFaceTask
from utils.run_log import init_logging, log


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a face-recognition backbone with ArcFace.")
    parser.add_argument("--config", help="config file (default: config/config.py)")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="changes of the config")
    args = parser.parse_args()
    config = load_config(args.config, args.overrides)
    require_data(config)

    with processes() as world:
        init_logging(Path(config.output, "training.log") if world.is_main else None, prefix="Training: ")
        torch.manual_seed(config.seed)
        loader, num_classes = load_training_data(config, world)
        backbone = place(build_backbone(config), world)
        header = place(ArcFace(config.embedding_size, num_classes, config.s, config.m), world)
        if config.compile:
            backbone.compile()
        scorer = Scorer(config, world) if config.eval_step else None
        task = ArcFaceTask(wrap(backbone, world), wrap(header, world))
        verify = partial(scorer.accuracies, backbone) if scorer else None
        step = train(task, loader, config, world, verify)
        log.info(f"Done: {step} steps; score the checkpoints with python eval/eval.py")


if __name__ == "__main__":
    run(main)
