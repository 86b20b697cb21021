"""Commands of the project, run as a person runs them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers import fork_server

SMALL = ["channel=4", "n_layers=4", "embedding_size=32", "batch_size=8", "workers=1", "log_step=3"]


DEMO = ["--config", "config/config_demo.py", *SMALL]


def run_command(folder: Path, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in the folder as a user would, with this interpreter, for at most two minutes."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("NPROC", "NNODES", "PYTHONPATH")}
    full_environment = inherited | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | environment
    parts = [str(part) for part in command]
    if parts[0] == sys.executable and (parts[1] == "-m" or parts[1].endswith(".py")) and not environment:
        return fork_server.run_script(parts[1:], folder, full_environment)
    return subprocess.run(
        parts,
        cwd=folder,
        env=full_environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def copy_run(folder: Path, to: Path) -> Path:
    """Copies a run's folder, and changes the output of its config.json to the copy."""
    shutil.copytree(folder, to)
    saved = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(saved | {"output": str(to)}))
    return to
