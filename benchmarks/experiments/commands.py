"""Commands of this project, as experiments run them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def command(arguments: Sequence[str], threads: int) -> None:
    """Runs a script of the project. Raises UserError with the last line of its errors if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{' '.join(arguments)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
