"""Architecture searches whose result is kept."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.experiments.commands import command
from benchmarks.experiments.kept_runs import KeptRun
from NAS.search import DEFAULT_CONFIG


@dataclass(frozen=True)
class SearchRun(KeptRun):
    """Run of NAS/search.py, with NAS/config.py and some fields. Its score is the supernet's accuracy in training."""

    folder: Path
    fields: list[str]  # config fields, field=value
    data: str  # fingerprint of the images

    def inputs(self) -> dict[str, Any]:
        """See `KeptRun`."""
        return {"fields": self.fields, "config": DEFAULT_CONFIG.read_text(), "data": self.data}

    def train_and_score(self, threads: int) -> dict[str, float]:
        """See `KeptRun`."""
        folders = [f"output={self.folder}", f"log_dir={self.folder / 'logs'}", "workers=1"]
        command(["NAS/search.py", *self.fields, *folders], threads)
        return {"supernet_val": 100 * self.last_epoch()["supernet_val"]}

    def last_epoch(self) -> dict[str, Any]:
        """Returns the last line of genotypes.jsonl. The run has to be finished."""
        return json.loads((self.folder / "genotypes.jsonl").read_text().splitlines()[-1])

    def minutes(self) -> float:
        """Returns the time of the search. The run has to be finished."""
        result = self.result()
        assert result
        return round(result["seconds"] / 60, 1)
