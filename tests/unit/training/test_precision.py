"""Where TF32 is allowed, read back from torch's setting on any machine."""

import sys

import pytest
import torch
from torch import nn

from tests.helpers.commands import run_command
from tests.helpers.paths import ROOT
from tests.helpers.training import CPU, small_config, small_task
from utils.distillation.teacher import NetworkTeacher
from utils.distributed.precision import allow_tf32, flushes_denormals, tf32_of
from utils.distributed.process_group import autocast, init_distributed
from utils.training.optimizer_step import OptimizerStep
from utils.training.task import Batch


def tf32_allowed() -> bool:
    return torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def default():
    yield
    allow_tf32(True)


class Recorder(nn.Module):
    """Records whether TF32 is allowed in its forward pass, and in its backward pass."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))
        self.forwards, self.backwards = [], []
        self.weight.register_hook(lambda _: self.backwards.append(tf32_allowed()))

    def forward(self, images):
        self.forwards.append(tf32_allowed())
        return images.mean((1, 2, 3))[:, None] * self.weight


def test_commands_compute_in_float32_unless_a_block_allows_tf32(recwarn):
    with init_distributed("cpu"):
        assert not tf32_allowed()
        for precision, allowed in (("fp32", False), ("tf32", True), ("bf16", False), ("fp16", False)):
            with autocast(CPU, precision):
                assert tf32_allowed() == allowed
                with autocast(CPU, "fp32"):
                    assert not tf32_allowed()
                assert tf32_allowed() == allowed
            assert not tf32_allowed()
    assert not torch.backends.cuda.matmul.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
    assert not recwarn


def test_an_error_in_a_block_restores_the_setting():
    allow_tf32(False)
    with pytest.raises(ValueError), tf32_of("tf32"):
        raise ValueError
    assert not tf32_allowed()


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_a_step_trains_both_passes_in_its_precision_and_the_teacher_in_another(tmp_path, tiny_data, precision, allowed):
    allow_tf32(False)
    config = small_config(tmp_path, tiny_data, f"precision={precision}")
    task = small_task(config, 4)
    task.backbone, network = Recorder(), Recorder()
    teacher = NetworkTeacher(network, CPU)
    call = type(task).__call__
    task_type = type("WithTeacher", (type(task),), {"__call__": lambda self, b: (teacher(b.images), call(self, b))[1]})
    task.__class__ = task_type
    step = OptimizerStep(task, torch.arange(8).numpy(), config, CPU)
    indices = torch.arange(8)
    step(Batch(torch.randn(8, 3, 112, 112), indices % 4, indices, indices.bool()), 1)
    assert task.backbone.forwards == task.backbone.backwards == [allowed]
    assert network.forwards == [False] and not tf32_allowed()


def test_commands_count_denormal_numbers_as_zero_in_all_threads():
    """Also with OpenVINO beside, whose networks set and reset it."""
    tiny = torch.full((1 << 20,), 1e-39)  # so many numbers that torch's other threads take a part
    with init_distributed("cpu"):
        assert flushes_denormals()
    assert not flushes_denormals()
    code = (
        "import torch; from utils.distributed.process_group import init_distributed\n"
        "with init_distributed('cpu'): print(int((torch.full((1 << 20,), 1e-39) + 1e-39).count_nonzero()))"
    )
    done = run_command(ROOT, sys.executable, "-c", code, OMP_NUM_THREADS="2")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    assert (tiny + 1e-39).count_nonzero() == len(tiny)
