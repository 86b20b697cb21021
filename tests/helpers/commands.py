"""Commands of the project, run as a person runs them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers import fork_server as forked

SMALL = ["channel=4", "n_layers=4", "embedding_size=32", "batch_size=8", "workers=1", "log_step=3"]


DEMO = ["--config", "config/config_demo.py", *SMALL]


def run_command(folder: Path, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in the folder as a person would, with this interpreter; two minutes at most."""
    plain = {key: value for key, value in os.environ.items() if key not in ("NPROC", "NNODES", "PYTHONPATH")}
    everything = plain | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | environment
    parts = [str(part) for part in command]
    if parts[0] == sys.executable and (parts[1] == "-m" or parts[1].endswith(".py")) and not environment:
        return forked.run(parts[1:], folder, everything)
    return subprocess.run(
        parts,
        cwd=folder,
        env=everything,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def copy_run(folder: Path, to: Path) -> Path:
    """A copy of a run's folder as if the run had been there: its config.json names another."""
    shutil.copytree(folder, to)
    kept = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(kept | {"output": str(to)}))
    return to
