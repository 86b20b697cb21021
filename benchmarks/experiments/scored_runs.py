"""Training runs of a script with its fields, and the accuracy of the last checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.experiments.commands import command
from benchmarks.experiments.kept_runs import KeptRun
from utils.checkpoints.weights import list_backbones
from utils.filesystem import sha256


@dataclass(frozen=True)
class ScoredRun(KeptRun):
    """Training run and the score of its last checkpoint on one verification set."""

    folder: Path
    training: list[str]  # training script and its arguments
    scored_on: tuple[Path, str]  # folder of the verification set, and its name
    data: str  # fingerprint of the training images
    files: tuple[Path, ...]  # that the arguments name: config, weights

    def inputs(self) -> dict[str, Any]:
        """See `KeptRun`."""
        files = {str(path): sha256(path) for path in self.files}
        scored_on = [str(part) for part in self.scored_on]
        return {"training": self.training, "scored_on": scored_on, "data": self.data, "files": files}

    def train_and_score(self, threads: int) -> dict[str, float]:
        """See `KeptRun`."""
        output = f"output={self.folder}"
        command([*self.training, output, f"log_dir={self.folder / 'logs'}", "workers=1"], threads)
        step = str(max(list_backbones(self.folder)))
        sets, name = self.scored_on
        scoring = [f"rec={sets}", f"val_targets={name}", f"test_output={self.folder}", "workers=1"]
        command(["eval/eval.py", output, "--steps", step, *scoring], threads)
        score = json.loads((self.folder / "results.json").read_text())[step][name]
        return {"accuracy": 100 * score["accuracy"]}

    def accuracy(self) -> float:
        """Returns the accuracy in %. The run has to be finished."""
        result = self.result()
        assert result
        return result["scores"]["accuracy"]
