"""Log of a run: the published log lines on the screen and in a file, TensorBoard, a progress bar."""

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Self

from tqdm import tqdm

from config.base import Config
from utils.logs.logger import log
from utils.logs.tensorboard import TensorBoardWriter

OUTPUT_FOLDER = Path(__file__).resolve().parents[2] / "output"


def tensorboard_folder(config: Config) -> Path:
    """Returns the folder for the TensorBoard files of a run, different for every config.output.

    For output/A/run in the project it is {log_dir}/A/run. For any other …/A/run it is {log_dir}/A/run-{hash}, with a
    hash of the absolute path.
    """
    output = Path(config.output).resolve()
    if OUTPUT_FOLDER in output.parents:
        return Path(config.log_dir, output.relative_to(OUTPUT_FOLDER))
    digest = hashlib.sha256(os.fsencode(output)).hexdigest()[:8]
    return Path(config.log_dir, output.parent.name, f"{output.name}-{digest}")


class RunLog:
    """Log lines, TensorBoard points and progress bar of a training run. Does nothing on ranks other than 0."""

    def __init__(self, config: Config, step: int, total_steps: int, images_per_step: int, is_main: bool) -> None:
        """Opens the progress bar and the TensorBoard file.

        step: the step from which the run starts or resumes. TensorBoard hides points of later steps, which come from
        an interrupted run. images_per_step: images per step over all ranks.
        """
        self.total_steps = total_steps
        self.images_per_step = images_per_step
        self._board = TensorBoardWriter(tensorboard_folder(config), step + 1, is_main)
        self._bar = tqdm(initial=step, total=total_steps, unit="step", disable=not (is_main and sys.stderr.isatty()))
        self._started = self._last_line = time.perf_counter()
        self._reported_step = self._last_line_step = step

    def restart_clock(self, step: int) -> None:
        """Restarts the speed measurement at `step`, so that verification and saving do not count as training."""
        self._started, self._reported_step = time.perf_counter(), step

    def tick(self) -> None:
        """Advances the progress bar by one step."""
        self._bar.update()

    def is_due(self, step: int) -> bool:
        """Returns whether to request a log line now, so that the log is never silent for more than a minute.

        Ranks agree on a line by an all-reduce, so it is written two steps after the request. The estimate counts them.
        """
        elapsed = time.perf_counter() - self._last_line
        return elapsed * (1 + 2 / max(1, step - self._last_line_step)) >= 60

    def report(self, step: int, epoch: int, losses: dict[str, float], lr: float) -> None:
        """Writes the published log line, and its values to TensorBoard.

        The line has the speed in images per second over all ranks, the mean losses since the last line, epoch, step,
        and the hours left, also in minutes if there are fewer than six.
        """
        seconds = (time.perf_counter() - self._started) / max(1, step - self._reported_step)  # per step
        speed = self.images_per_step / seconds
        hours = (self.total_steps - step) * seconds / 3600
        minutes = f" ({hours * 60:.1f} minutes)" if 0.05 <= hours * 60 < 6 else ""
        # Four decimals as published. The MSE of unit vectors is at most 4 / embedding_size: six decimals.
        means = "   ".join(f"{name} {value:.{6 if name == 'MSE' else 4}f}" for name, value in losses.items())
        log.info(
            f"Speed {speed:.2f} samples/sec   {means}   Epoch: {epoch}   "
            f"Global Step: {step}   Required: {hours:.2f} hours{minutes}"
        )
        self._write_scalars("train", {**losses, "lr": lr, "speed": speed}, step)
        self.restart_clock(step)
        self._last_line, self._last_line_step = self._started, step

    def log_accuracies(self, step: int, accuracies: dict[str, float]) -> None:
        """Writes the accuracy of each verification set to TensorBoard."""
        self._write_scalars("verification", accuracies, step)

    def _write_scalars(self, group: str, values: dict[str, float], step: int) -> None:
        self._board.add({f"{group}/{name}": value for name, value in values.items()}, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the progress bar and the TensorBoard file."""
        self._bar.close()
        self._board.close()
