"""A small network with data to verify it on, and its export."""

import sys
from pathlib import Path
from subprocess import CompletedProcess

from tests.helpers.commands import run_command
from tests.helpers.faces import write_data
from tests.helpers.networks import write_network
from tests.helpers.paths import ROOT


def write_network_and_data(folder: Path) -> Path:
    """Writes a network without an evaluation to folder/run, and a dataset to folder/data. Returns the folder."""
    write_network(folder / "run", cosine=None)
    write_data(folder / "data", pairs=200)
    return folder


def export(folder: Path, *arguments: object, model: str | Path = "run", **how: str) -> CompletedProcess[str]:
    """Runs python -m deploy.export on the network of a folder, verified on its data.

    model: another network, relative to the folder. how: options of `run_command`, and variables of the environment.
    """
    data = [f"rec={folder / 'data'}", "val_targets=tiny", "eval_runtime=openvino"]
    return run_command(ROOT, sys.executable, "-m", "deploy.export", "--model", folder / model, *data, *arguments, **how)
