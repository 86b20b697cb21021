"""Errors of the user: problem and fix, apart and in one text, also from another process."""

import pickle

import numpy as np
import pytest
import torch

from backbones.genotypes import GenotypeError
from config import ConfigError
from utils.checkpoints.state_dicts import CheckpointError
from utils.datasets.recordio.index import RecordError
from utils.datasets.sampler import ListSampler
from utils.datasets.shared_loader import SharedMemoryLoader
from utils.errors import RetryableError, UserError, out_of_memory, quantity, run_cli

KINDS = [UserError, RetryableError, ConfigError, CheckpointError, RecordError, GenotypeError]


def test_problem_and_fix_survive_another_process():
    parts = ("train.rec: is empty; really", "copy it again; or make it")
    copies = [pickle.loads(pickle.dumps(kind(*parts))) for kind in KINDS]
    assert [type(copy) for copy in copies] == KINDS
    for error in (*copies, UserError(parts[0], fix=parts[1])):
        assert (error.problem, error.fix) == parts
        assert str(error) == "train.rec: is empty; really; copy it again; or make it"


def test_a_text_without_a_fix_ends_without_a_separator():
    assert str(UserError("the set is empty")) == "the set is empty"
    assert str(ConfigError("config lr:\nwrong", fix="set it")) == "config lr: wrong; set it"


class Broken:
    """Data whose every image is damaged, in a way that has a fix."""

    def read_into(self, indices, images, labels):
        raise RecordError("train.rec: is cut short", fix="copy it again")


def test_a_loader_worker_passes_the_fix_on():
    loader = SharedMemoryLoader(Broken(), ListSampler(np.array([4]), 1), workers=1)
    with pytest.raises(RecordError) as raised:
        list(loader.iter_epoch(0))
    assert (raised.value.problem, raised.value.fix) == ("train.rec: is cut short", "copy it again")


def test_a_count_has_its_noun():
    assert [quantity(n, "photo") for n in (0, 1, 2000)] == ["0 photos", "1 photo", "2,000 photos"]
    assert [quantity(n, "person", "people") for n in (1, 2)] == ["1 person", "2 people"]


def test_a_lack_of_memory_has_a_fix():
    error = out_of_memory(RuntimeError("CUDA out of memory.\nTried to allocate"))
    assert error.problem == "out of memory (CUDA out of memory.)" and error.fix.startswith("lower batch_size")


def run_and_report(capsys, error) -> str:
    def fail():
        raise error

    with pytest.raises(SystemExit) as end:
        run_cli(fail)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_a_failure_of_the_gpu_is_one_line(capsys, monkeypatch):
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    memory = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")
    assert run_and_report(capsys, memory).startswith("error: out of memory (CUDA out of memory. Tried to allocate 2.00")
    handle = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert "error: out of memory" in run_and_report(capsys, handle)
    label = RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")
    line = run_and_report(capsys, label)
    assert line.startswith("error: an operation on the GPU failed (CUDA error: device-side assert triggered); a label")
    assert line.count("\n") == 1 and "CUDA_LAUNCH_BLOCKING=1 shows where" in line
    assert "; run it again" in run_and_report(capsys, RuntimeError("CUDA error: unspecified launch failure"))
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    with pytest.raises(RuntimeError, match="device-side assert"):  # with its traceback
        run_cli(lambda: (_ for _ in ()).throw(label))
