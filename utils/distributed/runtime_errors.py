"""What ends a run from outside, said in a line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from easydict import EasyDict

from utils.errors import RetryableError

_SILENT = re.compile(r"timed?[ -]?out|timeout", re.IGNORECASE)  # gloo's and NCCL's words
_GONE = re.compile(r"connection (closed|reset)|remote process exited|broken pipe", re.IGNORECASE)


def resume_hint(config: EasyDict) -> str:
    """How the run goes on."""
    same = "the same command, without --resume 0," if config.resume == "0" else "the same command"
    return f"{same} goes on from the last checkpoint"


@contextmanager
def translate_runtime_errors(config: EasyDict) -> Iterator[None]:
    """Makes PassingErrors of the RuntimeErrors by which torch tells of dead workers and silent processes."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker (pid" in text:  # not one that passes on an error of ours
            how = match[1] if (match := re.search(r"killed by signal: (\w+)", text)) else "without a word"
            raise RetryableError(
                f"a loader worker ended ({how}); where memory was short, lower workers or batch_size; "
                f"{resume_hint(config)}"
            ) from None
        if not (isinstance(error, dist.DistError) or "gloo" in text):
            raise
        if _SILENT.search(text):
            raise RetryableError(
                f"another process has not answered for {config.timeout} s (config timeout): it hangs, or waits for its "
                f"disk; {resume_hint(config)}"
            ) from None
        if _GONE.search(text):
            raise RetryableError(f"another process ended in the middle of a step; {resume_hint(config)}") from None
        raise
