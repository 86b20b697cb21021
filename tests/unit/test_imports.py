"""The directions of the house: config → data → backbones and losses → engine → checkpoints → evaluation."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

OURS = {"config", "backbones", "utils", "eval", "data", "NAS", "train", "train_kd", "benchmarks"}


def imports(path: Path) -> set[str]:
    """Every module that the file imports, also inside functions; `from a import b` counts as a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def of_folder(name: str) -> dict[str, set[str]]:
    files = [path for path in sorted((ROOT / name).rglob("*.py")) if path.name != "config.py" or name != "config"]
    assert files
    return {str(path.relative_to(ROOT)): imports(path) for path in files}


DOCTOR = "utils/doctor/command.py"  # a command that tries every part, and that no part imports


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in OURS}


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("config", ("config", "backbones.genotypes", "backbones.names", "utils.errors", "utils.filesystem")),
        ("backbones", ("backbones", "utils.errors")),
        ("utils", ("utils", "backbones", "config")),
        ("eval", ("eval", "backbones", "config", "utils")),
        ("NAS", ("NAS", "backbones", "config", "utils")),
        (
            "data",
            (
                "data",
                "utils.errors",
                "utils.filesystem",
                "utils.datasets.image_header",
                "utils.datasets.recordio.record_format",
                "utils.datasets.recordio.index",
                "utils.datasets.recordio.scan",
            ),
        ),
    ],
)
def test_each_folder_imports_only_what_lies_before_it(folder, allowed):
    for file, names in of_folder(folder).items():
        if file == DOCTOR:
            continue
        allowed_here = {*allowed, *(name.split(".")[0] for name in allowed)}  # also `from a import b`, seen as a
        wrong = {n for n in ours(names) if n not in allowed_here and not n.startswith(tuple(f"{a}." for a in allowed))}
        assert not wrong, f"{file} imports {wrong}"


def test_the_engine_knows_no_evaluation_and_evaluation_no_engine():
    assert not any(name.startswith("eval") for name in imports(ROOT / "utils" / "engine.py"))
    for file, names in of_folder("eval").items():
        assert "utils.training.engine" not in names, file
    # Only the tools to be run by themselves build a backbone from a config; the rest of utils is handed what it needs.
    # backbones.names only reads the names of networks.
    for file, names in of_folder("utils").items():
        if file not in ("utils/flops.py", "utils/fill_teacher_cache.py", DOCTOR):
            builds = {name for name in names if not name.startswith("backbones.names")}
            assert not any(name.startswith(("config", "backbones")) for name in builds), file


@pytest.mark.parametrize(
    "module", ["utils.datasets.recordio.reader", "backbones.genotypes", "eval.verification", "config"]
)
def test_modules_that_do_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_mxnet_and_torchvision_are_never_needed():
    for folder in ("config", "backbones", "utils", "eval", "data", "benchmarks"):
        for file, names in of_folder(folder).items():
            assert not {name.split(".")[0] for name in names} & {"mxnet", "torchvision"}, file


def test_only_the_peer_imports_mxnet_and_only_the_search_torchvision():
    files = [path for name in (*sorted(OURS), "tests") for path in (ROOT / name).rglob("*.py")] + list(
        ROOT.glob("*.py")
    )
    tops = {str(path.relative_to(ROOT)): {name.split(".")[0] for name in imports(path)} for path in files}
    assert "train.py" in tops and [file for file in tops if "mxnet" in tops[file]] == ["tests/helpers/mxnet_peer.py"]
    assert [file for file in tops if "torchvision" in tops[file] and not file.startswith("NAS/")] == []


def test_importing_has_no_side_effects(tmp_path):
    """No path changed, no file written, no process group, no seed set, nothing printed."""
    modules = [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for folder in ("config", "backbones", "utils", "eval", "NAS", "data")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name not in ("config.py", "__main__.py")
    ]
    code = f"""
import importlib, os, sys
sys.dont_write_bytecode = True
sys.path.insert(0, {str(ROOT)!r})
import cv2, torch.utils.tensorboard  # libraries that set variables of their own
before = list(sys.path), os.getcwd(), torch.initial_seed(), dict(os.environ)
for name in {[*modules, "train", "train_kd"]}:
    importlib.import_module(name)
assert before == (list(sys.path), os.getcwd(), torch.initial_seed(), dict(os.environ))
assert not torch.distributed.is_initialized()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert not list(tmp_path.iterdir())
