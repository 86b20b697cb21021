"""Runs the doctor: python -m utils.doctor [--kd] [--config FILE] [field=value …]"""

import sys
from pathlib import Path

if not __package__:  # run as a script: import modules from the project folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from utils.doctor.command import main
from utils.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
