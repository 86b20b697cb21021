"""Training runs of cells, all with the same settings, and the data set that they train on."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backbones.genotypes import Genotype, to_text
from benchmarks.experiments.commands import ROOT, command
from benchmarks.experiments.kept_runs import KeptRun, finish_all
from benchmarks.experiments.random_cells import network_cost
from utils.errors import UserError

CONFIG = ROOT / "config/config_demo.py"  # of every training
SHOTS = 20  # images per person
MEASURES = ("accuracy", "auc", "eer", "tar")  # in %; tar at FAR 1e-2
FAR = "1e-02"
FULL_LR = 0.75  # part of the steps before the learning rate falls


@dataclass(frozen=True)
class Settings:
    """All that a run depends on, besides its genotype, its seed and the code."""

    images: int = 20_000  # of the training set, SHOTS per person
    nuisance: float = 1.0  # of data/make_demo_faces.py
    test_people: int = 200
    pairs: int = 3000  # to verify
    channel: int = 4
    n_layers: int = 6
    embedding_size: int = 128
    steps: int = 400  # of training
    lr: float = 0.8  # as the config field; a tenth in the last quarter of the steps
    changes: tuple[str, ...] = ()  # config fields that differ from CONFIG: field=value

    @property
    def size(self) -> tuple[int, int, int]:
        """Channel, n_layers and embedding_size of the networks."""
        return self.channel, self.n_layers, self.embedding_size

    @property
    def data(self) -> str:
        """Folder of the data set, its own for each choice of settings."""
        return f"data/faces_cells_{self.images}_{self.nuisance:g}_{self.test_people}_{self.pairs}"

    def check(self) -> None:
        """Raises UserError for settings that cannot be used."""
        if self.images < 2 * SHOTS or self.images % SHOTS:
            raise UserError(f"--images {self.images}: should be a multiple of {SHOTS}, at least {2 * SHOTS}")
        if self.channel < 1 or self.n_layers < 4:
            raise UserError(f"--channel {self.channel}, --layers {self.n_layers}: should be at least 1 and 4")
        if self.steps < 4 or self.lr <= 0:
            raise UserError(f"--steps {self.steps}, --lr {self.lr}: should be at least 4, and above 0")
        if fixed := [text for text in self.changes if text.split("=")[0] in ("lr", "lr_steps", "max_steps", "seed")]:
            raise UserError(f"{fixed[0]}: not a field to change here", fix="--steps and --lr set the training")


@dataclass(frozen=True)
class CellRun(KeptRun):
    """Training of a cell with a seed, and its evaluation."""

    folder: Path
    genotype: Genotype
    seed: int
    settings: Settings

    def inputs(self) -> dict[str, Any]:
        """See `KeptRun`."""
        made = json.loads((ROOT / self.settings.data / "made.json").read_text())
        settings = asdict(self.settings) | {"changes": [*self.settings.changes]}
        config = CONFIG.read_text()
        return {
            "genotype": to_text(self.genotype), "seed": self.seed, "settings": settings, "data": made, "config": config
        }  # fmt: skip

    def train_and_score(self, threads: int) -> dict[str, float]:
        """See `KeptRun`."""
        # The learning rate falls once: at its full height scores vary more with the seed. The second command resumes
        # the first with another lr; each does nothing where an interrupted run had gone further.
        settings = self.settings
        for steps, factor in ((round(FULL_LR * settings.steps), 1), (settings.steps, 0.1)):
            command(self._training(steps, factor * settings.lr), threads)
        command(["eval/eval.py", f"output={self.folder}", "--steps", str(settings.steps)], threads)
        return self._read_scores()

    def _training(self, steps: int, lr: float) -> list[str]:
        """Returns the command that trains until this step."""
        settings = self.settings
        return [
            "train.py", "--config", str(CONFIG), f"rec={settings.data}", f"channel={settings.channel}",
            f"n_layers={settings.n_layers}", f"embedding_size={settings.embedding_size}", f"seed={self.seed}",
            f"genotypes={ {'cell': to_text(self.genotype)} !r}", "genotype=cell", "save_initial=0", "workers=1",
            f"output={self.folder}", f"log_dir={self.folder / 'logs'}", "lr_steps=[]", *settings.changes,
            f"max_steps={steps}", f"lr={lr:g}",
        ]  # fmt: skip

    def _read_scores(self) -> dict[str, float]:
        """Returns the scores of the last checkpoint in %."""
        results = json.loads((self.folder / "results.json").read_text())
        (score,) = results[max(results, key=int)].values()
        values = {**{name: score[name] for name in MEASURES if name != "tar"}, "tar": score["tar"][FAR]}
        return {name: round(100 * value, 4) for name, value in values.items()}


def make_faces(settings: Settings) -> None:
    """Makes the data set of the settings unless it is there."""
    command(
        [
            "data/make_demo_faces.py", "--out", settings.data, "--people", str(settings.images // SHOTS), "--shots",
            str(SHOTS), "--test-people", str(settings.test_people), "--pairs", str(settings.pairs), "--nuisance",
            str(settings.nuisance),
        ],
        os.cpu_count() or 1,
    )  # fmt: skip


def train_cells(
    cells: dict[str, Genotype], out: Path, settings: Settings, seeds: int, parallel: int, threads: int
) -> dict[str, dict[str, Any]]:
    """Returns a row of the table for each cell, by name: its description, and its scores by measure, one per seed.

    out: folder of the runs, {name}-{seed} each. parallel, threads: see `finish_all`.
    """
    make_faces(settings)
    pairs = [(name, seed) for seed in range(seeds) for name in cells]  # all cells once, then again
    runs = [CellRun(out.absolute() / f"{name}-{seed}", cells[name], seed, settings) for name, seed in pairs]
    records = dict(zip(pairs, finish_all(runs, parallel, threads), strict=True))
    rows = {}
    for name, genotype in cells.items():
        cost = network_cost(genotype, *settings.size)
        of_seeds = [records[name, seed] for seed in range(seeds)]
        rows[name] = {
            "genotype": to_text(genotype),
            "multiply_adds": cost.multiply_adds,
            "parameters": cost.parameters,
            "scores": {measure: [record["scores"][measure] for record in of_seeds] for measure in MEASURES},
            "seconds": [record["seconds"] for record in of_seeds],
        }
    return rows
