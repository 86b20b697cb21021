"""The commands, run in a copy of the project at a path with a space."""

import json
import re
import shlex
import shutil
import sys

import numpy as np
import pytest
import torch

from tests.helpers.commands import DEMO, SMALL, run_command
from tests.helpers.paths import ROOT, SHARED
from utils.datasets.verification.bins import load_bin

SPEED_LINE = r"Training: .*-Speed [\d.]+ samples/sec   Loss [\d.]+   Epoch: \d+   Global Step: \d+   Required: [\d.]+ h"


@pytest.fixture(scope="module")
def scored(demo) -> str:
    """Output of eval.py on the checkpoints of the demo."""
    done = run_command(demo, sys.executable, "eval/eval.py", *DEMO)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train_sh_leaves_checkpoints_log_and_curves(demo):
    output = demo / "output" / "demo"
    assert {path.name for path in output.glob("*.pth")} == {
        *(f"{step}{part}.pth" for step in (0, 6, 12) for part in ("backbone", "header")),
        *("checkpoint.6.pth", "checkpoint.12.pth", "checkpoint.pth"),
    }
    for text in ((demo / "train_stdout.txt").read_text(), (output / "training.log").read_text()):
        assert len(re.findall(SPEED_LINE, text)) == 4
        assert re.search(r"\[demo\]\[8\]Accuracy-Flip: \d\.\d{5}\+-\d\.\d{5}", text)
    assert list((demo / "logs" / "demo").glob("events*"))


def test_eval_scores_every_checkpoint_in_order(demo, scored):
    output = demo / "output" / "demo"
    log = (output / "test.log").read_text()
    for number in (r"XNorm: \d+\.\d{6}", r"Accuracy-Flip: \d\.\d{5}\+-\d\.\d{5}", r"Accuracy-Highest: \d\.\d{5}"):
        assert re.findall(rf"\[demo\]\[(\d+)\]{number}", log) == ["0", "6", "12"]
    results = json.loads((output / "results.json").read_text())
    assert list(results) == ["0", "6", "12"]
    for step, sets in results.items():
        assert sets["demo"]["pairs"] == 40 and 0 <= sets["demo"]["accuracy"] <= 1
        assert f"[{step}]Accuracy-Flip: {sets['demo']['accuracy']:.5f}+-{sets['demo']['std']:.5f}" in log
    table = (output / "results.txt").read_text()
    assert table in scored and [line.split()[0] for line in table.splitlines()[1:4]] == ["untrained", "6", "12"]


def test_eval_gives_what_the_steps_by_hand_give(demo, scored):
    """Computes the accuracy from the checkpoint: the sum of the embeddings of image and flip, normalised."""
    from backbones.build import build_backbone
    from config import load_config
    from eval.verification import evaluate

    config = load_config(demo / "config" / "config_demo.py", SMALL)
    backbone = build_backbone(config).eval()
    backbone.load_state_dict(torch.load(demo / "output" / "demo" / "12backbone.pth", weights_only=True))
    images, issame = load_bin(demo / "data" / "faces_demo" / "demo.bin")
    inputs = torch.from_numpy((images.astype(np.float32) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
    with torch.no_grad():
        embeddings = backbone(inputs) + backbone(inputs.flip(3))
    by_hand = evaluate(embeddings.numpy(), issame).accuracy
    assert json.loads((demo / "output" / "demo" / "results.json").read_text())["12"]["demo"]["accuracy"] == by_hand


def test_eval_in_two_processes_gives_what_one_gives(demo, scored, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    done = run_command(demo, *torchrun, "eval/eval.py", *DEMO, f"test_output={tmp_path}")
    assert done.returncode == 0, done.stderr
    ours = json.loads((tmp_path / "results.json").read_text())
    alone = json.loads((demo / "output" / "demo" / "results.json").read_text())
    assert list(ours) == list(alone)
    for step, sets in alone.items():
        one, other = ours[step]["demo"], sets["demo"]
        assert (one.pop("weights"), other.pop("weights")) == ("output/demo", ".")
        for same in ("tar", "sha256", "pairs_sha256"):
            assert one.pop(same) == other.pop(same)
        assert one.pop("interval") == pytest.approx(other.pop("interval"))
        assert one == pytest.approx(other, rel=1e-5)
    assert done.stdout.count("Accuracy-Flip") == 3  # only rank 0 prints


def test_train_sh_in_two_processes(demo, tmp_path):
    places = [f"output={tmp_path / 'two'}", f"log_dir={tmp_path / 'logs'}"]
    steps = ["num_epoch=1", "eval_step=2", "save_initial=0"]
    trained = run_command(demo, "./train.sh", *DEMO, *places, *steps, NPROC="2")
    assert trained.returncode == 0, trained.stderr
    assert {path.name for path in (tmp_path / "two").glob("*.pth")} == {
        "3backbone.pth", "3header.pth", "checkpoint.3.pth", "checkpoint.pth",
    }  # fmt: skip
    assert len(re.findall(SPEED_LINE, trained.stdout)) == 1  # only rank 0 prints
    assert "[demo][2]Accuracy-Flip" in trained.stdout


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"NPROC": "0"}, "NPROC: should be a whole number from 1, is '0'"),
        ({"NPROC": "two"}, "NPROC: should be a whole number from 1, is 'two'"),
        ({"NPROC": "2", "NNODES": "2"}, "NODE_RANK: should be a whole number from 0, is ''"),
        ({"NNODES": "2", "NODE_RANK": "2"}, "NODE_RANK: should be below NNODES=2, is '2'"),
        ({"NNODES": "2", "NODE_RANK": "1"}, "MASTER_ADDR: should be the address of the first of the 2 machines"),
        ({"PYTHON": "false"}, "false has no torch; run make install.*"),
    ],
)
def test_a_wrong_start_is_one_line(demo, environment, message):
    failed = run_command(demo, "./train.sh", *DEMO, **environment)
    assert failed.returncode == 2
    assert re.fullmatch(f"error: {message}\n", failed.stderr), failed.stderr


@pytest.mark.parametrize("nproc", ["1", "2"])
def test_train_sh_starts_from_another_folder_through_a_link(demo, tmp_path, nproc):
    """Paths on the command line are relative to the working folder, from which nothing is imported."""
    (tmp_path / "start").symlink_to(demo / "train.sh")
    for name in ("config.py", "utils.py", "train.py"):
        (tmp_path / name).write_text("raise SystemExit('imported from the working folder')")
    (tmp_path / "mine.py").write_text((demo / "config" / "config_demo.py").read_text())
    fields = ["max_steps=1", "output=out", "log_dir=curves", "save_initial=0"]
    started = run_command(
        tmp_path, "./start", "--config", "mine.py", *SMALL, *fields, new_interpreter=True, NPROC=nproc
    )
    assert started.returncode == 0, started.stderr
    assert (tmp_path / "out" / "1backbone.pth").is_file() and list((tmp_path / "curves").rglob("events*"))
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (saved["rec"], saved["output"]) == ("data/faces_demo", str(tmp_path / "out"))
    # The command in the log works in this working folder without further options.
    command = shlex.split(re.search(r"evaluate the checkpoints with python (.*)", started.stdout)[1])
    scored = run_command(tmp_path, sys.executable, *command, new_interpreter=True)
    assert scored.returncode == 0 and "[demo][1]Accuracy-Flip" in scored.stdout, scored.stderr


def test_the_overrides_of_a_run_are_read_from_its_config_json(demo, tmp_path):
    """eval.py, compare.py and the doctor read the network from config.json in the output folder."""
    out = f"output={tmp_path / 'run'}"
    fields = ["max_steps=2", "channel=6", "embedding_size=48", f"log_dir={tmp_path}", "save_initial=0"]
    trained = run_command(demo, sys.executable, "train.py", *DEMO, *fields, out)
    assert trained.returncode == 0, trained.stderr
    for command in (["eval/eval.py", out], ["eval/eval.py", "--config", tmp_path / "run", out]):
        done = run_command(demo, sys.executable, *command)
        assert done.returncode == 0 and "[demo][2]Accuracy-Flip" in done.stdout, done.stderr
    examined = run_command(demo, sys.executable, "-m", "utils.doctor", out, new_interpreter=True)
    assert examined.returncode == 0 and "channel 6, n_layers 4" in examined.stdout, examined.stdout
    pair = [tmp_path / "run", demo / "output" / "demo"]  # two networks, each by its own config
    compared = run_command(demo, sys.executable, "eval/compare.py", *pair, "--out", tmp_path / "compared")
    assert compared.returncode == 0 and "McNemar" in compared.stdout, compared.stderr


def test_a_wrong_config_of_two_processes_is_one_error_without_a_traceback(demo):
    failed = run_command(demo, "./train.sh", *DEMO, "lr=fast", NPROC="2")
    assert failed.returncode == 2
    assert failed.stderr == "error: config lr: should be float, is 'fast'\n"


@pytest.mark.parametrize("command", ["./train.sh", "eval/eval.py", "train.py"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "config/config.py is missing.*cp config/config_PocketNetS128.py config/config.py"),
        (["--config", "config/none.py"], "no file 'config/none.py'"),
        ([*DEMO, "rec=data/nowhere"], "rec: no folder 'data/nowhere'"),
        ([*DEMO, "embeding_size=3"], "embeding_size: no such field .*'embedding_size'"),
        ([*DEMO, "val_targets=lfw", "eval_step=1"], r"val_targets: none of lfw\.bin"),
    ],
)
def test_bad_input_is_a_one_line_error_with_exit_code_2(demo, command, arguments, message):
    start = [command] if command.startswith("./") else [sys.executable, command]
    failed = run_command(demo, *start, *arguments)
    assert failed.returncode == 2
    assert re.fullmatch(f"error: .*{message}.*\n", failed.stderr), failed.stderr


@pytest.mark.parametrize(
    ("command", "field"), [("train.py", "output"), ("train.py", "log_dir"), ("eval/eval.py", "test_output")]
)
def test_a_folder_without_write_permission_is_an_error_before_any_work(demo, command, field):
    failed = run_command(demo, sys.executable, command, *DEMO, f"{field}=train.py/below a file")
    assert failed.returncode == 2
    assert re.fullmatch(f"error: config {field}: cannot write in 'train.py/below a file' .*\n", failed.stderr)


def test_eval_of_a_folder_without_checkpoints_and_of_another_network(demo, tmp_path):
    failed = run_command(demo, sys.executable, "eval/eval.py", *DEMO, f"output={tmp_path}")
    assert failed.returncode == 2 and re.fullmatch("error: .*no .*backbone.pth in .*\n", failed.stderr)
    elsewhere = f"test_output={tmp_path}"
    failed = run_command(demo, sys.executable, "eval/eval.py", *DEMO, "embedding_size=64", elsewhere)
    assert failed.returncode == 2 and re.fullmatch(r"error: .*0backbone\.pth: tail\.6\.weight.*\n", failed.stderr)


def test_training_data_that_breaks_in_the_middle_is_one_line(demo, tmp_path):
    data = tmp_path / "faces"
    shutil.copytree(demo / "data" / "faces_demo", data)
    record = (data / "train.rec").read_bytes()
    at = record.index(b"\xff\xd8\xff", len(record) // 2)
    (data / "train.rec").write_bytes(record[:at] + b"\0" * 300 + record[at + 300 :])
    failed = run_command(demo, "./train.sh", *DEMO, f"rec={data}", f"output={tmp_path / 'out'}", "num_epoch=1")
    assert failed.returncode == 2
    assert re.fullmatch(r"error: .*train\.rec: record \d+ at byte \d+: not a readable image.*\n", failed.stderr)


def test_flops_prints_the_published_numbers(project):
    printed = run_command(project, sys.executable, "-m", "utils.flops", new_interpreter=True).stdout
    assert re.search(r"PocketNetS128 +925,632 +587\.11 +283\.5", printed)
    assert re.search(r"PocketNetM256 +1,752,448 +1,099\.16 +538\.3", printed)


# ------------------------------------------------------------------------------------ real faces and real weights

WEIGHTS, LFW = SHARED / "data" / "PocketNetS-128", SHARED / "data" / "lfw"
needs_real_data = pytest.mark.skipif(
    not (WEIGHTS.is_dir() and LFW.is_dir()), reason=f"no real data in {SHARED.name}/data"
)


@needs_real_data
@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_published_weights_give_the_published_embeddings(runtime):
    from backbones.build import build_backbone
    from config import load_config
    from eval.inference.embedding import embed, make_runtime
    from utils.checkpoints.weights import load_weights
    from utils.datasets.verification.bins import decode_images, read_bin
    from utils.distributed.process_group import World

    config = load_config(ROOT / "config" / "config_PocketNetS128.py", [f"eval_runtime={runtime}"])
    backbone = build_backbone(config)
    load_weights(backbone, WEIGHTS / "295672backbone.pth")
    images = decode_images(read_bin(LFW / "lfw.bin")[0][:200])
    golden = np.load(SHARED / "golden" / "lfw_embeddings.npz")
    embeddings = embed(make_runtime(backbone, config, World(0, 1, torch.device("cpu")), len(images)), images)
    for ours, name in zip(embeddings, ("embedding", "embedding_flip"), strict=True):
        assert np.abs(ours - golden[name]).max() <= 1e-4 * np.abs(golden[name]).max()
