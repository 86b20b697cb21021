"""Runs the doctor: python -m utils.doctor [--kd] [--config FILE] [field=value …]"""

from utils.doctor.command import main
from utils.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
