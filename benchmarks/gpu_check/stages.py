"""The stages of the check, in their order. Each is a module with a function `run(context)`."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu_check.report import Report

# Stand-ins for packages that are not installed: a folder for each, because PYTHONPATH goes before installed packages.
FALLBACKS = Path(__file__).with_name("fallbacks")
_TRAINING = ("cv2", "tensorboard", "tqdm")


@dataclass(frozen=True)
class Stage:
    """A part of the check that runs in a process of its own."""

    name: str
    module: str
    about: str
    seconds: float  # time limit
    packages: tuple[str, ...] = ()  # without which it is left out, besides torch and numpy
    needs: tuple[str, ...] = ()  # stages without whose files it is left out


def _stage(name: str, about: str, seconds: float, packages: tuple[str, ...], *needs: str) -> Stage:
    module = {"faces": "support.faces", "collectives": "collectives.check"}.get(name, f"checks.{name}")
    return Stage(name, f"benchmarks.gpu_check.{module}", about, seconds, ("easydict", *packages), needs)


STAGES = (
    _stage("environment", "versions, packages and bandwidth", 60, ("tqdm",)),
    _stage("numerics", "losses and gradients against float64 on the CPU", 90, ("tqdm",)),
    _stage("faces", "synthetic faces for the stages that train", 60, ("cv2", "tqdm")),
    _stage("steps", "steps without a wait of the host; a NaN step changes nothing", 75, _TRAINING, "faces"),
    _stage("runs", "train, SIGTERM, resume, read the checkpoint on a CPU", 120, _TRAINING, "faces"),
    _stage(
        "distillation", "template and multi-step distillation, cache, evaluation", 100,
        (*_TRAINING, "matplotlib", "scipy"), "faces",
    ),
    _stage(
        "search", "search in both orders, its gradient with and without TF32", 100, (*_TRAINING, "matplotlib"), "faces",
    ),
    _stage("collectives", "NCCL, or gloo on a CPU: one process, two, one that fails", 90, ("tqdm",)),
    _stage("speed", "training steps, eager and as a CUDA graph, kernels, both headers", 150, ("cv2", "tqdm")),
    _stage("compiling", "the network compiled cell by cell", 150, ("tqdm",)),
)  # fmt: skip


def missing_packages(packages: tuple[str, ...]) -> list[str]:
    """Returns the packages that are neither installed nor have a stand-in."""
    return [name for name in packages if not find_spec(name) and not (FALLBACKS / name).is_dir()]


def needed_fallbacks() -> list[Path]:
    """Returns the folders of the stand-ins for packages that are not installed."""
    return [folder for folder in sorted(FALLBACKS.iterdir()) if not find_spec(folder.name)]


@dataclass(frozen=True)
class Context:
    """What a stage works with."""

    device: str  # cuda or cpu
    folder: Path  # shared by the stages, for data and runs; removed after the check
    report: Report

    @property
    def on_gpu(self) -> bool:
        """Whether the check runs on a GPU, at the size of real training; else every line is walked at a small size."""
        return self.device == "cuda"
