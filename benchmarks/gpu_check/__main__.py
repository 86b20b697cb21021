"""Checks training on a GPU: make gpu-check, or python -m benchmarks.gpu_check [--device auto] [--stages NAME …]

It uses this Python and the packages that it has, and says which are missing. Writes result.json and the log of each
stage to --output, and prints a table last. The exit code is 1 if a stage failed. With --device cpu it walks every line
at a small size, on a machine without a GPU.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType

from benchmarks.gpu_check.processes import ROOT
from benchmarks.gpu_check.runner import Result, run_stages
from benchmarks.gpu_check.stages import STAGES
from benchmarks.gpu_check.table import any_failed, format_table, to_json
from utils.errors import UserError, run_cli
from utils.filesystem import write_text_atomic

OLDEST_TORCH = (2, 6)


def main() -> None:
    """Runs the stages, then prints the table and writes result.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--device", choices=["auto", "cuda", "cpu"], default="auto", help="auto: cuda if there is a GPU"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "gpu_check", help="folder for the results")
    names = [stage.name for stage in STAGES]
    parser.add_argument("--stages", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--minutes", type=float, default=8.0, help="for all stages together (%(default)s)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _exit)
    device = select_device(args.device)
    wanted = [stage for stage in STAGES if stage.name in args.stages or _is_needed(stage.name, args.stages)]
    path = args.output / "result.json"

    def save(results: list[Result]) -> None:
        write_text_atomic(path, json.dumps(to_json(results, device), indent=1, allow_nan=False) + "\n")

    results = run_stages(wanted, device, args.output, args.minutes * 60, save)
    print(f"\n{format_table(results)}")
    print(f"{path} has the same rows; the logs of the stages are beside it", flush=True)
    if any_failed(results):
        sys.exit(1)


def _is_needed(name: str, stages: list[str]) -> bool:
    """Whether one of these stages needs the stage `name`."""
    return any(name in stage.needs for stage in STAGES if stage.name in stages)


def _exit(number: int, frame: FrameType | None) -> None:
    """Ends the check by an exception, so that it ends the running stage too."""
    sys.exit(128 + number)


def select_device(device: str) -> str:
    """Returns cuda or cpu. Raises UserError for a Python without torch, a torch that is too old, and a missing GPU."""
    try:
        import torch  # here: the message
    except ImportError as error:
        raise UserError(
            f"{sys.executable} has no torch ({error})", fix="name another: make gpu-check PYTHON=…"
        ) from None
    found = torch.__version__
    if tuple(map(int, found.split(".")[:2])) < OLDEST_TORCH:
        raise UserError(f"{sys.executable} has torch {found}", fix="name one with torch 2.6 or newer: PYTHON=…")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU", fix="check nvidia-smi, or take DEVICE=cpu, which walks every line")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    run_cli(main)
