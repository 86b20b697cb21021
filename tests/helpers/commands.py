"""Commands of the project, run as a user runs them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers.fork_server import TIMEOUT, forked_python

SMALL = ["channel=4", "n_layers=4", "embedding_size=32", "batch_size=8", "workers=1", "log_step=3"]


DEMO = ["--config", "config/config_demo.py", *SMALL]


def run_command(
    folder: Path, *command: object, new_interpreter: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command in the folder as a user would, for at most five minutes.

    Python programs, those of shell scripts and torchrun too, run in forks of a server, which start within 0.1 s.

    new_interpreter: start Python itself in place of forks.
    """
    python = sys.executable if new_interpreter else str(forked_python())
    inherited = {key: value for key, value in os.environ.items() if key not in ("NPROC", "NNODES", "PYTHONPATH")}
    # torchrun starts its processes with PYTHON_EXEC.
    interpreters = {"PYTHON": python, "PYTHON_EXEC": python}
    return subprocess.run(
        [python if part == sys.executable else str(part) for part in command],
        cwd=folder,
        env=inherited | interpreters | {"CUDA_VISIBLE_DEVICES": ""} | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def copy_run(folder: Path, to: Path) -> Path:
    """Copies a run's folder, and changes the output of its config.json to the copy."""
    shutil.copytree(folder, to)
    saved = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(saved | {"output": str(to)}))
    return to
