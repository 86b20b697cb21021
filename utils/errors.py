"""Errors that a user can fix, and how entry scripts report them."""

import errno
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import NoReturn, TextIO


class UserError(ValueError):
    """Bad input, such as a config, a data file or a checkpoint.

    Entry scripts print it in one line, without a traceback, and exit with code 2. One that is logged is a warning.
    """

    def __init__(self, problem: str, fix: str = "") -> None:
        """problem: names the input and what is wrong with it. fix: what to do about it; empty if that is obvious."""
        super().__init__(problem, fix)  # what pickle passes to the copy in another process
        self.problem, self.fix = problem, fix

    def __str__(self) -> str:
        return f"{self.problem}; {self.fix}" if self.fix else self.problem


def one_line(text: object) -> str:
    """Returns a text or path in one line: unprintable characters, such as control characters, become escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def shorten(value: object, limit: int = 80, quote: bool = True) -> str:
    """Formats a value for a message: one printable line, cut after `limit` characters.

    quote: whether a string is shown in quotation marks.
    """
    if isinstance(value, str):
        value = value[: limit + 1]
    try:
        text = one_line(repr(value) if quote else value)
    except ValueError:  # it holds an integer with more digits than Python prints
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= limit + 2 else text[:limit] + "…"


def quantity(count: int, noun: str, plural: str = "") -> str:
    """Returns a count with its noun, such as "1 photo" or "1,200 photos". plural: of the noun, where it is not -s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


class RetryableError(UserError):
    """A failure that a restart may resolve, such as a process that died or hung."""


# Messages of torch and NumPy about sizes that exceed the memory or the range of an integer.
_NO_MEMORY = re.compile(
    "can't allocate memory|out of memory|CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED|"
    "size calculation overflowed|integer multiplication overflow|overflow when unpacking long|array is too big",
    re.IGNORECASE,
)


def out_of_memory(error: Exception) -> RetryableError | None:
    """Returns a one-line error for an exception that reports a lack of memory, None for any other exception."""
    if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
        return None
    reason = shorten(str(error).partition("\n")[0] or type(error).__name__, 160, quote=False)
    return RetryableError(
        f"out of memory ({reason})",
        fix="lower batch_size, workers, or the size of the network (channel, embedding_size, num_classes)",
    )


_GPU_FAILED = re.compile("CUDA error: |CUDNN_STATUS_|CUBLAS_STATUS_|NCCL error")


def gpu_failure(error: Exception) -> RetryableError | None:
    """Returns a one-line error for an exception that reports a failed operation on a GPU, None for any other exception.

    None too with CUDA_LAUNCH_BLOCKING=1, which makes the traceback show the operation.
    """
    text = str(error)
    if not _GPU_FAILED.search(text) or os.environ.get("CUDA_LAUNCH_BLOCKING") == "1":
        return None
    reason = shorten(text.partition("\n")[0], 160, quote=False)
    if "device-side assert" in text:
        fix = "a label or an index is out of range: check num_classes and the data; CUDA_LAUNCH_BLOCKING=1 shows where"
    else:
        fix = "run it again; if it fails again, CUDA_LAUNCH_BLOCKING=1 shows where, and device=cpu runs without GPU"
    return RetryableError(f"an operation on the GPU failed ({reason})", fix=fix)


@contextmanager
def translate_resource_errors() -> Iterator[None]:
    """Translates exceptions that report a lack of memory or a failed GPU into a RetryableError. Others pass through."""
    try:
        yield
    except UserError:
        raise
    except (MemoryError, RuntimeError, TypeError, ValueError) as error:
        if (problem := out_of_memory(error) or gpu_failure(error)) is None:
            raise
        raise problem from None


def run_cli(main: Callable[[], None]) -> NoReturn:
    """Runs an entry script and exits.

    Exit codes: 0 on success; 2 with a one-line error for a UserError, a lack of memory or a failed GPU; 130 for Ctrl-C.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold bytes that are not UTF-8
    try:
        with translate_resource_errors():
            main()
    except UserError as error:
        print_error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def end_at_once(error: BaseException) -> NoReturn:
    """Reports an error as `run_cli` does, then ends the process without any clean-up, which could wait for others."""

    def fail() -> None:
        raise error

    code: object = 1
    try:
        run_cli(fail)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with ignore_broken_pipe(stream):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def print_error(error: UserError) -> None:
    """Prints the error to stderr in one line."""
    with ignore_broken_pipe(sys.stderr):
        print(f"error: {one_line(str(error))}", file=sys.stderr)


@contextmanager
def ignore_broken_pipe(stream: TextIO) -> Iterator[None]:
    """Ignores a closed pipe or terminal while the block writes to `stream`; later output is discarded.

    Ctrl-C in `./train.sh | tee FILE` also ends tee, and a terminal may be closed. The run must still write its
    checkpoint.
    """
    try:
        yield
        stream.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
