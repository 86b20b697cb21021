"""Draws synthetic faces for the stages that train."""

import subprocess
import sys

from benchmarks.gpu_check.processes import ROOT
from benchmarks.gpu_check.stages import Context


def run(context: Context) -> None:
    """Makes the folder `faces`, as data/make_demo_faces.py does for the demo."""
    people, shots = (100, 20) if context.on_gpu else (6, 8)
    sizes = ["--people", people, "--shots", shots, "--test-people", 8, "--pairs", 40]
    command = [sys.executable, "data/make_demo_faces.py", "--out", str(context.folder / "faces"), *map(str, sizes)]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    context.report.expect(f"{people * shots} images of {people} people", code == 0)
