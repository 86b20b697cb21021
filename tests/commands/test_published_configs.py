"""The six published config files, with overrides for small sizes, through all three commands."""

import json
import re
import sys

import pytest

from backbones.build import build_backbone
from config import load_config
from tests.helpers.commands import run_command
from tests.helpers.paths import SHARED
from tests.helpers.published_configs import PUBLISHED, published_config
from utils.distillation.teacher import teacher_network_config

# Overrides to run a published config on a small data set.
SMALLER = [
    "channel=4", "n_layers=4", "embedding_size=32", "batch_size=8", "num_epoch=26", "max_steps=2", "workers=0",
    "rec=data/faces_demo", "num_classes=0", "num_image=0", "val_targets=demo",
]  # fmt: skip


@pytest.fixture(scope="module")
def teacher(demo):
    """A folder with an IResNet-18 of two steps as the teacher of step 295672."""
    folder = demo / "output" / "iresnet"
    size = ["net_name=iresnet18", "embedding_size=32", "max_steps=2", "batch_size=8", "workers=0", "eval_step=0"]
    where = [f"output={folder}", "log_dir=output/logs", "rec=data/faces_demo", "num_classes=0", "num_image=0"]
    done = run_command(demo, sys.executable, "train.py", "--config", "config/config_iresnet100.py", *size, *where)
    assert done.returncode == 0, done.stderr
    (folder / "2backbone.pth").rename(folder / "295672backbone.pth")
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_trains_distils_and_is_scored(demo, teacher, tmp_path, name):
    path = tmp_path / name
    path.write_text(published_config(PUBLISHED[name]))
    own = ["--config", path, *SMALLER, f"log_dir={tmp_path}"]
    trained = run_command(demo, sys.executable, "train.py", *own, f"output={tmp_path / 'plain'}")
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.count("published config fields without effect") == 1
    assert re.search(r"Config: .*teacher_pth.*: set, but not used by this command; ./train_kd.sh", trained.stdout)

    # "resnet" and the default are an IResNet-100, which takes minutes here; test_config reads its name.
    resnet = [f"teacher_pth={teacher}", "teacher_network=iresnet18", f"output={tmp_path / 'student'}"]
    distilled = run_command(demo, sys.executable, "train_kd.py", *own, *resnet)
    assert distilled.returncode == 0, distilled.stderr
    assert f"{teacher}/295672backbone.pth" in distilled.stdout and "MSE" in distilled.stdout

    where = [f"output={tmp_path / 'student'}", f"test_output={tmp_path / 'student'}"]
    scored = run_command(demo, sys.executable, "eval/eval.py", *own, *where)
    assert scored.returncode == 0, scored.stderr
    assert "[demo][2]Accuracy-Flip" in scored.stdout


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no golden vectors of the large networks in {SHARED.name}")
def test_the_published_teacher_is_an_iresnet_100(tmp_path):
    """teacher_network="resnet" builds a network with the published teacher's keys and shapes."""
    shapes = json.loads((SHARED / "golden" / "state_dict_shapes.json").read_text())["iresnet100_256"]
    for name in ("config_PocketNetM256.py", "config_PocketNetS256.py"):
        path = tmp_path / name
        path.write_text(published_config(PUBLISHED[name]))
        teacher = build_backbone(teacher_network_config(load_config(path, distillation=True)))
        assert {key: list(value.shape) for key, value in teacher.state_dict().items()} == shapes


def test_a_published_config_py_with_its_own_folders(demo):
    """config/config.py with rec, output and test_output relative to the project, as published, and no arguments."""
    small = {"channel": 4, "n_layers": 4, "embedding_size": 32, "batch_size": 8, "num_epoch": 1}
    data = {"rec": "data/faces_demo", "num_classes": 6, "num_image": 48, "val_targets": ["demo"]}
    path = demo / "config" / "config.py"
    path.write_text(published_config(PUBLISHED["config_PocketNetM256.py"] | small | data))
    try:
        trained = run_command(demo, "./train.sh")
        assert trained.returncode == 0, trained.stderr
        assert (demo / "output" / "PocketNetM-256" / "6backbone.pth").is_file()
        scored = run_command(demo, sys.executable, "eval/eval.py")
        assert scored.returncode == 0 and "[demo][6]Accuracy-Flip" in scored.stdout, scored.stderr
        assert (demo / "eval" / "results.json").is_file()  # config.test_output
        command = re.search(r"evaluate the checkpoints with python (.*)", trained.stdout)
        again = run_command(demo, sys.executable, *command[1].split())
        assert again.returncode == 0 and "[demo][6]Accuracy-Flip" in again.stdout, again.stderr
    finally:
        path.unlink()
