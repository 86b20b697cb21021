"""Errors of the user: problem and fix, apart and in one text, also from another process."""

import pickle

import numpy as np
import pytest

from backbones.genotypes import GenotypeError
from config import ConfigError
from utils.checkpoints.state_dicts import CheckpointError
from utils.datasets.recordio.index import RecordError
from utils.datasets.sampler import ListSampler
from utils.datasets.shared_loader import SharedMemoryLoader
from utils.errors import RetryableError, UserError, out_of_memory, quantity

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
