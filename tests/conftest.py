"""Fixtures and helpers for several test files: golden vectors, a tiny dataset, a copy of the project for commands."""

import importlib
import itertools
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

from tests.helpers.commands import DEMO, run_command
from tests.helpers.faces import write_data
from tests.helpers.paths import ROOT
from utils.datasets.recordio.reader import IndexedRecordReader
from utils.errors import run_cli
from utils.logs.logger import log

_DEMO_DATA = ["--people", 6, "--shots", 8, "--test-people", 8, "--pairs", 40]
SOURCES = ["config", "backbones", "utils", "eval", "NAS", "data", "train.py", "train.sh", "train_kd.py", "train_kd.sh"]


_SLOW_FILES = [
    "test_kills", "test_machines", "test_faults", "test_fuzz", "test_entry_points", "test_ijb_command", "test_resume",
    "test_eval_commands", "test_distill_commands", "test_search_command", "test_published_configs", "test_nas",
    "test_engine", "test_scoring", "test_backbones", "test_teacher_cache", "test_optimizers", "test_bad_steps",
    "test_student", "test_doctor", "test_demo_ijb", "test_dataset", "test_safe_pickle",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests so that the slowest files come first and parallel workers finish at about the same time."""
    position = {name: i for i, name in enumerate(_SLOW_FILES)}
    items.sort(key=lambda item: position.get(item.path.stem, len(position)))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny dataset, shared by all tests: do not change it."""
    return write_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def damaged_data(tiny_data, tmp_path):
    """Copy of the tiny dataset in which two records are not readable images."""
    data = Path(shutil.copytree(tiny_data, tmp_path / "damaged"))
    reader = IndexedRecordReader(data / "train.rec", data / "train.idx")
    offsets = dict(map(int, line.split("\t")) for line in (data / "train.idx").read_text().splitlines())
    content = bytearray((data / "train.rec").read_bytes())
    for key in (5, 22):
        size = len(reader.read(key))
        content[offsets[key] + 8 + 40 : offsets[key] + 8 + size] = bytes(size - 40)
    (data / "train.rec").write_bytes(content)
    return data


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy of the project without config/config.py, at a path with a space."""
    folder = tmp_path_factory.mktemp("a copy") / "Pocket Net"
    for name in SOURCES:
        generated = ("__pycache__", "faces_demo*", "faces_emore*", "ijb_demo*", "*.bin", "*.rec")
        ignored = shutil.ignore_patterns(*generated, *(["config.py"] if name == "config" else []))
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def demo(project) -> Path:
    """The project with a few synthetic faces, trained for two epochs by train.sh."""
    generated = run_command(project, sys.executable, "data/make_demo_faces.py", *_DEMO_DATA)
    assert generated.returncode == 0, generated.stderr
    trained = run_command(project, "./train.sh", *DEMO, "num_epoch=2", "eval_step=4")
    assert trained.returncode == 0, trained.stderr
    (project / "train_stdout.txt").write_text(trained.stdout)
    return project


@pytest.fixture
def empty_figures(monkeypatch):
    """Saves an empty figure in place of every figure: drawing takes half a second, and other tests check it."""
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda _, *args, **options: save(Figure(), *args, **options))


@pytest.fixture
def run_main(demo, monkeypatch, capfd, empty_figures) -> Iterator[Callable[..., CompletedProcess[str]]]:
    """Runs an entry script's main in this process, in the demo project; figures are saved empty."""
    monkeypatch.chdir(demo)
    monkeypatch.setattr("config.paths.PROJECT", Path.cwd())
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NPROC", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state = log.handlers[:], log.propagate, log.level

    def run(script: str, *arguments: object) -> CompletedProcess[str]:
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            run_cli(module.main)
        return CompletedProcess(sys.argv, int(str(end.value.code)), *capfd.readouterr())

    yield run
    for handler in log.handlers:
        handler.close()
    log.handlers, log.propagate, log.level = state


@pytest.fixture
def slow_clock(monkeypatch):
    """Makes the clock of the progress bar advance by 25 seconds on every reading."""
    seconds = itertools.count(0, 25)
    monkeypatch.setattr("utils.logs.progress_bar.time", SimpleNamespace(monotonic=lambda: next(seconds)))


@pytest.fixture
def log_capture(caplog, monkeypatch):
    """Captures the log: caplog with the project's logger at level INFO."""
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, "pocketnet")
    return caplog
