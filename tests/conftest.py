"""What several test files need: golden vectors, a tiny data set, a copy of the project to run as a person does."""

import itertools
import logging
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.commands import DEMO, run_command
from tests.helpers.faces import write_data
from tests.helpers.paths import ROOT
from utils.datasets.recordio.reader import IndexedRecordReader
from utils.logs.run_log import log

_DEMO_DATA = ["--people", 6, "--shots", 8, "--test-people", 8, "--pairs", 40]
SOURCES = ["config", "backbones", "utils", "eval", "NAS", "data", "train.py", "train.sh", "train_kd.py", "train_kd.sh"]


_LONG = ["test_kills", "test_machines", "test_faults", "test_fuzz", "test_resume", "test_distill_commands", "test_nas"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no processor waits for the last of them alone."""
    items.sort(key=lambda item: _LONG.index(item.path.stem) if item.path.stem in _LONG else len(_LONG))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny data set; not to be changed."""
    return write_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def damaged_data(tiny_data, tmp_path):
    """The tiny data, with two images that are none."""
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
    """A copy of the project as it comes, without config/config.py, at a path with a space."""
    folder = tmp_path_factory.mktemp("a copy") / "Pocket Net"
    for name in SOURCES:
        made = ("__pycache__", "faces_demo*", "faces_emore*", "ijb_demo*", "*.bin", "*.rec")
        ignored = shutil.ignore_patterns(*made, *(["config.py"] if name == "config" else []))
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def demo(project) -> Path:
    """The project with a few demo faces, trained for two epochs by train.sh."""
    made = run_command(project, sys.executable, "data/make_demo_faces.py", *_DEMO_DATA)
    assert made.returncode == 0, made.stderr
    trained = run_command(project, "./train.sh", *DEMO, "num_epoch=2", "eval_step=4")
    assert trained.returncode == 0, trained.stderr
    (project / "said").write_text(trained.stdout)
    return project


@pytest.fixture
def slow_clock(monkeypatch):
    """Between any two looks at the clock of a progress, 25 seconds pass."""
    seconds = itertools.count(0, 25)
    monkeypatch.setattr("utils.logs.progress_bar.time", SimpleNamespace(monotonic=lambda: next(seconds)))


@pytest.fixture
def said(caplog, monkeypatch):
    """What is logged."""
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, "pocketnet")
    return caplog
