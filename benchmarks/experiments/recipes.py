"""Trains one student by every recipe of docs/recipes.md, with the same seeds, images and steps, and compares them.

    python -m benchmarks.experiments.recipes [--seeds 5] [--people 200 --shots 8 --steps 400] [field=value …]
    python -m benchmarks.experiments.recipes --faces FOLDER --sets FOLDER --teacher WEIGHTS.pth [field=value …]

Without --faces it draws synthetic faces and trains a teacher on them; fewer images of each person than in the demo, and
more that pose, light and camera change in them, make the set hard. With --faces the training images are those of a
folder as config.rec names one, the score is that on {--set}.bin in --sets, and the teacher is published PocketNetS-128;
the header of the teacher is then the mean embedding of each person. Every run is a command of this project. After an
interruption the same command does only what is missing. Writes results.txt, results.json and recipes.png to --out.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.experiments.commands import ROOT, command
from benchmarks.experiments.kept_runs import finish_all
from benchmarks.experiments.paired import draw, table
from benchmarks.experiments.scored_runs import ScoredRun
from config import CommandParser, Config, load_config, path_argument
from utils.datasets.face_dataset import FaceDataset
from utils.distillation.targets import open_caches
from utils.errors import UserError, run_cli
from utils.filesystem import save_figure

STUDENT, TEACHER = "config/config_demo_kd.py", "config/config_demo.py"
BASELINE = "arcface"
COSFACE, ADAFACE = ["loss=cosface", "m={cosface:.4g}"], ["loss=adaface", "m={adaface:.4g}"]
MARGINS = {"cosface": 0.35 / 0.5, "adaface": 0.4 / 0.5}  # relative to ArcFace's, as in the papers
RECIPES = {
    "arcface": ["train.py"],
    "cosface": ["train.py", *COSFACE],
    "adaface": ["train.py", *ADAFACE],
    "mse": ["train_kd.py"],
    "adadistill": ["train_kd.py", "distill=adadistill"],
    "adadistill+adaface": ["train_kd.py", "distill=adadistill", *ADAFACE],
    "header-fixed": ["train.py", "header_from={header}", "header_frozen=True"],
    "header-trained": ["train.py", "header_from={header}"],
}


@dataclass(frozen=True)
class Setting:
    """What all runs share: the training images, the verification set, the teacher and the length of a run."""

    faces: Path
    scored_on: tuple[Path, str]
    teacher: list[str]  # config fields of train_kd.py, besides the weights
    weights: Path  # of the teacher's backbone
    header: Path  # of the teacher
    steps: int
    changes: list[str]  # config fields of every student

    def run(self, out: Path, name: str, seed: int) -> ScoredRun:
        """Returns the run of a recipe with a seed."""
        m = load_config(ROOT / STUDENT, self.changes).m
        margins = {loss: factor * m for loss, factor in MARGINS.items()}
        script, *fields = (part.format(header=self.header, **margins) for part in RECIPES[name])
        teacher = [f"teacher_pth={self.weights}", *self.teacher] if script == "train_kd.py" else []
        # The fields of the recipe come last: the changes are for all recipes.
        arguments = [*length(self.faces, STUDENT, self.steps, self.changes), *teacher, *self.changes, *fields]
        training = [script, "--config", STUDENT, *arguments, f"seed={seed}"]
        data = FaceDataset(self.faces).fingerprint
        files = [ROOT / STUDENT]
        if teacher:
            files.append(self.weights)
        if any("{header}" in part for part in RECIPES[name]):
            files.append(self.header)
        return ScoredRun(out / f"{name}-{seed}", training, self.scored_on, data, tuple(files))


def length(faces: Path, config_file: str, steps: int, changes: Sequence[str] = ()) -> list[str]:
    """Returns the fields of a run of so many steps on the images.

    The learning rate falls at the end of an epoch, after about three quarters of them: not in a run of a single epoch.
    """
    config = load_config(ROOT / config_file, changes)
    epochs = math.ceil(steps * config.batch_size / len(FaceDataset(faces)))
    return [f"rec={faces}", f"max_steps={steps}", f"num_epoch={epochs}", f"lr_steps={max(1, round(0.75 * epochs))}"]


def synthetic(args: argparse.Namespace, out: Path) -> Setting:
    """Draws the faces, trains the teacher and returns the setting."""
    faces = ROOT / "data" / f"faces_recipes_{args.people}x{args.shots}_{args.nuisance:g}"
    drawing = ["--people", str(args.people), "--shots", str(args.shots), "--pairs", str(args.pairs)]
    drawing += ["--nuisance", str(args.nuisance)]
    command(["data/make_demo_faces.py", "--out", str(faces), *drawing], os.cpu_count() or 1)
    fields = [*length(faces, TEACHER, args.teacher_steps), "save_initial=0"]
    data, scored_on = FaceDataset(faces).fingerprint, (faces, "demo")
    teacher = ScoredRun(out / "teacher", ["train.py", "--config", TEACHER, *fields], scored_on, data, (ROOT / TEACHER,))
    finish_all([teacher], 1)
    print(f"teacher: {teacher.accuracy():.2f} %", flush=True)
    taught = [f"teacher_cache={out / 'cache'}"]
    weights, header = (teacher.folder / f"{args.teacher_steps}{part}.pth" for part in ("backbone", "header"))
    return Setting(faces, scored_on, taught, weights, header, args.steps, args.changes)


def photos(args: argparse.Namespace, out: Path) -> Setting:
    """Returns the setting of a folder of photos and a published teacher, after writing the teacher's class means."""
    network = ["teacher_network=PocketNetS", "teacher_channel=0", "teacher_n_layers=0"]
    taught = [*network, f"teacher_cache={out / 'cache'}"]
    fields = [f"rec={args.faces}", f"teacher_pth={args.teacher}", *taught, *args.changes]
    command(["-m", "utils.fill_teacher_cache", "--config", STUDENT, *fields], os.cpu_count() or 1)
    header = out / "class_means.pth"
    write_class_means(load_config(ROOT / STUDENT, fields, distillation=True), header)
    return Setting(args.faces, (args.sets, args.set), taught, args.teacher, header, args.steps, args.changes)


def write_class_means(config: Config, path: Path) -> None:
    """Writes a header whose centres are the normalised means of each person's embeddings in the teacher's cache."""
    data = FaceDataset(config.rec)
    (cache,) = open_caches(config, [Path(config.teacher_pth)], data).values()
    labels = data.label_values.astype(np.int64)
    sums = np.zeros((data.count_classes(), config.embedding_size), np.float32)  # (C, D)
    np.add.at(sums, labels, np.asarray(cache.embeddings, np.float32).sum(1))
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    torch.save({"kernel": torch.from_numpy(sums / np.maximum(lengths, 1e-12)).T.contiguous()}, path)


def check(args: argparse.Namespace) -> list[str]:
    """Returns the recipes to compare. Raises UserError for options that do not fit each other."""
    if args.seeds < 2:
        raise UserError(f"--seeds {args.seeds}: should be at least 2, for an interval")
    if any((args.faces, args.sets, args.teacher)) and not all((args.faces, args.sets, args.teacher)):
        raise UserError("--faces, --sets, --teacher: name all three, or none of them")
    if args.sets and not (args.sets / f"{args.set}.bin").is_file():
        raise UserError(f"--sets {args.sets}: holds no {args.set}.bin", fix="name another folder, or --set NAME")
    names = [name.strip() for name in args.only.split(",")] if args.only else list(RECIPES)
    if unknown := [name for name in names if name not in RECIPES]:
        raise UserError(f"--only {unknown[0]}: no such recipe", fix=f"there are {', '.join(RECIPES)}")
    return [BASELINE, *(name for name in RECIPES if name in names and name != BASELINE)]


def main() -> None:
    """Runs the experiment and prints its table."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each recipe (%(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="steps of every student (%(default)s)")
    parser.add_argument("--people", type=int, default=200, help="synthetic people (%(default)s)")
    parser.add_argument("--shots", type=int, default=8, help="images of each of them (%(default)s)")
    parser.add_argument("--nuisance", type=float, default=1.3, help="as in data/make_demo_faces.py (%(default)s)")
    parser.add_argument("--pairs", type=int, default=1500, help="verification pairs of other people (%(default)s)")
    parser.add_argument("--teacher-steps", type=int, default=600, help="steps of their teacher (%(default)s)")
    parser.add_argument("--faces", type=path_argument, help="folder of train.rec, in place of synthetic faces")
    parser.add_argument("--sets", type=path_argument, help="folder of the verification set")
    parser.add_argument("--set", default="lfw", help="its name (%(default)s)")
    parser.add_argument("--teacher", type=path_argument, help="weights of PocketNetS-128")
    parser.add_argument("--only", default="", help="recipes to compare with arcface: cosface,mse,… (all)")
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="runs at once (%(default)s)")
    parser.add_argument("--out", type=path_argument, default=Path("output/recipes"), help="folder (%(default)s)")
    parser.add_argument("changes", nargs="*", metavar="field=value", help="config field of every student")
    args = parser.parse()
    names, start = check(args), time.perf_counter()
    for option in ("faces", "sets", "teacher", "out"):  # commands run in the project's folder
        setattr(args, option, getattr(args, option) and getattr(args, option).absolute())
    args.out.mkdir(parents=True, exist_ok=True)
    setting = photos(args, args.out) if args.faces else synthetic(args, args.out)
    runs = {name: [setting.run(args.out, name, seed) for seed in range(args.seeds)] for name in names}
    # Seed by seed, so that an interruption leaves whole comparisons.
    finish_all([runs[name][seed] for seed in range(args.seeds) for name in names], args.parallel)
    accuracies = {name: [run.accuracy() for run in runs[name]] for name in names}
    (args.out / "results.json").write_text(json.dumps(accuracies, indent=1) + "\n")
    (args.out / "results.txt").write_text(table(accuracies, BASELINE) + "\n")
    save_figure(args.out / "recipes.png", draw(accuracies, BASELINE, f"accuracy on {setting.scored_on[1]}"), dpi=110)
    minutes = (time.perf_counter() - start) / 60
    print(f"\n{table(accuracies, BASELINE)}\n\n{minutes:.1f} minutes, {os.cpu_count()} cores; all in {args.out}")


if __name__ == "__main__":
    run_cli(main)
