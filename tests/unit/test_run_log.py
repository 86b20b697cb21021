"""The log of a run whose output is a file, and the folder of its curves."""

import io
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config.base import Config
from tests.helpers.training import small_config, small_task, spawn_ranks, train_small
from utils.datasets.training_data import load_training_data
from utils.logs import progress_bar as progress
from utils.logs import run_log
from utils.logs.logger import log
from utils.logs.progress_bar import ProgressReporter
from utils.logs.run_log import OUTPUT_FOLDER, RunLog, tensorboard_folder
from utils.training.arcface_task import ArcFaceTask
from utils.training.engine import train

RARE = ["num_epoch=2", "log_step=1000"]  # five steps an epoch


class SlowTask(ArcFaceTask):
    """Each step advances a fake clock by `seconds`."""

    now, seconds = 0.0, 25.0

    def __call__(self, batch):
        SlowTask.now += SlowTask.seconds
        return super().__call__(batch)


def reported_steps(text: str) -> list[int]:
    return [int(step) for step in re.findall(r"Loss [\d.]+   Epoch: \d   Global Step: (\d+)   Required", text)]


@pytest.fixture
def clock(monkeypatch):
    """The clock of the log, which the task moves."""
    monkeypatch.setattr(SlowTask, "now", 0.0)
    monkeypatch.setattr(run_log, "time", SimpleNamespace(perf_counter=lambda: SlowTask.now))


def test_an_epochs_end_has_a_line_however_rare_lines_are(tmp_path, tiny_data, log_capture):
    train_small(small_config(tmp_path, tiny_data, *RARE))
    assert reported_steps(log_capture.text) == [5, 10]


def test_slow_steps_have_a_line_every_minute(tmp_path, tiny_data, log_capture, clock):
    train_small(small_config(tmp_path, tiny_data, *RARE), task_type=SlowTask)
    assert reported_steps(log_capture.text) == [2, 4, 5, 7, 9, 10]  # every 50 s, and the epochs' ends


def _train_with_one_slow_clock(world, folder, data):
    """The clock of the first process moves fast; that of the second hardly does."""
    run_log.time = SimpleNamespace(perf_counter=lambda: SlowTask.now)
    SlowTask.seconds = 25.0 if world.is_main else 0.001
    steps = []
    report = RunLog.report
    RunLog.report = lambda self, step, *rest: (steps.append(step), report(self, step, *rest))
    config = small_config(folder, data, "num_epoch=2", "log_step=1000", "batch_size=2")
    loader, num_classes = load_training_data(config, world)
    train(small_task(config, num_classes, world, task_type=SlowTask), loader, config, world)
    torch.save(steps, folder / f"{world.rank}.pt")


def test_processes_write_the_line_of_a_minute_at_the_same_step(tmp_path, tiny_data):
    """The losses are means over all ranks: each must take part, whatever its clock shows."""
    spawn_ranks(_train_with_one_slow_clock, tmp_path, tiny_data)
    steps = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert steps[0] == steps[1] and steps[0][:2] == [3, 6] and {10, 20} <= set(steps[0])


@pytest.mark.parametrize(
    ("left", "written"),
    [(0, "0.00 hours"), (1000, r"0.01 hours \(0.6 minutes\)"), (10_000, "0.10 hours"), (100_000, "1.00 hours")],
)
def test_few_hours_are_minutes_as_well(tmp_path, log_capture, monkeypatch, left, written):
    times = iter([0.0])  # then a thousand steps take 36 s
    monkeypatch.setattr(run_log, "time", SimpleNamespace(perf_counter=lambda: next(times, 36.0)))
    config = Config(log_dir=str(tmp_path / "logs"), output=str(tmp_path / "out"))
    with RunLog(config, 0, 1000 + left, 8, is_main=True) as voice:
        voice.report(1000, 0, {"Loss": 1.0}, 0.1)
    assert re.search(rf"Global Step: 1000   Required: {written}$", log_capture.text, re.MULTILINE), log_capture.text


def test_saved_is_logged_after_the_files_are_written(tmp_path, tiny_data, monkeypatch):
    there = []

    class Look(logging.Handler):
        def emit(self, record):
            if match := re.match(r"Saved step (\d+) in (.*)", record.getMessage()):
                there.append([Path(match[2], f"{match[1]}{part}.pth").is_file() for part in ("backbone", "header")])

    look = Look()
    monkeypatch.setattr(log, "level", logging.INFO)
    log.addHandler(look)
    try:
        train_small(small_config(tmp_path, tiny_data, "num_epoch=2", "save_initial=1"))
    finally:
        log.removeHandler(look)
    assert there == [[True, True]] * 3


def test_a_run_without_a_checkpoint_logs_that_it_starts_over(tmp_path, tiny_data, log_capture, monkeypatch):
    begins = "starts from scratch"
    config = small_config(tmp_path, tiny_data, "max_steps=1")
    train_small(config)
    assert log_capture.text.count(begins) == 1
    train_small(small_config(tmp_path, tiny_data, "max_steps=2"))  # which resumes
    train_small(small_config(tmp_path, tiny_data, "max_steps=1", "resume=0"))  # as --resume 0 demands
    assert log_capture.text.count(begins) == 1
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    train_small(small_config(tmp_path / "killed early", tiny_data, "max_steps=1", "resume=0"))
    assert log_capture.text.count(begins) == 2


# ------------------------------------------------------------------------------------------------------ TensorBoard


def config_of(output, logs="logs") -> Config:
    return Config(output=str(output), log_dir=str(logs))


def test_folders_of_curves_are_readable_and_never_shared(tmp_path):
    assert tensorboard_folder(config_of(OUTPUT_FOLDER / "demo")) == Path("logs/demo")
    assert tensorboard_folder(config_of(OUTPUT_FOLDER / "A" / "run")) == Path("logs/A/run")
    outputs = [
        OUTPUT_FOLDER / "run", OUTPUT_FOLDER / "A" / "run", OUTPUT_FOLDER / "B" / "run", OUTPUT_FOLDER,
        OUTPUT_FOLDER.parent / "A" / "run", tmp_path / "A" / "run", tmp_path / "B" / "run",
        tmp_path / "x" / "A" / "run", Path("/run"), Path("/"),
    ]  # fmt: skip
    folders = [tensorboard_folder(config_of(output)) for output in outputs]
    assert len(set(folders)) == len(outputs)
    assert all(folder.parts[0] == "logs" and ".." not in folder.parts for folder in folders)
    assert re.fullmatch(r"logs/A/run-[0-9a-f]{8}", str(tensorboard_folder(config_of(tmp_path / "A" / "run"))))
    there = tmp_path / "B" / ".." / "A" / "run"
    assert tensorboard_folder(config_of(there)) == tensorboard_folder(config_of(tmp_path / "A" / "run"))


def test_runs_whose_outputs_end_alike_keep_their_curves(tmp_path, log_capture):
    logs = tmp_path / "logs"
    for output, loss in ((tmp_path / "A" / "run", 1.0), (tmp_path / "B" / "run", 2.0)):
        with RunLog(config_of(output, logs), 0, 10, 8, is_main=True) as voice:
            voice.report(1, 0, {"Loss": loss}, 0.1)
    curves = [EventAccumulator(str(folder)).Reload().Scalars("train/Loss") for folder in sorted(logs.glob("*/*"))]
    assert [[point.value for point in curve] for curve in curves] == [[1.0], [2.0]]


# ------------------------------------------------------------------------------------------------- long pieces of work


def test_long_work_logs_its_progress_every_minute(log_capture, monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with (
        ProgressReporter(100, "lfw 5", "images") as shown,
        ProgressReporter(100, "lfw 5", "images", is_main=False) as silent,
    ):
        for _ in range(10):
            now += 25
            shown.update(10)
            silent.update(10)
    lines = [record.getMessage() for record in log_capture.records]
    assert lines == [
        "lfw 5: 30 of 100 images, 2.9 minutes to go",
        "lfw 5: 60 of 100 images, 1.7 minutes to go",
        "lfw 5: 90 of 100 images, 0.4 minutes to go",
    ]
    assert not sys.stderr.getvalue()


def test_on_a_terminal_long_work_has_a_bar_and_no_lines(log_capture, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    now = 0.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(sys, "stderr", Terminal())
    with ProgressReporter(2, "lfw 5", "images") as shown:
        now = 100.0
        shown.update()
    assert not log_capture.records and "lfw 5" in sys.stderr.getvalue()
