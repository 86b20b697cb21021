"""Translates failures of torch.distributed and of loader workers into one-line errors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from config.base import Config
from utils.distributed.process_group import World, init_distributed
from utils.errors import RetryableError

_SILENT = re.compile(r"timed?[ -]?out|timeout", re.IGNORECASE)  # messages of gloo and NCCL
_GONE = re.compile(r"connection (closed|reset)|remote process exited|broken pipe", re.IGNORECASE)


def resume_hint(config: Config) -> str:
    """Returns the part of a message that says how to resume the run."""
    command = "the same command, without --resume 0," if config.resume == "0" else "the same command"
    return f"{command} resumes from the last checkpoint"


@contextmanager
def translate_runtime_errors(config: Config) -> Iterator[None]:
    """Translates RuntimeErrors about loader workers that died and ranks that failed or hung into RetryableErrors.

    Any other RuntimeError passes through.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker (pid" in text:  # not an error of the project raised in a worker
            reason = match[1] if (match := re.search(r"killed by signal: (\w+)", text)) else "no reason given"
            raise RetryableError(
                f"a loader worker ended ({reason})",
                fix=f"if memory ran out, lower workers or batch_size; {resume_hint(config)}",
            ) from None
        if not (isinstance(error, dist.DistError) or "gloo" in text):
            raise
        if _SILENT.search(text):
            raise RetryableError(
                f"another process has not answered for {config.timeout} s (config timeout): it hangs or waits for its "
                "disk",
                fix=resume_hint(config),
            ) from None
        if _GONE.search(text):
            raise RetryableError("another process ended in the middle of a step", fix=resume_hint(config)) from None
        raise


@contextmanager
def init_run(config: Config) -> Iterator[World]:
    """Initialises the process group of a run by its config, and translates RuntimeErrors, also those of the block.

    Collective. Raises UserError as `init_distributed`, which may end the process itself at an error of the block.
    """
    with (
        translate_runtime_errors(config),
        init_distributed(config.device, config.timeout) as world,
        translate_runtime_errors(config),
    ):
        yield world
