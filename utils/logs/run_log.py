"""What a run says: the published log lines on the screen and in a file, TensorBoard, a progress bar."""

import hashlib
import logging
import os
import sys
import time
from io import TextIOWrapper
from pathlib import Path
from typing import Self

from easydict import EasyDict
from tqdm import tqdm

from utils.errors import UserError, ignore_broken_pipe, one_line
from utils.filesystem import open_no_follow
from utils.logs.tensorboard import Board

log = logging.getLogger("pocketnet")
OUTPUT = Path(__file__).resolve().parents[2] / "output"


class _BarSafeHandler(logging.StreamHandler):
    """Writes a line above the progress bar that may be on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        with ignore_broken_pipe(self.stream):
            tqdm.write(self.format(record), file=self.stream)


class _OneLineFormatter(logging.Formatter):
    """Keeps a message in one line: names of files in it may have control characters."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        return one_line(super().formatMessage(record))


class _LogFile(logging.FileHandler):
    """A file whose lines are on the screen as well: that it cannot be written is said once, and no error."""

    told = False

    def _open(self) -> TextIOWrapper:
        """Open the end of the file; a symbolic link is refused."""
        descriptor = open_no_follow(Path(self.baseFilename), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return open(descriptor, "a", encoding=self.encoding, errors=self.errors)  # noqa: PTH123 (a descriptor)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.told:
            self.told = True
            tqdm.write(f"{self.baseFilename}: could not be written ({error.strerror}); the run goes on", sys.stderr)


def init_logging(file: Path | None, prefix: str = "") -> None:
    """Sends the project's lines to the screen and to the end of the file. None: a process that has nothing to say.

    Raises UserError where the file cannot be opened.
    """
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.INFO if file else logging.ERROR)
    handlers: list[logging.Handler] = [_BarSafeHandler(sys.stdout)]
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            handlers.append(_LogFile(file, encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            raise UserError(f"{file}: cannot be written ({error.strerror})") from None
    for handler in handlers:
        handler.setFormatter(_OneLineFormatter(f"{prefix}%(asctime)s-%(message)s"))
        log.addHandler(handler)


def curves_folder(config: EasyDict) -> Path:
    """Where the TensorBoard files of the run in config.output are, for no two outputs the same.

    Of the project's output/A/run that is {log_dir}/A/run; of any other …/A/run it is {log_dir}/A/run-{hash}, the hash
    that of its absolute path.
    """
    output = Path(config.output).resolve()
    if OUTPUT in output.parents:
        return Path(config.log_dir, output.relative_to(OUTPUT))
    digest = hashlib.sha256(os.fsencode(output)).hexdigest()[:8]
    return Path(config.log_dir, output.parent.name, f"{output.name}-{digest}")


class RunLog:
    """The voice of a training run. Silent on every process but the main one."""

    def __init__(self, config: EasyDict, step: int, total_steps: int, images_a_step: int, is_main: bool) -> None:
        """step: where the run begins. What TensorBoard has of later steps is of a run that was cut off: it goes."""
        self.total_steps = total_steps
        self.images_a_step = images_a_step
        self._board = Board(curves_folder(config), step + 1, is_main)
        self._bar = tqdm(initial=step, total=total_steps, unit="step", disable=not (is_main and sys.stderr.isatty()))
        self._started = self._last_line = time.perf_counter()
        self._reported_step = self._last_line_step = step

    def resume_clock(self, step: int) -> None:
        """Starts the measured time anew, so that verification and saving do not count as slow training."""
        self._started, self._reported_step = time.perf_counter(), step

    def tick(self) -> None:
        """One more step is done."""
        self._bar.update()

    def is_due(self, step: int) -> bool:
        """Whether the next line is to come now, for the log not to be silent for a minute.

        Of several processes each asks the others for it, so it comes two steps later: that is reckoned in.
        """
        silent = time.perf_counter() - self._last_line
        return silent * (1 + 2 / max(1, step - self._last_line_step)) >= 60

    def report(self, step: int, epoch: int, losses: dict[str, float], lr: float) -> None:
        """The published line: speed in images a second over all processes, mean losses since the last line, position
        and the hours still to go; in minutes as well where they are few."""
        seconds = (time.perf_counter() - self._started) / max(1, step - self._reported_step)  # a step
        speed = self.images_a_step / seconds
        hours = (self.total_steps - step) * seconds / 3600
        minutes = f" ({hours * 60:.1f} minutes)" if 0.05 <= hours * 60 < 6 else ""
        # Four decimals as published; six of the MSE, which is below 4 / embedding_size for unit vectors.
        named = "   ".join(f"{name} {value:.{6 if name == 'MSE' else 4}f}" for name, value in losses.items())
        log.info(
            f"Speed {speed:.2f} samples/sec   {named}   Epoch: {epoch}   "
            f"Global Step: {step}   Required: {hours:.2f} hours{minutes}"
        )
        self._scalars("train", {**losses, "lr": lr, "speed": speed}, step)
        self.resume_clock(step)
        self._last_line, self._last_line_step = self._started, step

    def verified(self, step: int, accuracies: dict[str, float]) -> None:
        """Keeps the accuracy of each verification set in TensorBoard."""
        self._scalars("verification", accuracies, step)

    def _scalars(self, group: str, values: dict[str, float], step: int) -> None:
        self._board.add({f"{group}/{name}": value for name, value in values.items()}, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the bar and the TensorBoard file."""
        self._bar.close()
        self._board.close()
