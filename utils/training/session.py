"""Shared setup of train.py, train_kd.py and NAS/search.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from config.base import Config
from utils.distributed.process_group import World
from utils.distributed.restart import exit_if_ended, record_exit_code
from utils.distributed.run_lock import lock_output_dir
from utils.distributed.runtime_errors import init_run
from utils.logs.logger import init_logging


@contextmanager
def training_session(config: Config, log_file: str, prefix: str) -> Iterator[World]:
    """Sets up a run in the folder config.output: process group, lock, log file and random seed.

    Collective: call on all ranks. log_file: file name in that folder. prefix: start of each log line. Yields this
    rank's World. Raises UserError if another run holds the lock of the folder.
    """
    output = Path(config.output)
    with init_run(config) as world:
        exit_if_ended(world)
        # Here, because leaving init_distributed may wait for other ranks.
        with record_exit_code(), lock_output_dir(output, world):
            init_logging(output / log_file if world.is_main else None, prefix=prefix)
            torch.manual_seed(config.seed)
            yield world
