"""The loader of decoded batches: prefetching by worker processes, their errors, and their signal handling."""

import ctypes
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from types import FrameType
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader

from utils.datasets.label_check import LabelCheck
from utils.datasets.sampler import BatchSampler
from utils.datasets.shared_buffers import LOOKAHEAD, PREFETCH, HostBatch, ImageSource, SharedBatchBuffers
from utils.distributed.signals import CHECKPOINT_SIGNALS, STOP_SIGNALS
from utils.errors import RetryableError, UserError
from utils.logs.logger import log

# Messages of the system and of torch where processes, threads, file handles or memory run out.
_EXHAUSTED = re.compile(
    r"too many open files( in system)?|cannot allocate memory|can't allocate memory|can't start new thread|"
    r"resource temporarily unavailable|no space left on device|unable to mmap",
    re.IGNORECASE,
)


SourceT = TypeVar("SourceT", bound=ImageSource)


class SharedMemoryLoader(Generic[SourceT]):
    """Loads the batches of one epoch after another, in the sampler's order."""

    def __init__(
        self, dataset: SourceT, sampler: BatchSampler, workers: int = 0, pin: bool = False, skip_bad: bool = False,
        timeout: int = 0,
    ) -> None:  # fmt: skip
        """Allocates the batch buffers; the workers start with the first epoch.

        Args:
            workers: number of processes; 0 decodes in this process.
            pin: yields copies in pinned memory, for the current GPU; a thread makes them while earlier ones are used.
            skip_bad: logs an unreadable image and replaces it by another image of its batch, instead of raising.
            timeout: seconds to wait for the workers; 0 waits forever.
        """
        self.dataset = dataset
        self.sampler = sampler
        self._pinning: ThreadPoolExecutor | None = None
        if pin:  # a new thread starts with the first GPU, and would occupy memory there
            use_gpu = partial(torch.cuda.set_device, torch.cuda.current_device())
            self._pinning = ThreadPoolExecutor(1, "pin", use_gpu)
        self.timeout = timeout if workers else 0
        # Before forking: a worker inherits OpenCV's threads dead and hangs in its next OpenCV call or at its exit.
        cv2.setNumThreads(1)
        try:
            self._buffers = SharedBatchBuffers(dataset, workers, sampler.batch_size, skip_bad)
        except RuntimeError as error:
            raise _as_user_error(error, workers) from None
        self.workers = workers
        self._sigchld_handler: _DeferredSigchldHandler | None = None
        self.skipped = 0  # images skipped so far
        self.label_check = LabelCheck()  # starts with the first epoch; the owner of the loop looks at its error
        self.pending_error: Exception | None = None  # of a batch not yet yielded; `iter_epoch` raises it in its turn
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

    def iter_epoch(self, epoch: int, samples_seen: int = 0) -> Iterator[HostBatch]:
        """Yields the batches of an epoch, without its first `samples_seen` images.

        The memory of an unpinned batch is reused when the batch after the next is requested: use or copy it before.

        Raises UserError for an unreadable image: at once where it is in one of the first LOOKAHEAD batches, else in
        place of its batch; `pending_error` holds the error LOOKAHEAD batches earlier.
        """
        self.sampler.epoch, self.sampler.samples_seen = epoch, samples_seen
        self.pending_error = None
        refs = self._start()
        queue: deque[_Fetched] = deque()
        self._fetch(LOOKAHEAD, refs, queue)
        if self.pending_error:
            self.raise_pending_error()
        while True:
            self._fetch(1, refs, queue)
            if not queue:
                break
            batch, pinned, messages = queue.popleft()
            for message in messages:
                self.skipped += 1
                log.error(f"{message}: skipped ({self.skipped} so far)")  # error: ranks other than 0 log only errors
            yield pinned.result() if pinned else batch
        if self.pending_error:
            self.raise_pending_error()

    def _start(self) -> Iterator[Any]:
        """Returns the slot references of an epoch. Raises UserError where workers cannot start or do not answer."""
        try:
            refs = iter(self._loader)
            if self.workers:
                self._sigchld_handler = _defer_sigchld_errors()
            self.label_check.start()  # after the workers, which are forked: a fork should find no other threads
            return refs
        except (OSError, RuntimeError) as error:
            translated = self._translate(error)
            if translated is error:
                raise
            # torch's half-built iterator would print an error of its own when it is deleted, which happens here.
            hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
            error.__traceback__ = None
            sys.unraisablehook = hook
            raise translated from None

    def raise_pending_error(self) -> NoReturn:
        """Raises the pending error and clears it."""
        error, self.pending_error = self.pending_error, None
        assert error
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame: a cycle that would delay the end of the workers

    def _fetch(self, count: int, refs: Iterator[Any], queue: "deque[_Fetched]") -> None:
        """Appends up to `count` batches to the queue; sets `pending_error` and stops at an error."""
        if self._sigchld_handler and self._sigchld_handler.error:
            self.pending_error = self.pending_error or self._sigchld_handler.error
        try:
            for ref in islice(refs, 0 if self.pending_error else count):
                if isinstance(ref, UserError):
                    self.pending_error = ref
                    break
                batch = self._buffers.batch(ref)
                pinned = self._pinning.submit(_pin, batch) if self._pinning else None
                queue.append(_Fetched(batch, pinned, ref[3]))
        except RuntimeError as error:
            self.pending_error = self._translate(error)

    def _translate(self, error: Exception) -> Exception:
        """Returns the error to raise in place of one from torch's data loader."""
        if "DataLoader timed out" not in str(error):
            return (self._sigchld_handler and self._sigchld_handler.error) or _as_user_error(error, self.workers)
        for worker in multiprocessing.active_children():
            worker.kill()  # a hanging worker ignores SIGTERM, and this process would wait for it at exit
        return RetryableError(
            f"no images have come for {self.timeout} s (config timeout): a loader worker hangs, or waits for its disk"
        )


class _Fetched(NamedTuple):
    """A batch fetched from a worker and not yet yielded."""

    batch: HostBatch  # in its slot
    pinned: Future[HostBatch] | None  # a copy in pinned memory
    messages: list[str]  # of images that are skipped


def _pin(batch: HostBatch) -> HostBatch:
    """Copies what goes to the GPU to pinned memory."""
    return batch._replace(images=batch.images.pin_memory(), labels=batch.labels.pin_memory())


class _DeferredSigchldHandler:
    """Wraps torch's SIGCHLD handler so that it stores its error instead of raising it.

    torch's handler raises in the middle of whatever the process is doing; a step must complete before the run ends.
    """

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler = handler
        self.error: Exception | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.handler(number, frame)
        except RuntimeError as error:
            self.error = error.with_traceback(None)


def _defer_sigchld_errors() -> "_DeferredSigchldHandler | None":
    """Wraps the installed SIGCHLD handler, once, and clears its error. Returns None where there is no handler."""
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and not isinstance(handler, _DeferredSigchldHandler):
        handler = _DeferredSigchldHandler(handler)
        signal.signal(signal.SIGCHLD, handler)
    if not isinstance(handler, _DeferredSigchldHandler):
        return None
    handler.error = None
    return handler


def _as_user_error(error: Exception, workers: int) -> Exception:
    """Returns a UserError for an error that reports exhausted resources, and any other error unchanged."""
    match = _EXHAUSTED.search(str(error))
    if not match:
        return error
    return UserError(
        f"config workers: {workers} loader workers could not be started ({match[0]})",
        fix="lower workers or batch_size, or raise the limits of files and processes (ulimit -n, ulimit -u)",
    )


def leave_signals_to_parent(worker: int) -> None:
    """Initialises a worker so that only a SIGTERM from its training process, or that process's death, ends it.

    Ctrl-C in a terminal and a scheduler's signals reach workers too. The training process handles them: it completes
    its step, writes a checkpoint, then ends its workers.
    """
    signal.set_wakeup_fd(-1)  # of the training process, see blocked.py
    for number in (*STOP_SIGNALS, *CHECKPOINT_SIGNALS):
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        # A worker inherits its parent's connections to other ranks, which would look open as long as it outlives it.
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if hasattr(signal, "sigwaitinfo"):  # it says who sent the signal; missing on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=exit_on_parent_sigterm, args=(os.getppid(),), daemon=True).start()


def exit_on_parent_sigterm(parent_pid: int) -> None:
    """Waits for a SIGTERM from the parent, then ends this process. Ignores a SIGTERM from any other process."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent_pid:
        pass
    os._exit(0)


def identity_collate(batch: Any) -> Any:
    """Returns the batch unchanged: it is a slot reference, so there is nothing to collate."""
    return batch
