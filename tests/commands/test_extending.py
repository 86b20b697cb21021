"""The examples of docs/extending.md: each is one new file and one line, and every command knows it."""

import json
import re
import shutil
import sys
from pathlib import Path

import cv2
import pytest

from tests.helpers.commands import run_command
from tests.helpers.paths import ROOT
from utils.datasets.face_dataset import FaceDataset

BLOCK = re.compile(r"```python\n# (\S+?\.py)(?:, in (\w+))?\n(.*?)```", re.DOTALL)
TABLES = {"BACKBONES", "OPERATIONS", "LOSSES", "OPTIMIZERS", "DATA_SOURCES"}
NEW = ["net_name=TinyNet", "loss=combined", "optimizer=nadam", "data_source=image_folder", "lr=1e-3"]
TRAINING = [
    *NEW, "rec=photos", "channel=4", "embedding_size=16", "batch_size=8", "workers=0", "eval_step=0", "log_step=1",
    "num_epoch=2", "lr_steps=1", "save_step=1",
]  # fmt: skip
CELLS = (
    "Genotype(normal=[[('dil_conv_3x3', 0), ('skip_connect', 1)]], normal_concat=[2], "
    "reduce=[[('dil_conv_3x3', 0), ('dil_conv_3x3', 1)]], reduce_concat=[2])"
)


def examples() -> list[tuple[str, str, str]]:
    """Returns (path, table or "", code) of every example."""
    return BLOCK.findall((ROOT / "docs" / "extending.md").read_text())


@pytest.fixture(scope="module")
def extended(project, tiny_data, tmp_path_factory) -> Path:
    """Copy of the project with all examples, and the tiny data as a folder of photos."""
    folder = Path(shutil.copytree(project, tmp_path_factory.mktemp("extended") / "project"))
    for path, table, code in examples():
        file = folder / path
        if table:
            lines = file.read_text()
            assert lines.count(f"\n{table} = {{\n") == 1
            file.write_text(lines.replace(f"\n{table} = {{\n", f"\n{table} = {{\n{code}"))
        else:
            assert not file.exists()
            file.write_text(code)
    images = FaceDataset(tiny_data)
    for index in range(len(images)):
        image, label = images[index]
        path = folder / "photos" / f"person {label}" / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image[..., ::-1])
    return folder


def succeeds(folder: Path, *command: str) -> str:
    done = run_command(folder, sys.executable, *command)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def last_weights(folder: Path, run: str) -> list[bytes]:
    return [(folder / "output" / run / f"10{name}.pth").read_bytes() for name in ("backbone", "header")]


def test_every_table_has_an_example():
    found = examples()
    assert {table for _, table, _ in found if table} == TABLES
    assert len(found) == 2 * len(TABLES)
    for path, _, code in found:
        compile(code if not code.startswith("    ") else "{" + code + "}", path, "exec")


@pytest.mark.parametrize("header", ["replicated", "sharded"])
def test_a_run_of_new_parts_resumes_exactly(extended, header):
    options = ["train.py", "--config", "config/config_demo.py", *TRAINING, f"header={header}"]
    succeeds(extended, *options, f"output=output/{header}-uncut")
    succeeds(extended, *options, f"output=output/{header}-cut", "max_steps=3")
    assert "Resumes at step 3" in succeeds(extended, *options, f"output=output/{header}-cut")
    assert last_weights(extended, f"{header}-uncut") == last_weights(extended, f"{header}-cut")


def test_a_new_backbone_is_a_teacher_and_counted(extended):
    config = ["--config", "config/config_demo.py"]
    teacher = ["net_name=TinyNet", "channel=4", "embedding_size=16"]
    assert "multiply-adds" in succeeds(extended, "-m", "utils.flops", *config, *teacher)
    run = ["rec=photos", "data_source=image_folder", "batch_size=8", "workers=0", "eval_step=0", "max_steps=2"]
    succeeds(extended, "train.py", *config, *teacher, *run, "output=output/teacher")
    distill = [
        "channel=4", "n_layers=4", "embedding_size=16", "teacher_network=TinyNet", "teacher_channel=4",
        "teacher_pth=output/teacher", "teacher_global_step=2", "teacher_cache=output/cache", "output=output/student",
    ]  # fmt: skip
    assert "MSE" in succeeds(extended, "train_kd.py", *config, *distill, *run, "log_step=1")


def test_a_search_has_the_new_operation_and_its_cells_train(extended):
    search = [
        "rec=photos", "data_source=image_folder", "channel=4", "n_layers=4", "n_nodes=1", "batch_size=8", "workers=0",
        "num_epoch=1", "search_space=max_pool_3x3,dil_conv_3x3", "search_eval=0", "output=output/search",
    ]  # fmt: skip
    succeeds(extended, "NAS/search.py", *search)
    lines = (extended / "output" / "search" / "genotypes.jsonl").read_text().splitlines()
    chosen = set(re.findall(r"'(\w+_\w+)', \d", json.loads(lines[-1])["genotype"]))
    assert chosen and chosen <= {"max_pool_3x3", "dil_conv_3x3"}
    other = [field.replace("max_pool_3x3,dil_conv_3x3", "dil_conv_3x3,max_pool_3x3") for field in search]
    refused = run_command(extended, sys.executable, "NAS/search.py", *other)  # the alphas are those of an order
    assert refused.returncode == 2 and "error: config search_space: " in refused.stderr, refused.stderr
    own = extended / "config" / "config_dilated.py"
    own.write_text(
        "from easydict import EasyDict\nconfig = EasyDict()\n"
        f"config.genotypes = {{'dilated': {CELLS!r}}}\nconfig.genotype = 'dilated'\n"
    )
    run = ["rec=photos", "data_source=image_folder", "channel=4", "n_layers=4", "batch_size=8", "workers=0"]
    succeeds(extended, "train.py", "--config", str(own), *run, "eval_step=0", "max_steps=1", "output=output/dilated")
