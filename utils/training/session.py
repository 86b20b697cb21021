"""What training, distillation and the search open alike before their first step."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from easydict import EasyDict

from utils.distributed.exit_status import record_exit_status
from utils.distributed.process_group import World, init_distributed
from utils.distributed.run_lock import lock_output_dir
from utils.distributed.runtime_errors import translate_runtime_errors
from utils.logs.run_log import init_logging


@contextmanager
def training_session(config: EasyDict, log_file: str, prefix: str) -> Iterator[World]:
    """Opens a run in the folder config.output: process group, lock, exit status, log file and random seed.

    log_file: a name in that folder. prefix: of each of its lines. Yields the World of this process. Raises UserError
    where another run holds the folder.
    """
    output = Path(config.output)
    with (
        translate_runtime_errors(config),
        init_distributed(timeout=config.timeout) as world,
        lock_output_dir(output, world),
        record_exit_status(output, world),
    ):
        init_logging(output / log_file if world.is_main else None, prefix=prefix)
        torch.manual_seed(config.seed)
        yield world
