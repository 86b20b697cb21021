"""Compares a student trained without a teacher, and by template and multi-step knowledge distillation.

    python benchmarks/experiments/demo_kd.py [--seeds 3] [--out output/demo_kd] [field=value …]

Every run is a command of this project and writes its log to its folder. Runs share the cores, each with at least one
thread. After an interruption the same command does only the missing runs. Writes results.txt and results.json to --out.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.experiments.commands import ROOT, command
from benchmarks.experiments.kept_runs import finish_all
from benchmarks.experiments.paired import table
from benchmarks.experiments.scored_runs import ScoredRun
from config import CommandParser
from utils.checkpoints.weights import list_backbones
from utils.datasets.face_dataset import FaceDataset
from utils.errors import UserError, run_cli

FACES = ROOT / "data/faces_demo"
# The teacher is the network of make demo, trained for as many epochs as the student, one checkpoint for each.
TEACHER_CONFIG = "config/config_demo.py"
TEACHER = ["train.py", "--config", TEACHER_CONFIG, "num_epoch=4", "lr_steps=3", "save_initial=0"]
STUDENT_CONFIG = "config/config_demo_kd.py"
METHODS = {"plain": ["train.py"], "template": ["train_kd.py"], "multi-step": ["train_kd.py", "--multi-step"]}


def main() -> None:
    """Runs the experiment and prints its table."""
    parser = CommandParser(__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("output/demo_kd"), help="folder of all runs (%(default)s)")
    parser.add_argument("changes", nargs="*", metavar="field=value", help="config field of every student")
    args = parser.parse()
    if args.seeds < 2:
        raise UserError(f"--seeds {args.seeds}: should be at least 2, for an interval")
    start, out, cores = time.perf_counter(), args.out.absolute(), os.cpu_count() or 1
    command(["data/make_demo_faces.py", "--out", str(FACES)], cores)
    data, scored_on = FaceDataset(FACES).fingerprint, (FACES, "demo")

    def students(method: str, teacher_fields: Sequence[str], *teacher_files: Path) -> list[ScoredRun]:
        training = [*METHODS[method], "--config", STUDENT_CONFIG, *args.changes, *teacher_fields]
        files = (ROOT / STUDENT_CONFIG, *teacher_files)
        return [
            ScoredRun(out / f"{method}-{seed}", [*training, f"seed={seed}"], scored_on, data, files)
            for seed in range(args.seeds)
        ]

    teacher = ScoredRun(out / "teacher", TEACHER, scored_on, data, (ROOT / TEACHER_CONFIG,))
    runs = {"plain": students("plain", [])}
    finish_all([teacher, *runs["plain"]], cores)  # these need no teacher and train at the same time
    fields = [f"teacher_pth={teacher.folder}", f"teacher_cache={out / 'cache'}"]
    backbones = list_backbones(teacher.folder).values()
    runs |= {method: students(method, fields, *backbones) for method in ("template", "multi-step")}
    finish_all([*runs["template"], *runs["multi-step"]], cores)
    accuracies = {method: [each.accuracy() for each in method_runs] for method, method_runs in runs.items()}
    text = f"{table(accuracies, 'plain')}\n(teacher)   {teacher.accuracy():>9.2f}"
    (out / "results.json").write_text(json.dumps({"teacher": teacher.accuracy(), **accuracies}, indent=1) + "\n")
    (out / "results.txt").write_text(text + "\n")
    print(f"\n{text}\n\n{time.perf_counter() - start:.0f} s, {cores} cores; all in {out}")


if __name__ == "__main__":
    run_cli(main)
