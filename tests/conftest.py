"""Fixtures and helpers for several test files: golden vectors, a tiny dataset, a copy of the project for commands."""

import itertools
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from tests.helpers import fork_server
from utils.datasets.recordio.reader import IndexedRecordReader
from utils.datasets.recordio.record_format import Header, IndexedRecordWriter, pack
from utils.logs.run_log import log

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
SHARED = ROOT.parent / "shared"
_DEMO_DATA = ["--people", 6, "--shots", 8, "--test-people", 8, "--pairs", 40]
SMALL = ["channel=4", "n_layers=4", "embedding_size=32", "batch_size=8", "workers=1", "log_step=3"]
DEMO = ["--config", "config/config_demo.py", *SMALL]
SOURCES = ["config", "backbones", "utils", "eval", "NAS", "data", "train.py", "train.sh", "train_kd.py", "train_kd.sh"]

# Published style: fields set one by one on an EasyDict, genotypes as strings, a branch on the dataset, lr_func.
PUBLISHED_CONFIG = """
from easydict import EasyDict as edict

config = edict()
config.dataset = "emoreIresNet"
config.embedding_size = 256
config.momentum = 0.9
config.weight_decay = 5e-4
config.batch_size = 128
config.lr = 0.1
config.output = "output/PocketNetM256"
config.global_step = 0
config.s = 64.0
config.m = 0.5
config.test_output = "output/test"
config.genotypes = dict({
    "softmax_cifar10": "Genotype(normal=[[('dw_conv_7x7', 0), ('dw_conv_3x3', 1)]], normal_concat=range(2, 3), "
                       "reduce=[[('max_pool_3x3', 0), ('dw_conv_7x7', 1)]], reduce_concat=range(2, 3))",
    "softmax_casia": "Genotype(normal=[[('dw_conv_3x3', 0), ('dw_conv_1x1', 1)]], normal_concat=range(2, 3), "
                     "reduce=[[('dw_conv_3x3', 1), ('dw_conv_7x7', 0)]], reduce_concat=range(2, 3))",
})
config.teacher_pth = "output/teacher"
config.teacher_global_step = 295672
config.teacher_network = "resnet100"
config.student_pth = ""
config.student_global_step = 0
config.net_name = "PocketNetM-256"
config.channel = 32
config.n_layers = 9
config.w = 100
if config.dataset == "emoreIresNet":
    config.rec = "data/faces_emore"
    config.num_classes = 85742
    config.num_image = 5822653
    config.num_epoch = 26
    config.warmup_epoch = -1
    config.val_targets = ["lfw", "cfp_fp"]
    config.eval_step = 5686

    def lr_step_func(epoch):
        return ((epoch + 1) / (4 + 1)) ** 2 if epoch < config.warmup_epoch else 0.1 ** len(
            [m for m in [8, 14, 20, 25] if m - 1 <= epoch])

    config.lr_func = lr_step_func
"""

_LONG = ["test_kills", "test_machines", "test_faults", "test_fuzz", "test_resume", "test_distill_commands", "test_nas"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the longest files first, so that parallel workers finish at about the same time."""
    items.sort(key=lambda item: _LONG.index(item.path.stem) if item.path.stem in _LONG else len(_LONG))


def golden_state(shapes: dict[str, list[int]], seed: int = 11) -> dict[str, torch.Tensor]:
    """Returns the state dict of the golden vectors: float32 values drawn from an RNG seeded by the key."""
    state = {}
    for key, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
        if key.endswith("num_batches_tracked"):
            values = np.zeros(shape, np.int64)
        elif key.endswith("running_var"):
            values = 0.5 + rng.random(shape)
        elif key.endswith("running_mean"):
            values = 0.1 * rng.standard_normal(shape)
        elif len(shape) == 1:
            values = 0.5 + 0.5 * rng.random(shape) if key.endswith("weight") else 0.1 * rng.standard_normal(shape)
        else:
            values = rng.standard_normal(shape) * np.sqrt(0.6 / np.prod(shape[1:]))
        state[key] = torch.from_numpy(np.asarray(values, np.int64 if values.dtype == np.int64 else np.float32))
    return state


def golden_images(seed: int, n: int) -> torch.Tensor:
    """Returns the inputs (n, 3, 112, 112) of the golden vectors."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (n, 3, 112, 112)).astype(np.float32))


def face(identity: int, rng: np.random.Generator) -> np.ndarray:
    """Draws a 112×112 RGB image whose identity a network can learn: coarse blocks by identity, plus noise."""
    blocks = np.random.default_rng([7, identity]).integers(40, 216, (7, 7, 3))
    image = np.kron(blocks, np.ones((16, 16, 1))) + rng.normal(0, 20, (112, 112, 3))
    return image.clip(0, 255).astype(np.uint8)


def encode(image: np.ndarray, kind: str = ".jpg") -> bytes:
    """Encodes an RGB image as the bytes of an image file."""
    return cv2.imencode(kind, image[:, :, ::-1])[1].tobytes()


def write_data(folder: Path, identities: int = 4, shots: int = 10, pairs: int = 20, seed: int = 3) -> Path:
    """Writes a dataset in the MS1MV2 layout (train.rec, train.idx, property) and a verification set `tiny.bin`."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    n = identities * shots
    with IndexedRecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        writer.write(0, pack(Header(2, np.array([n + 1, n + 1 + identities]), 0, 0), b""))
        for i in range(n):
            label = i // shots
            header = Header(0, float(label), i, 0) if i % 2 else Header(2, np.array([label, 0]), i, 0)
            writer.write(i + 1, pack(header, encode(face(label, rng), ".png" if i % 3 == 0 else ".jpg")))
        for label in range(identities):
            ends = np.array([1 + label * shots, 1 + (label + 1) * shots])
            writer.write(n + 1 + label, pack(Header(2, ends, 0, 0), b""))
    (folder / "property").write_text(f"{identities},112,112")
    same = [bool(i % 2) for i in range(pairs)]
    images = [encode(face(100 + (i if s else i + j * 50), rng)) for i, s in enumerate(same) for j in (0, 1)]
    (folder / "tiny.bin").write_bytes(pickle.dumps((images, same)))
    return folder


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


def run_command(folder: Path, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in the folder as a user would, with this interpreter, for at most two minutes."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("NPROC", "NNODES", "PYTHONPATH")}
    full_environment = inherited | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | environment
    parts = [str(part) for part in command]
    if parts[0] == sys.executable and (parts[1] == "-m" or parts[1].endswith(".py")) and not environment:
        return fork_server.run(parts[1:], folder, full_environment)
    return subprocess.run(
        parts,
        cwd=folder,
        env=full_environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="session")
def demo(project) -> Path:
    """The project with a few synthetic faces, trained for two epochs by train.sh."""
    generated = run_command(project, sys.executable, "data/make_demo_faces.py", *_DEMO_DATA)
    assert generated.returncode == 0, generated.stderr
    trained = run_command(project, "./train.sh", *DEMO, "num_epoch=2", "eval_step=4")
    assert trained.returncode == 0, trained.stderr
    (project / "said").write_text(trained.stdout)
    return project


def copy_run(folder: Path, to: Path) -> Path:
    """Copies a run's folder, and changes the output of its config.json to the copy."""
    shutil.copytree(folder, to)
    saved = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(saved | {"output": str(to)}))
    return to


def write_overflowing(path: Path, to: Path) -> None:
    """Writes finite weights whose embeddings are not finite."""
    weights = torch.load(path, weights_only=True)
    for value in weights.values():
        if value.is_floating_point():
            value.fill_(3e38)
    torch.save(weights, to)


def add_bad_checkpoints(folder: Path) -> Path:
    """Adds a truncated checkpoint, one of another network and an overflowing one (steps 3, 4, 5) to that of step 6."""
    (folder / "3backbone.pth").write_bytes((folder / "6backbone.pth").read_bytes()[:5000])
    torch.save({"other.weight": torch.zeros(3)}, folder / "4backbone.pth")
    write_overflowing(folder / "6backbone.pth", folder / "5backbone.pth")
    return folder


def bad_checkpoints_error(total: int) -> str:
    """Returns a pattern for the one-line error that names them."""
    return (
        rf"error: 3 of {total} checkpoints could not be scored: \S*3backbone\.pth: not a readable .*; "
        r"\S*4backbone\.pth: is of another network: it has other\.weight .*; \S*5backbone\.pth: .*not finite.*\n"
    )


@pytest.fixture
def slow_clock(monkeypatch):
    """Makes the clock of the progress bar advance by 25 seconds on every reading."""
    seconds = itertools.count(0, 25)
    monkeypatch.setattr("utils.logs.progress_bar.time", SimpleNamespace(monotonic=lambda: next(seconds)))


@pytest.fixture
def said(caplog, monkeypatch):
    """Captures the log: caplog with the project's logger at level INFO."""
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, "pocketnet")
    return caplog
