"""What ends a run from outside, said in a line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from easydict import EasyDict

from utils.errors import PassingError

_SILENT = re.compile(r"timed?[ -]?out|timeout", re.IGNORECASE)  # gloo's and NCCL's words
_GONE = re.compile(r"connection (closed|reset)|remote process exited|broken pipe", re.IGNORECASE)


def again(config: EasyDict) -> str:
    """How the run goes on."""
    same = "the same command, without --resume 0," if config.resume == "0" else "the same command"
    return f"{same} goes on from the last checkpoint"


@contextmanager
def told(config: EasyDict) -> Iterator[None]:
    """Makes PassingErrors of the RuntimeErrors by which torch tells of dead workers and silent processes."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker (pid" in text:  # not one that passes on an error of ours
            how = match[1] if (match := re.search(r"killed by signal: (\w+)", text)) else "without a word"
            raise PassingError(
                f"a loader worker ended ({how}); where memory was short, lower workers or batch_size; {again(config)}"
            ) from None
        if not (isinstance(error, dist.DistError) or "gloo" in text):
            raise
        if _SILENT.search(text):
            raise PassingError(
                f"another process has not answered for {config.timeout} s (config timeout): it hangs, or waits for its "
                f"disk; {again(config)}"
            ) from None
        if _GONE.search(text):
            raise PassingError(f"another process ended in the middle of a step; {again(config)}") from None
        raise
