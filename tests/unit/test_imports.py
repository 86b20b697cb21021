"""Which room imports which: config → data → backbones and losses → training → checkpoints → evaluation → deploy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

OURS = {"config", "backbones", "utils", "eval", "data", "deploy", "NAS", "train", "train_kd", "benchmarks"}


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


# Each room of utils imports those before it alone.
ROOMS = [
    "utils.errors",
    "utils.filesystem",
    "utils.registry",
    "utils.temporary_folder",
    "utils.openvino_core",
    "utils.distributed",
    "utils.logs",
    "utils.datasets",
    "utils.losses",
    "utils.checkpoints",
    "utils.training",
    "utils.distillation",
]
# Commands compose the rest; only the rooms that ALLOWED names import them.
TOOLS = ["utils.doctor", "utils.flops", "utils.fill_teacher_cache"]
# Every room may import the type config.base.Config.
ALLOWED = {
    "config": [
        "backbones.genotypes",
        "backbones.names",
        *ROOMS[:3],
    ],  # every room may import the type config.base.Config
    "backbones": ["config.base", *ROOMS[:3]],
    **{room: ["config.base", *ROOMS[:place]] for place, room in enumerate(ROOMS)},
    "utils.training": [
        "config.base",
        *ROOMS[: ROOMS.index("utils.training")],
        "backbones.folding",
        "backbones.compiling",
    ],
    "utils.distillation": [
        "config.base",
        *ROOMS[:-1],
        "backbones.names",
        "backbones.compiling",
    ],  # only names of networks
    **{tool: [*ROOMS, "backbones", "config", "eval"] for tool in TOOLS},
    "utils.doctor": [*ROOMS, "backbones", "config", "eval", "NAS"],  # it starts every kind of run
    "eval": ["backbones", "config", "data.alignment", *ROOMS[: ROOMS.index("utils.training")]],
    "deploy": [
        "backbones",
        "config",
        "eval",
        "data.alignment",
        "utils.flops",
        *ROOMS[: ROOMS.index("utils.training")],
    ],
    "NAS": ["backbones", "config", "utils.flops", *ROOMS[: ROOMS.index("utils.distillation")]],
    "data": [
        "utils.errors",
        "utils.filesystem",
        "utils.logs.logger",
        "utils.logs.progress_bar",
        "utils.openvino_core",
        "utils.temporary_folder",
        "utils.datasets.alignment",
        "utils.datasets.face_dataset",
        "utils.datasets.image_dataset",
        "utils.datasets.image_header",
        "utils.datasets.people_folder",
        "utils.datasets.photos",
        "utils.datasets.random_pairs",
        "utils.datasets.transforms",
        "utils.datasets.verification",
        "utils.datasets.recordio.record_format",
        "utils.datasets.recordio.index",
        "utils.datasets.recordio.scan",
    ],
}


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in OURS}


def is_within(name: str, places: list[str]) -> bool:
    return any(f"{name}.".startswith(f"{place}.") for place in places)


def modules() -> dict[str, set[str]]:
    """The project's modules, and which of them each imports, anywhere in its file."""
    tops = ("config", "backbones", "utils", "eval", "NAS", "data", "deploy")
    files = {file: names for top in tops for file, names in of_folder(top).items()}
    found = {file.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): n for file, n in files.items()}
    # `from package import module` is an import of the module, not of the package.
    return {module: {name for name in names if name in found and name != module} for module, names in found.items()}


def test_every_room_imports_only_what_lies_before_it():
    found = modules()
    assert {module for module in found if module.count(".") and not is_within(module, list(ALLOWED))} == set()
    for module, names in found.items():
        room = next((room for room in ALLOWED if is_within(module, [room])), None)
        if room is None:  # the empty package utils
            assert not names
            continue
        packages = {place.rpartition(".")[0] for place in ALLOWED[room]} | {"utils", "backbones"}
        wrong = {name for name in names if not is_within(name, [room, *ALLOWED[room]]) and name not in packages}
        assert not wrong, f"{module} imports {wrong}"


def test_no_module_imports_itself_by_way_of_others():
    left = modules()
    # A package's own file is imported with each of its modules; what counts is what is taken from it.
    left = {module: {name for name in names if not is_within(module, [name])} for module, names in left.items()}
    while free := [module for module, names in left.items() if not names & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"a circle of imports among {sorted(left)}"


def test_only_commands_build_a_backbone_from_a_config():
    for module, names in modules().items():
        if is_within(module, ROOMS):
            assert not is_within("backbones", list(names))
            assert {name for name in names if is_within(name, ["config"])} <= {"config.base"}


@pytest.mark.parametrize(
    "module", ["utils.datasets.recordio.reader", "backbones.genotypes", "eval.verification", "config"]
)
def test_modules_that_do_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_only_the_peer_imports_mxnet_and_only_cifar10_torchvision():
    files = [path for name in (*sorted(OURS), "tests") for path in (ROOT / name).rglob("*.py")] + list(
        ROOT.glob("*.py")
    )
    tops = {str(path.relative_to(ROOT)): {name.split(".")[0] for name in imports(path)} for path in files}
    assert "train.py" in tops and [file for file in tops if "mxnet" in tops[file]] == ["tests/helpers/mxnet_peer.py"]
    assert [file for file in tops if "torchvision" in tops[file]] == ["utils/datasets/cifar10.py"]


def test_importing_has_no_side_effects(tmp_path):
    """No path changed, no file written, no process group, no seed set, nothing printed."""
    modules = [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for folder in ("config", "backbones", "utils", "eval", "NAS", "data", "deploy")
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
