"""make gpu-check: stages in processes of their own, their limits, and what it says. The whole check runs by hand."""

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check.checks.numerics import LIMITS, gradients, make_case, reference
from benchmarks.gpu_check.checks.steps import changed_by_nan
from benchmarks.gpu_check.report import FAILED, LEFT_OUT, PASSED, Report, read_rows
from benchmarks.gpu_check.runner import Result, run_stages
from benchmarks.gpu_check.stages import FALLBACKS, STAGES, Stage
from benchmarks.gpu_check.support.waits import forbid_waits
from benchmarks.measures import relative_error
from config import shipped_configs
from tests.helpers.paths import ROOT
from tests.helpers.published_configs import PUBLISHED, published_config
from tests.helpers.training import CPU, small_config
from utils.losses.header import make_header
from utils.training.nonfinite import NonFiniteGuard

STAGE_FILES = {
    "good": "def run(context): context.report.measure('speed', 1.5, 'img/s', context.device)",
    "wrong": """
def run(context):
    context.report.compare('error', 0.25, 0.1)
    with context.report.part('division'):
        1 / 0
    context.report.compare('not a number', float('nan'), 0.1)
""",
    "broken": "import no_such_module",
    "cut": "import os\ndef run(context): context.report.tell('before', 'it ends'); os._exit(3)",
    "hanging": """
import os, subprocess, time
from pathlib import Path

def run(context):
    context.report.tell('before', 'it hangs')
    child = subprocess.Popen(['sleep', '600'])
    other_session = subprocess.Popen(['sleep', '600'], start_new_session=True)
    Path(os.environ['PIDS']).write_text(f'{os.getpid()} {child.pid} {other_session.pid}')
    time.sleep(600)
""",
}


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Makes a stage of STAGE_FILES."""
    folder = tmp_path / "stages"
    folder.mkdir()
    for name, text in STAGE_FILES.items():
        (folder / f"gpu_check_{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))

    def make(name: str, seconds: float = 60, **options) -> Stage:
        return Stage(name, f"gpu_check_{name}", f"the stage {name}", seconds, **options)

    return make


def run(stages: list[Stage], folder: Path, seconds: float = 60) -> list[Result]:
    """Runs stages as the check does; each result is saved as soon as it is known."""
    saved: list[int] = []
    results = run_stages(stages, "cpu", folder / "out", seconds, lambda results: saved.append(len(results)))
    assert saved == [*range(1, len(stages) + 1)]
    return results


def is_running(pid: int) -> bool:
    """Whether a process runs, other than one that waits for its parent to read its exit code."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_check_goes_on_after_failures_and_table_and_json_agree(stage, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "STAGES", [stage(name) for name in ("wrong", "broken", "cut", "good")])
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--device", "cpu", "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        gpu_check.main()
    assert end.value.code == 1
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["outcome"] == FAILED and found["device"] == "cpu"
    stages = {entry["name"]: entry for entry in found["stages"]}
    assert {name: entry["outcome"] for name, entry in stages.items()} == {
        "wrong": FAILED, "broken": FAILED, "cut": FAILED, "good": PASSED,
    }  # fmt: skip
    assert "exit code 1: ModuleNotFoundError: No module named 'no_such_module'" in stages["broken"]["reason"]
    assert stages["cut"]["reason"].startswith("exit code 3") and stages["cut"]["rows"][0]["note"] == "it ends"
    assert [row["outcome"] for row in stages["wrong"]["rows"]] == [FAILED] * 3
    assert stages["wrong"]["rows"][2]["value"] is None and "nan" in stages["wrong"]["rows"][2]["note"]
    table = capsys.readouterr().out.partition("\n\n")[2]
    for entry in found["stages"]:
        assert f"{entry['name']}: {entry['about']} ({entry['outcome']}, " in table
        for row in entry["rows"]:
            (line,) = [line for line in table.splitlines() if f" {row['check']} " in f"{line} "]
            assert line.split()[0] == row["outcome"] and row["note"] in line
    assert "1.5 img/s" in table and "≤ 0.1" in table
    assert "ZeroDivisionError" in (tmp_path / "out" / "wrong.log").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="descendants are found in /proc")
def test_a_stage_over_its_limit_is_killed_with_all_that_it_has_started(stage, tmp_path):
    (result,) = run([stage("hanging", seconds=6)], tmp_path)
    assert result.outcome == FAILED and result.reason == "ended after 6 s, its time limit"
    assert [row.note for row in result.rows] == ["it hangs"]
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 3
    end = time.monotonic() + 60
    while any(map(is_running, pids)):  # killed, but perhaps not dead yet
        assert time.monotonic() < end
        time.sleep(0.05)


def test_missing_packages_and_their_consequences_are_said(stage, tmp_path, capsys):
    stages = [
        stage("good", packages=("numpy", "no_such_package")),
        stage("broken", needs=("good",)),
        stage("wrong", packages=("easydict",)),
    ]
    first, second, third = run(stages, tmp_path)
    assert (first.outcome, first.reason) == (LEFT_OUT, "no no_such_package")
    assert (second.outcome, second.reason) == (LEFT_OUT, "needs the stage good")
    assert third.outcome == FAILED
    assert "good: left out: no no_such_package" in capsys.readouterr().out
    (late,) = run(stages[2:], tmp_path, seconds=1)
    assert (late.outcome, late.reason) == (LEFT_OUT, "no time left")


def test_every_stage_can_be_imported_and_needs_stages_before_it():
    names = [each.name for each in STAGES]
    for number, each in enumerate(STAGES):
        assert set(each.needs) <= set(names[:number])
        assert (ROOT / f"{each.module.replace('.', '/')}.py").is_file()


def load_all(paths: list[Path], *, with_fallback: bool) -> dict[str, dict]:
    """Loads configs in another process; functions become their learning-rate factors."""
    code = """
import json, sys
from config import load_config
def load(path):
    config = load_config(path)
    factors = [config.lr_factor(epoch) for epoch in range(30)]
    return config.to_dict() | {"lr_func": config.lr_func and factors}
import easydict
print(easydict.__file__, file=sys.stderr)
print(json.dumps({path: load(path) for path in sys.argv[1:]}))
"""
    path = [str(ROOT), *([str(FALLBACKS / "easydict")] if with_fallback else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (str(FALLBACKS) in done.stderr) == with_fallback
    return json.loads(done.stdout)


def test_the_stand_in_for_easydict_loads_published_and_shipped_configs_alike(tmp_path):
    paths = shipped_configs()
    for name, fields in PUBLISHED.items():
        paths.append(tmp_path / f"{name}.py")
        paths[-1].write_text(published_config(fields))
    found = load_all(paths, with_fallback=True)
    assert len(found) == len(paths) > 10 and found == load_all(paths, with_fallback=False)


def test_the_numerics_tell_precisions_apart(tmp_path, tiny_data):
    config = small_config(tmp_path, tiny_data)
    case = make_case(config, 8, smooth=True)
    exact, header = reference(case), make_header(config, 1000, CPU)
    with torch.no_grad():
        header.kernel.copy_(case.kernel)
    limit = LIMITS["smooth"]["fp32"][1]
    errors = {
        precision: relative_error(gradients(case, header, CPU, precision).backbone, exact.backbone)
        for precision in ("fp32", "bf16")
    }
    assert errors["fp32"] < limit < 0.1 * errors["bf16"] < errors["bf16"] < LIMITS["smooth"]["bf16"][1]
    header.margin.m += 0.01
    wrong = gradients(copy.copy(case), header, CPU, "fp32")
    assert relative_error(wrong.loss, exact.loss) > LIMITS["smooth"]["fp32"][0]


def test_a_change_by_a_nan_step_is_found(tmp_path, tiny_data, monkeypatch):
    config = small_config(tmp_path, tiny_data)
    assert changed_by_nan(config, CPU) == []
    monkeypatch.setattr(NonFiniteGuard, "is_nonfinite", lambda *_: torch.tensor(False))
    changed = changed_by_nan(config, CPU)
    assert "header.kernel" in changed and "header.kernel.momentum_buffer" in changed and "not noticed" in changed


def test_a_wait_of_the_host_is_found():
    number = torch.ones(())
    with forbid_waits(CPU.device):
        total = number + number
        with pytest.raises(RuntimeError, match="would make the host wait"):
            total.item()
    assert total.item() == 2


def test_rows_survive_a_cut_last_line(tmp_path):
    report = Report(tmp_path / "rows.jsonl")
    report.compare("small", 0.05, 0.1)
    report.compare("small, but", 0.05, 0.1, also=False)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"check": "cut')
    assert [(row.check, row.outcome) for row in read_rows(tmp_path / "rows.jsonl")] == [
        ("small", PASSED),
        ("small, but", FAILED),
    ]
