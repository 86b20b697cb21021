"""Batches decoded ahead by worker processes: their order, their failures, and the signals that the workers get."""

import ctypes
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import cv2
from torch.utils.data import DataLoader

from utils.datasets.shared_buffers import LOOKAHEAD, PREFETCH, HostBatch, ImageSource, SharedBatchBuffers, SlotRef
from utils.distributed.signals import CHECKPOINT_SIGNALS, STOP_SIGNALS
from utils.errors import RetryableError, UserError
from utils.logs.run_log import log

if TYPE_CHECKING:
    from utils.datasets.sampler import BatchSampler

# What the system and torch say where no process, thread, file handle or memory is left.
_EXHAUSTED = re.compile(
    r"too many open files( in system)?|cannot allocate memory|can't allocate memory|can't start new thread|"
    r"resource temporarily unavailable|no space left on device|unable to mmap",
    re.IGNORECASE,
)


S = TypeVar("S", bound=ImageSource)


class Loader(Generic[S]):
    """The batches of one epoch after another, in the sampler's order."""

    def __init__(
        self, dataset: S, sampler: "BatchSampler", workers: int = 0, pin: bool = False, skip_bad: bool = False,
        timeout: int = 0,
    ) -> None:  # fmt: skip
        """workers: processes; 0 decodes in this one. pin: for a GPU, hand out pinned copies. skip_bad: an image that
        cannot be read is told and left out, another of its batch stands twice; else it is an error. timeout: seconds
        to wait for workers; 0: for ever."""
        self.dataset = dataset
        self.sampler = sampler
        self.pin = pin
        self.timeout = timeout if workers else 0
        # Before a worker is forked: one that inherits OpenCV's threads, dead in it, hangs in its next call or its end.
        cv2.setNumThreads(1)
        try:
            self._buffers = SharedBatchBuffers(dataset, workers, sampler.batch_size, skip_bad)
        except RuntimeError as error:
            raise _explained(error, workers) from None
        self.workers = workers
        self._deaths: _WorkerDeaths | None = None
        self.skipped = 0  # images left out so far
        self.failure: Exception | None = (
            None  # of a batch behind the last one handed out: `epoch` raises it in its turn
        )
        self._loader = DataLoader(
            self._buffers,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=identity_collate,
            persistent_workers=workers > 0,
            worker_init_fn=leave_signals_to_parent,
            prefetch_factor=PREFETCH if workers else None,
            timeout=self.timeout,
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int, samples_seen: int = 0) -> Iterator[HostBatch]:
        """The epoch's batches, after the first `seen` images of it. Unpinned ones are overwritten once the batch after
        next is asked for: use or copy them.

        Raises UserError at a record that cannot be read: at once where it is in one of the first AHEAD batches, else in
        its turn; `failure` has it AHEAD batches earlier.
        """
        self.sampler.epoch, self.sampler.samples_seen = epoch, samples_seen
        self.failure = None
        tickets = self._start()
        waiting: deque[SlotRef] = deque()
        self._take(LOOKAHEAD, tickets, waiting)
        if self.failure:
            self.raise_failure()
        while True:
            self._take(1, tickets, waiting)
            if not waiting:
                break
            ticket = waiting.popleft()
            for message in ticket[3]:
                self.skipped += 1
                log.error(f"{message}: left out ({self.skipped} so far)")  # error: other processes say no less
            batch = self._buffers.batch(ticket)
            yield HostBatch(batch.images.pin_memory(), batch.labels.pin_memory(), batch.indices) if self.pin else batch
        if self.failure:
            self.raise_failure()

    def _start(self) -> Iterator[Any]:
        """The tickets of an epoch. Raises UserError where the workers cannot be started, or do not answer."""
        try:
            tickets = iter(self._loader)
            if self.workers:
                self._deaths = _watch_workers()
            return tickets
        except (OSError, RuntimeError) as error:
            explained = self._explain(error)
            if explained is error:
                raise
            # torch's iterator, half made, would print an error of its own where it is deleted, as it is here.
            hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
            error.__traceback__ = None
            sys.unraisablehook = hook
            raise explained from None

    def raise_failure(self) -> NoReturn:
        """Raises what is wrong with a batch."""
        error, self.failure = self.failure, None
        assert error
        try:
            raise error
        finally:
            del error  # its traceback holds this frame: a cycle, in which the workers end only after a wait

    def _take(self, count: int, tickets: Iterator[Any], waiting: "deque[SlotRef]") -> None:
        """Appends the next tickets, up to `count` of them, unless what comes is a failure."""
        if self._deaths and self._deaths.error:
            self.failure = self.failure or self._deaths.error
        try:
            for ticket in islice(tickets, 0 if self.failure else count):
                if isinstance(ticket, UserError):
                    self.failure = ticket
                    break
                waiting.append(ticket)
        except RuntimeError as error:
            self.failure = self._explain(error)

    def _explain(self, error: Exception) -> Exception:
        """The error to raise for one of torch's data loader."""
        if "DataLoader timed out" not in str(error):
            return (self._deaths and self._deaths.error) or _explained(error, self.workers)
        for worker in multiprocessing.active_children():
            worker.kill()  # what hangs does not end when asked to, and this process would wait for its end
        return RetryableError(
            f"no images have come for {self.timeout} s (config timeout): a loader worker hangs, or waits for its disk"
        )


class _WorkerDeaths:
    """torch's handler of SIGCHLD, which raises an error in the middle of whatever this process does, made to note it: a
    step is done in full before a run ends."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler = handler
        self.error: Exception | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.handler(number, frame)
        except RuntimeError as error:
            self.error = error.with_traceback(None)


def _watch_workers() -> "_WorkerDeaths | None":
    """Puts the one handler in the place of the other, once; None where torch has no handler."""
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and not isinstance(handler, _WorkerDeaths):
        handler = _WorkerDeaths(handler)
        signal.signal(signal.SIGCHLD, handler)
    if not isinstance(handler, _WorkerDeaths):
        return None
    handler.error = None
    return handler


def _explained(error: Exception, workers: int) -> Exception:
    """The UserError for an error that says that there is too little for the workers; any other error itself."""
    match = _EXHAUSTED.search(str(error))
    if not match:
        return error
    return UserError(
        f"config workers: {workers} loader workers could not be started ({match[0]}); lower workers or batch_size, or "
        "raise the limits of files and processes (ulimit -n, ulimit -u)"
    )


def leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C at a terminal and a scheduler's signals reach workers too; but it is the training process that ends, after
    its step and a checkpoint, and them: a worker heeds its SIGTERM alone."""
    for number in (*STOP_SIGNALS, *CHECKPOINT_SIGNALS):
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        # It inherits the connections to other processes, which would see them open for as long as it outlives its own.
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if hasattr(signal, "sigwaitinfo"):  # which tells who sent it; not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=exit_on_parent_sigterm, args=(os.getppid(),), daemon=True).start()


def exit_on_parent_sigterm(process: int) -> None:
    """Ends this process at a SIGTERM of the other one."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass
    os._exit(0)


def identity_collate(ticket: Any) -> Any:
    return ticket
