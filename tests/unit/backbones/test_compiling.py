"""Networks compile cell by cell: each kind once, with the results of the network itself."""

import copy
import getpass
import sys

import pytest
import torch
import torch._dynamo
from torch import nn

from backbones.augment_cnn import PocketNet
from backbones.compiling import compile_network
from backbones.genotypes import SOFTMAX_CASIA, parse_genotype
from backbones.iresnet import IResNet
from tests.helpers.commands import run_command
from tests.helpers.paths import ROOT


class Graphs:
    """Backend of torch.compile that runs the graphs as they are, and keeps them."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, _):
        self.graphs.append(graph)
        return graph.forward


class Plain(nn.Module):
    """Network without cells and blocks."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x)).flatten(1)


@pytest.fixture
def backend(monkeypatch, tmp_path):
    """A backend; what the code sets is taken back."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


def step(network, images):
    network.zero_grad()
    output = network(images)
    (output * torch.arange(output.shape[1])).sum().backward()
    return [output.detach(), *(parameter.grad for parameter in network.parameters())]


@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        # Cells of the first stage: two of other inputs, and one kind of all others; then each stage has a reduction
        # cell and the two after it, which differ, and the kind of the others.
        (lambda: PocketNet(2, 13, parse_genotype(SOFTMAX_CASIA), emb=16), 9),
        (lambda: IResNet(18, emb=16), 8),  # a strided block and another one in each of four stages
        (Plain, 1),  # as a whole
    ],
    ids=["PocketNet", "IResNet", "neither"],
)
def test_each_kind_of_part_is_compiled_once(backend, make, kinds):
    torch.manual_seed(0)
    network, images = make(), torch.randn(2, 3, 112, 112)
    compiled = copy.deepcopy(network)
    compile_network(compiled, backend=backend)
    torch.testing.assert_close(step(compiled, images), step(network, images))
    assert len(backend.graphs) == kinds
    step(compiled, images)
    assert len(backend.graphs) == kinds


def test_batches_of_any_size_need_no_code_each(backend):
    network = Plain().eval()
    compile_network(network, varying_batch=True, backend=backend)
    for batch in (7, 5, 4, 3, 2):
        assert network(torch.zeros(batch, 3, 8, 8)).shape == (batch, 144)
    assert len(backend.graphs) == 2


@pytest.mark.parametrize(
    ("home", "named", "folder"),
    [
        ("cache", "", "cache/pocketnet/compiled"),
        ("cache", "mine", "mine"),
        ("file", "", f"torchinductor_{getpass.getuser()}"),  # cannot be written: torch's own choice
    ],
    ids=["in the user's cache folder", "in a folder that is named", "without a cache folder"],
)
def test_where_code_is_kept(tmp_path, home, named, folder):
    (tmp_path / "file").touch()
    code = f"""
import os
os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
os.environ.update({ {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / named)} if named else {} })
import train  # first, because the folder has to be set before any module imports the compiler
from torch import nn
from backbones.compiling import compile_network
compile_network(nn.Linear(2, 2))
from torch._inductor.runtime.cache_dir_utils import cache_dir
print(cache_dir())
"""
    done = run_command(ROOT, sys.executable, "-c", code, XDG_CACHE_HOME=str(tmp_path / home), TMPDIR=str(tmp_path))
    assert done.stdout.strip() == str(tmp_path / folder), done.stderr
