"""Runs one stage in this process: python -m benchmarks.gpu_check.stage MODULE DEVICE FOLDER ROWS (see __main__.py)."""

import sys
from importlib import import_module
from pathlib import Path

from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.stages import Context


def main() -> None:
    """Imports the module of the stage and calls its `run`."""
    module, device, folder, rows = sys.argv[1:]
    import_module(module).run(Context(device, Path(folder), Report(Path(rows))))


if __name__ == "__main__":
    main()
