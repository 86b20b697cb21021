"""The commands eval/eval.py and eval/compare.py: their options, results and errors."""

import errno
import importlib
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from scipy import stats

from backbones.build import build_backbone
from config import load_config
from eval.compare import archive_previous
from eval.comparison import compare_all_sets, compare_scores
from eval.inputs.pairs import read_pairs
from eval.inputs.sets import VerificationSet, load_bin_set, load_photo_set
from eval.verification import evaluate_distances, pair_distances, resampled_accuracies
from tests.helpers.bad_checkpoints import add_bad_checkpoints, bad_checkpoints_error, write_overflowing
from tests.helpers.commands import DEMO, SMALL, copy_run, run_command
from tests.helpers.faces import draw_face, encode_image, write_data
from utils.datasets.verification.bins import read_bin
from utils.distributed.process_group import World
from utils.errors import UserError

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def own_photos(tmp_path_factory) -> Path:
    """Folder with the photos of eight people in `own`, and pairs of them in pairs.txt, in the format of LFW."""
    folder = tmp_path_factory.mktemp("my photos")
    rng = np.random.default_rng(8)
    for person in range(8):
        (folder / "own" / f"p{person}").mkdir(parents=True)
        for k in range(1, 7):
            image = draw_face(person, rng).astype(int) + rng.integers(-60, 60, (1, 1, 3))  # another brightness
            photo = encode_image(image.clip(0, 255).astype(np.uint8), ".png")
            (folder / "own" / f"p{person}" / f"p{person}_{k:04d}.png").write_bytes(photo)
    rows = [f"p{p}\t{k}\t{k + 1}" for p in range(8) for k in range(1, 6)]
    rows += [f"p{p}\t{k}\tp{(p + k) % 8}\t{k}" for p in range(8) for k in range(1, 7)]
    (folder / "pairs.txt").write_text("\n".join(["88", *rows]) + "\n")
    return folder


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def assert_close(ours: dict, other: dict) -> None:
    """Compares two results.json or two thresholds.json."""
    assert list(ours) == list(other)
    for key, value in other.items():
        if isinstance(value, dict):
            assert_close(ours[key], value)
        else:
            assert ours[key] == (value if isinstance(value, str) or value is None else pytest.approx(value, rel=1e-4))


# -------------------------------------------------------------------------------------------------------- eval/eval.py


def test_some_steps(run_main, tmp_path):
    done = run_main("eval/eval.py", *DEMO, f"test_output={tmp_path}", "--steps", "12, 0")
    assert done.returncode == 0 and done.stderr == ""
    assert list(read_json(tmp_path / "results.json")) == ["0", "12"]
    assert "Checkpoint 2 of 2: output/demo/12backbone.pth" in done.stdout and "6backbone" not in done.stdout


@pytest.mark.parametrize("steps", ["7", "0,7", "six", "-6", "6;12", "", "6,", "1e1", "²"])
def test_steps_without_a_checkpoint(run_main, tmp_path, steps):
    failed = run_main("eval/eval.py", *DEMO, f"test_output={tmp_path}", f"--steps={steps}")
    wrong = steps.split(",")[-1]
    assert failed.returncode == 2
    assert failed.stderr == f"error: --steps {wrong}: no such checkpoint in 'output/demo'; there are 0, 6, 12\n"
    assert list(tmp_path.iterdir()) == []


def test_own_pairs(demo, own_photos, tmp_path):
    """In a new process, with a space in the file name; the results of the config's own sets are unchanged."""
    copy_run(demo / "output" / "demo", tmp_path / "out")
    for name in ("results.json", "thresholds.json"):
        (tmp_path / "out" / name).write_text('{"6": {"kept": {}}}')
    done = run_command(
        demo, sys.executable, "eval/eval.py", "--pairs", own_photos / "pairs.txt", *DEMO, f"output={tmp_path / 'out'}",
        "--images", own_photos / "own", "--steps", "6",
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (scores,) = read_json(tmp_path / "out" / "results_pairs.json").values()
    photo_set = load_photo_set(read_pairs(own_photos / "pairs.txt", own_photos / "own"), CPU)
    assert (
        scores["pairs"]["pairs"] == 88
        and scores["pairs"]["accuracy"] == evaluate_checkpoint(demo, 6, photo_set)[0].accuracy
    )
    assert (tmp_path / "out" / "results_pairs.txt").read_text() in done.stdout
    assert (tmp_path / "out" / "roc_pairs.png").read_bytes().startswith(b"\x89PNG")
    assert read_json(tmp_path / "out" / "results.json") == {"6": {"kept": {}}}
    thresholds = read_json(tmp_path / "out" / "thresholds.json")["6"]
    assert list(thresholds) == ["kept", "pairs:pairs"] and "needs at least 100" in thresholds["pairs:pairs"]["1e-02"]
    assert (
        "TAR at FAR 1e-02 and 1e-03 and 1e-04 left out: it needs at least 100 different pairs, there are 48; add "
        in (done.stdout)
    )
    assert "Thresholds:" not in done.stdout  # there is none to show


def test_a_folder_of_people(run_main, demo, own_photos, tmp_path):
    """Sampled pairs are deterministic and equal those of the CSV; thresholds have the recorded FAR and FRR."""
    out = tmp_path / "out"
    copy_run(demo / "output" / "demo", out)
    folder = [*DEMO, f"output={out}", "--folder", own_photos / "own", "--n-pairs", "300"]
    done = run_main("eval/eval.py", *folder, "--steps=12")
    assert done.returncode == 0 and done.stderr == ""
    first, pairs = (out / "results_own.json").read_bytes(), (out / "pairs_own.csv").read_bytes()
    thresholds = read_json(out / "thresholds.json")["12"]["folder:own"]
    assert {path.name for path in out.iterdir()} >= {"results_own.txt", "roc_own.png", "thresholds.json"}

    assert run_main("eval/eval.py", *folder, "--steps=12", f"test_output={tmp_path / 'again'}").returncode == 0
    again = (tmp_path / "again" / "results_own.json").read_text()
    assert again.replace(f'"weights": "{out}"', '"weights": "."').encode() == first
    assert (tmp_path / "again" / "pairs_own.csv").read_bytes() == pairs
    assert not (tmp_path / "again" / "thresholds.json").exists()  # it is beside the checkpoints

    read = run_main("eval/eval.py", *DEMO, f"output={out}", "--steps=12", "--pairs", out / "pairs_own.csv")
    assert read.returncode == 0
    by_pairs = read_json(out / "results_pairs_own.json")["12"]["pairs_own"]
    assert by_pairs == json.loads(first)["12"]["own"]
    assert (out / "results_own.json").read_bytes() == first
    again = read_json(out / "thresholds.json")["12"]["pairs:pairs_own"]
    assert again["1e-02"] == thresholds["1e-02"]
    assert thresholds["1e-03"] == "needs at least 1000 different pairs; --n-pairs 2000 makes them"
    assert thresholds["1e-04"] == (
        "needs at least 10000 different pairs; these photos make 1,008 at most: add photos of more people"
    )
    assert again["1e-03"] == "needs at least 1000 different pairs; add pairs to the --pairs file"

    photo_set = load_photo_set(read_pairs(out / "pairs_own.csv"), CPU)
    assert len(photo_set.issame) == 120 + 150  # all same-person pairs that exist
    _, distances = evaluate_checkpoint(demo, 12, photo_set)
    point = thresholds["1e-02"]
    accepted = distances < point["squared_distance"]
    np.testing.assert_array_equal(1 - distances / 2 >= point["cosine"], accepted)
    assert np.mean(accepted[~photo_set.issame]) == pytest.approx(point["far"], abs=1e-12) and point["far"] <= 0.01
    assert np.mean(~accepted[photo_set.issame]) == pytest.approx(point["frr"], abs=1e-12)
    row = next(line for line in done.stdout.splitlines() if line.split()[:3] == ["own", "12", "1e-02"])
    assert row.split()[3:] == [
        f"{point['cosine']:.4f}", f"{point['squared_distance']:.4f}", f"{100 * point['frr']:.2f}",
    ]  # fmt: skip

    other = run_main("eval/eval.py", *folder, "--steps=12", "--seed=1", f"test_output={tmp_path / 'other'}")
    assert other.returncode == 0 and (tmp_path / "other" / "pairs_own.csv").read_bytes() != pairs


def test_nothing_published_is_shown_beside_own_photos(run_main, own_photos, tmp_path):
    """Even if the network is PocketNetS128 and the folder is named like a published set."""
    shutil.copytree(own_photos / "own", tmp_path / "lfw")
    network = load_config("config/config_PocketNetS128.py")
    (tmp_path / "out").mkdir()
    torch.save(build_backbone(network).state_dict(), tmp_path / "out" / "1backbone.pth")
    places = [f"output={tmp_path / 'out'}", "--folder", tmp_path / "lfw", "--n-pairs=20", f"test_output={tmp_path}"]
    done = run_main("eval/eval.py", "--config", "config/config_PocketNetS128.py", *places)
    assert done.returncode == 0 and "results_lfw.json" in done.stdout and "99.58" not in done.stdout


def test_thresholds_are_written_beside_the_checkpoints_where_allowed(run_main, demo, own_photos, tmp_path):
    out = tmp_path / "out"
    copy_run(demo / "output" / "demo", out)
    (out / "thresholds.json").unlink(missing_ok=True)
    out.chmod(0o555)
    options = [*DEMO, f"output={out}", f"test_output={tmp_path / 'test'}", "--steps=6"]
    try:
        done = run_main("eval/eval.py", *options, "--pairs", own_photos / "pairs.txt", "--images", own_photos / "own")
    finally:
        out.chmod(0o755)
    assert done.returncode == 0 and not (out / "thresholds.json").exists()
    assert list(read_json(tmp_path / "test" / "thresholds.json")) == ["6"]
    assert str(tmp_path / "test" / "thresholds.json") in done.stdout


def test_a_set_is_decoded_once_for_all_checkpoints(run_main, demo, tmp_path, monkeypatch):
    decoded = []
    plain = importlib.import_module("eval.inputs.sets").decode_images

    def counted(*args, **options) -> np.ndarray:
        decoded.append(plain(*args, **options))
        return decoded[-1]

    monkeypatch.setattr("eval.inputs.sets.decode_images", counted)
    done = run_main("eval/eval.py", *DEMO, f"test_output={tmp_path}")
    assert done.returncode == 0 and list(read_json(tmp_path / "results.json")) == ["0", "6", "12"]
    (images,) = decoded
    assert images.dtype == np.uint8
    assert len(images) == len(load_bin_set(demo / "data" / "faces_demo" / "demo.bin", CPU).images)


def test_several_sets(demo, tmp_path):
    """Each has its column, its rows and its panel; a missing one is left out with a log line."""
    data = write_data(tmp_path / "data", pairs=30)
    shutil.copy(demo / "data" / "faces_demo" / "demo.bin", data)
    options = [f"rec={data}", "val_targets=tiny,none,demo", f"test_output={tmp_path / 'out'}"]
    done = run_command(demo, sys.executable, "eval/eval.py", *DEMO, *options, "--steps=6")
    assert done.returncode == 0 and f"No none.bin in {data}: left out" in done.stdout
    assert list(read_json(tmp_path / "out" / "results.json")["6"]) == ["tiny", "demo"]
    assert cv2.imread(str(tmp_path / "out" / "roc.png")).shape == (480, 1200, 3)


def test_two_processes_give_what_one_gives(run_main, demo, own_photos, tmp_path):
    options = [*DEMO, "--pairs", own_photos / "pairs.txt", "--images", own_photos / "own", "--steps=6,12"]
    for place in ("one", "two"):
        shutil.copytree(demo / "output" / "demo", tmp_path / place, ignore=shutil.ignore_patterns("*.json"))
    alone = run_main("eval/eval.py", *options, f"output={tmp_path / 'one'}")
    done = run_command(demo, sys.executable, "eval/eval.py", *options, f"output={tmp_path / 'two'}", NPROC="2")
    assert alone.returncode == done.returncode == 0, done.stderr
    assert done.stdout.count("Accuracy-Flip") == 2 and done.stdout.count("TAR at FAR") == 1  # only rank 0 prints
    for name in ("results_pairs.json", "thresholds.json"):
        assert_close(read_json(tmp_path / "two" / name), read_json(tmp_path / "one" / name))


@pytest.mark.parametrize("number", ["0", "two", "-1", "2000", "1.5"])
def test_a_wrong_number_of_processes(run_main, monkeypatch, tmp_path, number):
    monkeypatch.setenv("NPROC", number)
    failed = run_main("eval/eval.py", *DEMO, f"test_output={tmp_path}")
    assert failed.returncode == 2
    assert failed.stderr == f"error: NPROC: should be a whole number from 1, is {number!r}\n"


# --------------------------------------------------------------------------------- checkpoints, folders and full disks


@pytest.fixture
def some_bad(demo, tmp_path) -> Path:
    """Output folder of a run with a truncated, an incompatible and an overflowing checkpoint beside valid ones."""
    out = tmp_path / "out"
    shutil.copytree(demo / "output" / "demo", out, ignore=shutil.ignore_patterns("*.json"))
    return add_bad_checkpoints(out)


def assert_others_are_scored(done, out: Path) -> None:
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert list(read_json(out / "results.json")) == ["0", "6", "12"]
    assert re.fullmatch(bad_checkpoints_error(6), done.stderr), done.stderr
    for step in (3, 4, 5):
        assert re.search(rf"{step}backbone\.pth: .*: left out", (out / "test.log").read_text())
    assert "nan" not in done.stdout
    assert [line.split()[0] for line in (out / "results.txt").read_text().splitlines()[1:4]] == ["untrained", "6", "12"]


def test_bad_checkpoints_are_left_out_and_named(run_main, some_bad):
    assert_others_are_scored(run_main("eval/eval.py", *DEMO, f"output={some_bad}"), some_bad)


def test_bad_checkpoints_are_left_out_by_two_processes(demo, some_bad):
    options = [*DEMO, f"output={some_bad}"]
    assert_others_are_scored(run_command(demo, sys.executable, "eval/eval.py", *options, NPROC="2"), some_bad)


def test_embeddings_that_are_not_finite_are_an_error_of_file_and_set(run_main, demo, tmp_path):
    write_overflowing(demo / "output" / "demo" / "6backbone.pth", tmp_path / "6backbone.pth")
    message = rf"{re.escape(str(tmp_path))}/6backbone\.pth: .*not finite"
    assert_error(run_main("eval/eval.py", *DEMO, f"output={tmp_path}", f"test_output={tmp_path / 'out'}"), message)
    assert_error(run_main("eval/compare.py", tmp_path / "6", "output/demo", *DEMO, "--out", tmp_path / "out"), message)


def test_results_of_other_steps_stay_in_the_table(run_main, demo, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(demo / "output" / "demo", out, ignore=shutil.ignore_patterns("*.json"))
    for steps, shown in (("0,6", ["untrained", "6"]), ("12", ["untrained", "6", "12"])):
        done = run_main("eval/eval.py", *DEMO, f"output={out}", "--steps", steps)
        table = (out / "results.txt").read_text()
        assert done.returncode == 0 and table in done.stdout
        assert [line.split()[0] for line in table.split("\n\n")[0].splitlines()[1:]] == shown
    assert list(read_json(out / "results.json")) == list(read_json(out / "thresholds.json")) == ["0", "6", "12"]


def test_a_file_of_any_name(run_main, demo, tmp_path):
    """Given itself, without its suffix, and as the only file of a folder."""
    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights" / "PocketNetS-128.pth"
    shutil.copy(demo / "output" / "demo" / "12backbone.pth", path)
    shutil.copy(demo / "output" / "demo" / "12header.pth", path.parent)
    (path.parent / "checkpoint.pth").write_bytes(b"")
    for n, output in enumerate((path, path.with_suffix(""), path.parent)):
        done = run_main("eval/eval.py", *DEMO, f"output={output}", f"test_output={tmp_path / str(n)}")
        assert done.returncode == 0, done.stderr
        assert list(read_json(tmp_path / str(n) / "results.json")) == ["PocketNetS-128"]
        assert "[demo][PocketNetS-128]Accuracy-Flip: " in done.stdout
    shutil.copy(path, path.with_name("best.pth"))
    (path.parent / "checkpoint.pth").unlink()
    assert_error(
        run_main("eval/eval.py", *DEMO, f"output={path.parent}"),
        r"no \{global_step\}backbone\.pth in .*, but 2 other files of weights; name one of them: PocketNetS-128",
    )


def test_nothing_is_left_beside_weights_that_no_run_made(run_main, demo, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.folders.CONFIG_FOLDER", tmp_path / "project" / "config")
    for name in ("a", "b"):
        weights = tmp_path / name / "weights"
        weights.mkdir(parents=True)
        shutil.copy(demo / "output" / "demo" / "12backbone.pth", weights)
        done = run_main("eval/eval.py", *DEMO, f"output={weights}")
        assert done.returncode == 0 and [path.name for path in weights.iterdir()] == ["12backbone.pth"]
    first, second = sorted(
        (tmp_path / "project" / "output" / "eval").iterdir()
    )  # of the same name, in different folders
    for folder in (first, second):
        assert folder.name.startswith("weights-")
        names = {"results.json", "results.txt", "roc.png", "thresholds.json", "test.log"}
        assert {path.name for path in folder.iterdir()} == names
    assert f"In {first}: test.log" in done.stdout or f"In {second}: test.log" in done.stdout


def test_a_shared_folder_is_scored_as_its_checkpoint(run_main, demo, tmp_path, monkeypatch):
    """Results go to a folder in output/eval, and the shared folder stays as it is."""
    monkeypatch.setattr("eval.folders.CONFIG_FOLDER", tmp_path / "project" / "config")
    weights, shared = demo / "output" / "demo" / "12backbone.pth", tmp_path / "shared"
    assert run_main("deploy/share.py", shared, "--model", weights).returncode == 0
    before = {path.name: path.read_bytes() for path in shared.iterdir()}
    data = ["rec=data/faces_demo", "val_targets=demo"]

    def score(output: Path, *arguments: str) -> dict:
        done = run_main("eval/eval.py", f"output={output}", *data, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        results = Path(re.findall(r"\nIn (.*): test.log", done.stdout)[-1])
        ((name, sets),) = read_json(results / "results.json").items()
        assert name == ("12" if output == weights else "model")
        return {key: value for key, value in sets["demo"].items() if key not in ("weights", "sha256")}

    expected = score(weights, "--steps=12", f"test_output={tmp_path / 'results'}")
    assert score(shared) == score(shared / "model.safetensors") == expected
    assert before == {path.name: path.read_bytes() for path in shared.iterdir()}

    done = run_main("eval/compare.py", weights, shared, *data, "--out", tmp_path / "compared")
    assert done.returncode == 0, done.stderr
    (row,) = read_json(tmp_path / "compared" / "compare.json")["sets"]
    assert row["only_a"] == row["only_b"] == 0 and row["a"] == row["b"]


def test_two_files_of_one_step(run_main, demo, tmp_path):
    for name in ("00012backbone.pth", "12backbone.pth"):
        shutil.copy(demo / "output" / "demo" / "12backbone.pth", tmp_path / name)
    message = r"00012backbone\.pth and 12backbone\.pth in .* are both of step 12; rename or remove one"
    assert_error(run_main("eval/eval.py", *DEMO, f"output={tmp_path}"), message)
    (tmp_path / "12backbone.pth").unlink()
    done = run_main("eval/eval.py", *DEMO, f"output={tmp_path}", f"test_output={tmp_path}", "--steps=012")
    assert done.returncode == 0 and list(read_json(tmp_path / "results.json")) == ["12"]


@pytest.mark.parametrize("script", ["eval/eval.py", "eval/compare.py"])
def test_a_log_that_is_a_link_is_refused(run_main, tmp_path, script):
    (tmp_path / "precious").write_text("precious")
    for name in ("test.log", "compare.log"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    where = (
        ["output/demo/6", "output/demo/12", "--out", tmp_path] if "compare" in script else [f"test_output={tmp_path}"]
    )
    assert_error(
        run_main(script, *where, *DEMO), r"(test|compare)\.log: is a symbolic link, which is not written through"
    )
    assert (tmp_path / "precious").read_text() == "precious"


def test_compare_replaces_links(run_main, tmp_path):
    for name in ("compare.txt", "compare.json", "compare_demo.png"):
        (tmp_path / f"precious {name}").write_text("precious")
        (tmp_path / name).symlink_to(tmp_path / f"precious {name}")
    done = run_main("eval/compare.py", "output/demo/0", "output/demo/12", *DEMO, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("compare.txt", "compare.json", "compare_demo.png"):
        assert (tmp_path / f"precious {name}").read_text() == "precious" and not (tmp_path / name).is_symlink()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """File system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path) -> None:
    """Fills the file system to the last byte."""
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.mark.parametrize("script", ["eval/eval.py", "eval/compare.py"])
def test_on_a_full_disk_the_tables_are_printed_and_old_files_stay(run_main, demo, small_disk, tmp_path, script):
    weights = tmp_path / "weights"  # so that thresholds.json is written to the small disk
    shutil.copytree(demo / "output" / "demo", weights, ignore=shutil.ignore_patterns("*.json", "*.log", "check*"))
    sides = [weights / "6", weights / "12", "--out", small_disk]
    where = sides if "compare" in script else [f"output={weights}", f"test_output={small_disk}", "--steps=6,12"]
    assert run_main(script, *where, *DEMO).returncode == 0
    before = {path: path.read_bytes() for path in small_disk.iterdir() if path.suffix != ".log"}
    assert len(before) >= 2
    fill(small_disk)
    failed = run_main(script, *where, *DEMO)
    assert failed.returncode == 2 and "Traceback" not in failed.stderr, failed.stderr
    assert re.search(r"\n +set +(pairs|step) .*\n +\w+ +\d+ ", failed.stdout), failed.stdout
    last = failed.stderr.splitlines()[-1]
    names = (
        "compare.txt, compare.json" if "compare" in script else "results.json, results.txt, roc.png, thresholds.json"
    )
    assert last.startswith(f"error: {small_disk}: {names}")
    assert "could not be written (No space left on device) and stay as they were; free disk space" in last
    assert before == {path: path.read_bytes() for path in before}
    assert {path.name for path in small_disk.iterdir()} - {path.name for path in before} <= {
        "ballast", "test.log", "compare.log",
    }  # fmt: skip


def test_photos_that_are_not_aligned(run_main, demo, own_photos, tmp_path):
    """The warning is beside the thresholds, in the table and in the file."""
    for path in (own_photos / "own").glob("*/*.png"):
        (tmp_path / "large" / path.parent.name).mkdir(parents=True, exist_ok=True)
        large = cv2.resize(cv2.imread(str(path)), (160, 160))
        cv2.imwrite(str(tmp_path / "large" / path.parent.name / path.name), large)
    folder = ["--folder", tmp_path / "large", "--n-pairs", "300", f"test_output={tmp_path / 'out'}", "--steps=12"]
    done = run_main("eval/eval.py", *DEMO, *folder)
    assert done.returncode == 0, done.stderr
    warning = read_json(tmp_path / "out" / "results_large.json")["12"]["large"]["warning"]
    assert warning.startswith("48 photos not 112×112 and therefore resized")
    table = done.stdout.partition("Thresholds:")[2]
    assert f"large: {warning}" in table and "squared" not in table and "threshold" not in table.splitlines()[1]
    # beside the checkpoints of the demo's run
    assert read_json(demo / "output" / "demo" / "thresholds.json")["12"]["folder:large"]["warning"] == warning


def test_the_option_for_more_pairs_is_named(run_main, own_photos, tmp_path):
    done = run_main(
        "eval/eval.py", *DEMO, "--folder", own_photos / "own", "--n-pairs=100", "--steps=6", f"test_output={tmp_path}"
    )
    assert "it needs at least 100 different pairs, there are 50; --n-pairs 200 makes them" in done.stdout
    assert "Thresholds:" not in done.stdout


@pytest.mark.parametrize("processes", ["1", "2"])
def test_pairs_from_a_pipe(demo, own_photos, tmp_path, processes):
    """As `--pairs <(…)`, also where the command starts itself again in several processes."""
    rows = (own_photos / "pairs.txt").read_text().splitlines()
    (tmp_path / "pairs.txt").write_text("\n".join(rows))
    line = (
        '"$0" eval/eval.py --pairs <(cat "$1") --images "$2" --steps=6 --config config/config_demo.py '
        f'test_output="$3" {" ".join(SMALL)}'
    )
    command = ["bash", "-c", line, sys.executable, tmp_path / "pairs.txt", own_photos / "own", tmp_path / "out"]
    done = run_command(demo, *command, new_interpreter=True, NPROC=processes)  # a fork has no /dev/fd/63
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "out" / "results_pairs.json")["6"]["pairs"]["pairs"] == 88


def test_a_folder_whose_name_cannot_be_printed(run_main, demo, own_photos, tmp_path):
    """Bytes that are not UTF-8 and a line break, in the names of the folder and of a photo."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/my\n\xffphotos")
    shutil.copytree(own_photos / "own", folder)
    Path(folder, "p1", "p1_0001.png").rename(os.fsdecode(os.fsencode(folder) + b"/p1/\xfe\n1.png"))
    done = run_main(
        "eval/eval.py", *DEMO, "--folder", folder, "--steps=6", "--n-pairs=60", f"test_output={tmp_path / 'out'}"
    )
    assert done.returncode == 0, done.stderr
    (name,) = read_json(next((tmp_path / "out").glob("results_*.json")))["6"]
    assert name == r"my\n\udcffphotos" and name in done.stdout
    Path(os.fsdecode(os.fsencode(folder) + b"/p1/\xfe\n1.png")).write_bytes(b"no image")
    failed = run_main("eval/eval.py", *DEMO, "--folder", folder, "--steps=6", f"test_output={tmp_path / 'out'}")
    assert_error(failed, r"udcfe\\n1\.png cannot be decoded")


# ----------------------------------------------------------------------------------------------------- eval/compare.py


def evaluate_checkpoint(demo: Path, step: int, photo_set: VerificationSet):
    """Returns the ten-fold result and the squared distances of a checkpoint, computed from its file."""
    backbone = build_backbone(load_config(demo / "config" / "config_demo.py", SMALL)).eval()
    backbone.load_state_dict(torch.load(demo / "output" / "demo" / f"{step}backbone.pth", weights_only=True))
    inputs = torch.from_numpy((photo_set.images.astype(np.float32) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
    with torch.no_grad():
        embeddings = (backbone(inputs) + backbone(inputs.flip(3))).numpy()
    distances = pair_distances(embeddings, photo_set.pairs)
    return evaluate_distances(distances, photo_set.issame), distances.astype(float)


def compare_checkpoints(demo: Path, own_photos: Path, run_main, tmp_path: Path, a: object, b: object) -> dict:
    """Returns compare.json of two checkpoints on the pairs of pairs.txt."""
    options = ["--pairs", own_photos / "pairs.txt", "--images", own_photos / "own", "--out", tmp_path / f"{a}-{b}"]
    done = run_main("eval/compare.py", f"output/demo/{a}", f"output/demo/{b}", *DEMO, *options)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return read_json(tmp_path / f"{a}-{b}" / "compare.json")


def test_compare_as_by_hand(demo, own_photos, tmp_path):
    out = tmp_path / "out"
    done = run_command(
        demo, sys.executable, "eval/compare.py", "output/demo/0backbone.pth", "output/demo", *DEMO,
        "--pairs", own_photos / "pairs.txt", "--images", own_photos / "own", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found = read_json(out / "compare.json")
    assert (found["a"], found["b"]) == ("output/demo/0backbone.pth", "output/demo/12backbone.pth")  # a folder's last
    (row,) = found["sets"]
    photo_set = load_photo_set(read_pairs(own_photos / "pairs.txt", own_photos / "own"), CPU)
    (a, a_distances), (b, b_distances) = (evaluate_checkpoint(demo, step, photo_set) for step in (0, 12))
    only_a = sum(x and not y for x, y in zip(a.correct, b.correct, strict=True))
    only_b = sum(y and not x for x, y in zip(a.correct, b.correct, strict=True))
    assert (row["name"], row["pairs"], row["only_a"], row["only_b"]) == ("pairs", 88, only_a, only_b)
    assert only_a + only_b > 0  # otherwise the test would check nothing
    assert (row["a"], row["b"]) == (np.mean(a.correct), np.mean(b.correct))
    assert row["b"] - row["a"] == pytest.approx((only_b - only_a) / 88)

    n, fewer = only_a + only_b, min(only_a, only_b)
    by_sum = 1.0 if only_a == only_b else 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    assert row["p"] == pytest.approx(by_sum) == stats.binomtest(only_a, n).pvalue
    gains = resampled_accuracies(b_distances, photo_set.issame) - resampled_accuracies(a_distances, photo_set.issame)
    assert row["interval"] == pytest.approx(np.quantile(gains, [0.025, 0.975]))
    assert gains.std() > 0
    better = "A is better" if only_a > only_b else "B is better"
    assert row["verdict"] == (better if row["p"] < 0.05 else "no difference shown")

    assert (out / "compare.txt").read_text() in done.stdout + "\n"
    line = (out / "compare.txt").read_text().splitlines()[4].split()
    low, high = row["interval"]
    assert line == [
        "pairs", "88", f"{100 * row['a']:.2f}", f"{100 * row['b']:.2f}", f"{100 * (row['b'] - row['a']):+.2f}",
        f"{100 * low:+.2f}", "to", f"{100 * high:+.2f}", str(only_a), str(only_b), f"{row['p']:.3g}",
        *row["verdict"].split(),
    ]  # fmt: skip
    picture = cv2.imread(str(out / "compare_pairs.png"))
    rows = -(-(min(24, only_a) + min(24, only_b)) // 6)
    assert picture.shape == (round(100 * (1.75 * rows + 0.6)), 1440, 3)
    assert (out / "compare.log").read_text().count("Accuracy-Flip") == 2


def test_compare_the_other_way_round(run_main, demo, own_photos, tmp_path):
    (one,) = compare_checkpoints(demo, own_photos, run_main, tmp_path, 0, 6)["sets"]
    (other,) = compare_checkpoints(demo, own_photos, run_main, tmp_path, 6, 0)["sets"]
    assert one["only_a"] + one["only_b"] > 0
    assert (one["a"], one["b"], one["only_a"], one["only_b"]) == (
        other["b"], other["a"], other["only_b"], other["only_a"],
    )  # fmt: skip
    assert one["p"] == other["p"]
    assert one["interval"] == pytest.approx([-other["interval"][1], -other["interval"][0]])
    assert one["verdict"] == other["verdict"].translate(str.maketrans("AB", "BA"))


def test_compare_a_checkpoint_with_itself(run_main, demo, own_photos, tmp_path):
    """No pair is in dispute, and the picture of an earlier comparison is moved away."""
    (tmp_path / "12-12").mkdir()
    (tmp_path / "12-12" / "compare_pairs.png").write_bytes(b"old")
    (row,) = compare_checkpoints(demo, own_photos, run_main, tmp_path, 12, 12)["sets"]
    assert (row["only_a"], row["only_b"], row["p"], row["interval"]) == (0, 0, 1, [0, 0])
    assert row["a"] == row["b"] and row["verdict"] == "no difference shown"
    names = {"compare.txt", "compare.json", "compare.log", "old-1"}
    assert {path.name for path in (tmp_path / "12-12").iterdir()} == names
    assert (tmp_path / "12-12" / "old-1" / "compare_pairs.png").read_bytes() == b"old"


def test_another_comparison_in_the_same_folder_is_kept(run_main, demo, tmp_path):
    """The same comparison again replaces it."""

    def files(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.glob("compare[._]*") if path.suffix != ".log"}

    first = ["eval/compare.py", "output/demo/0", "output/demo/12", *DEMO, "--out", tmp_path]
    for _ in range(2):
        assert "earlier comparison" not in run_main(*first).stdout
    before = files(tmp_path)
    assert before.keys() == {"compare.txt", "compare.json", "compare_demo.png"}
    done = run_main("eval/compare.py", "output/demo/6", "output/demo/12", *DEMO, "--out", tmp_path)
    assert (
        done.returncode == 0 and f"The earlier comparison in {tmp_path} is now in {tmp_path / 'old-1'}" in done.stdout
    )
    assert files(tmp_path / "old-1") == before and files(tmp_path)["compare.json"] != before["compare.json"]
    assert run_main(*first).returncode == 0 and files(tmp_path) == before
    assert read_json(tmp_path / "old-2" / "compare.json")["a"].endswith("6backbone.pth")


def test_a_comparison_that_cannot_be_moved_is_kept(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("eval.compare.archive_files", full)
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"--out .* cannot be moved to a folder old-N \(No space left on device\); name"
    ):
        archive_previous(tmp_path, "other")
    assert (tmp_path / "compare.json").read_text() == "{}"


def test_compare_on_several_sets_and_all_of_them(run_main, demo, tmp_path):
    data = write_data(tmp_path / "data", pairs=60)
    shutil.copy(demo / "data" / "faces_demo" / "demo.bin", data)
    sets = [f"rec={data}", "val_targets=tiny,demo", "--out", tmp_path / "out"]
    done = run_main("eval/compare.py", "output/demo/0", "output/demo/12backbone.pth", *DEMO, *sets)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    tiny, shown, both = read_json(tmp_path / "out" / "compare.json")["sets"]
    assert [row["name"] for row in (tiny, shown, both)] == ["tiny", "demo", "all"]
    assert both["pairs"] == tiny["pairs"] + shown["pairs"] == 100
    for key in ("only_a", "only_b"):
        assert both[key] == tiny[key] + shown[key]
    for key in ("a", "b"):
        assert both[key] == pytest.approx((60 * tiny[key] + 40 * shown[key]) / 100)
    disputed = both["only_a"] + both["only_b"]
    assert both["p"] == (stats.binomtest(both["only_a"], disputed).pvalue if disputed else 1)
    gains = 0
    for seed, row in enumerate((tiny, shown)):  # of two sets drawn independently
        photo_set = load_bin_set(data / f"{row['name']}.bin", CPU)
        b, a = (
            resampled_accuracies(evaluate_checkpoint(demo, step, photo_set)[1], photo_set.issame, seed=seed)
            for step in (12, 0)
        )
        assert np.std(b - a) > 0
        gains += row["pairs"] / 100 * (b - a)
    assert both["interval"] == pytest.approx(np.quantile(gains, [0.025, 0.975]))
    for row in (tiny, shown):
        picture = tmp_path / "out" / f"compare_{row['name']}.png"
        assert picture.exists() is (row["only_a"] + row["only_b"] > 0)


def test_sets_are_resampled_independently():
    """The interval of the mean of two equal sets is narrower than of one; with shared draws it would not be."""
    rng = np.random.default_rng(0)
    issame = np.arange(600) % 2 == 0
    scores = []
    for noise in (0.3, 0.4):
        distances = np.where(issame, 0.8, 1.5) + noise * rng.standard_normal(600)
        scores.append(SimpleNamespace(distances=distances, correct=evaluate_distances(distances, issame).correct))
    one = compare_scores("one", *scores, issame)
    both = compare_all_sets([one, one], [scores[0]] * 2, [scores[1]] * 2, [SimpleNamespace(issame=issame)] * 2)
    assert (both.pairs, both.only_a, both.only_b) == (1200, 2 * one.only_a, 2 * one.only_b)
    assert (both.a, both.b) == (one.a, one.b)
    assert 0.6 < (both.interval[1] - both.interval[0]) / (one.interval[1] - one.interval[0]) < 0.85


def test_compare_on_a_folder_and_with_another_network(run_main, demo, own_photos, tmp_path):
    """B has its own config; both are scored on the same sampled pairs."""
    (tmp_path / "other.py").write_text(
        (demo / "config" / "config_demo.py").read_text() + 'config.net_name = "iresnet18"\nconfig.embedding_size = 64\n'
    )
    (tmp_path / "iresnet").mkdir()
    network = load_config(tmp_path / "other.py", ["channel=4", "n_layers=4"])
    torch.manual_seed(0)
    torch.save(build_backbone(network).state_dict(), tmp_path / "iresnet" / "3backbone.pth")
    small = ["--config", tmp_path / "small.py"]
    (tmp_path / "small.py").write_text(
        (demo / "config" / "config_demo.py").read_text()
        + "config.channel = 4\nconfig.n_layers = 4\nconfig.embedding_size = 32\n"
    )
    options = [*small, "--folder", own_photos / "own", "--n-pairs=40", "--out", tmp_path / "out"]
    there = ["output/demo/12", tmp_path / "iresnet", *options]
    done = run_main("eval/compare.py", *there, "--config-b", tmp_path / "other.py")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found = read_json(tmp_path / "out" / "compare.json")
    assert found["b"] == str(tmp_path / "iresnet" / "3backbone.pth") and found["sets"][0]["pairs"] == 40
    failed = run_main("eval/compare.py", *there)  # B by A's config
    assert failed.returncode == 2
    assert re.fullmatch(r"error: .*3backbone\.pth: belongs to another network: .*\n", failed.stderr), failed.stderr


# ----------------------------------------------------------------------------------------------------------- bad input


def assert_error(failed, message: str) -> None:
    assert failed.returncode == 2, failed.stderr
    assert re.fullmatch(f"error: .*{message}.*\n", failed.stderr), failed.stderr


@pytest.mark.parametrize("script", ["eval/eval.py", "eval/compare.py"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pairs", "none.txt"], r"--pairs none\.txt: No such file"),
        (["--pairs", "output"], "--pairs output: Is a directory"),
        (["--pairs", "OWN/pairs.txt"], "needs the folder of its photos, --images DIR"),
        (["--pairs", "OWN/pairs.txt", "--images", "none"], "--images none: no such folder"),
        (["--pairs", "OWN/pairs.txt", "--images", "train.py"], r"--images train\.py: no such folder"),
        (["--pairs", "OWN/pairs.txt", "--images", "output"], r"pairs\.txt line 2: no photo output/p0/p0_0001\.jpg"),
        (["--pairs", "OWN/own/p0/p0_0001.png"], r"p0_0001\.png: is not text"),
        (["--images", "output"], "--images: only valid with --pairs"),
        (["--pairs", "OWN/pairs.txt", "--folder", "OWN/own"], "--pairs and --folder: take one of them"),
        (["--folder", "none"], "--folder none: no such folder"),
        (["--folder", "OWN/own/p0"], "0 folders with photos; expected one folder per person"),
        (["--folder", "OWN/own", "--n-pairs", "19"], "--n-pairs 19 --seed 0: should be at least 20 and at least 0"),
        (["--folder", "OWN/own", "--seed", "-1"], "--n-pairs 6000 --seed -1: should be at least 20 and at least 0"),
        (["--pairs", "TMP/few.csv"], "few: 2 pairs, 1 of them of one person: verification needs pairs of both kinds"),
        (["--pairs", "TMP/one.csv"], "one: 12 pairs, 12 of them of one person"),
        (["--pairs", "TMP/broken.csv"], r"broken\.png cannot be decoded"),
        (["rec=nowhere"], "config rec: no folder 'nowhere'"),
        (["val_targets=none"], "config val_targets: none of none.bin is in"),
        (["eval_runtime=fast"], "config eval_runtime: .*fast"),
        (["val_target=demo"], "config val_target: no such field"),
    ],
)
def test_bad_input(run_main, own_photos, tmp_path, script, options, message):
    a, b = own_photos / "own" / "p0" / "p0_0001.png", own_photos / "own" / "p1" / "p1_0001.png"
    (tmp_path / "few.csv").write_text(f"{a},{b},0\n{a},{a},1\n")
    (tmp_path / "one.csv").write_text(f"{a},{b},1\n" * 12)
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "broken.csv").write_text(f"{a},{b},0\n{a},broken.png,1\n" * 6)
    given = [option.replace("OWN", str(own_photos)).replace("TMP", str(tmp_path)) for option in options]
    where = ["output/demo/6", "output/demo/12", "--out", tmp_path / "out"] if "compare" in script else []
    given += [] if where else [f"test_output={tmp_path / 'out'}"]
    assert_error(run_main(script, *where, *DEMO, *given), message)


def test_a_set_that_is_a_pipe_is_not_left_out(run_main, demo, tmp_path):
    shutil.copy(demo / "data" / "faces_demo" / "demo.bin", tmp_path)
    os.mkfifo(tmp_path / "lfw.bin")
    failed = run_main("eval/eval.py", *DEMO, f"rec={tmp_path}", "val_targets=lfw,demo", f"test_output={tmp_path}")
    assert_error(failed, r"lfw\.bin: is not a regular file \(a pipe\); name a file, or copy its content into one")


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("output/demo/7", "output/demo", "A 'output/demo/7': no such checkpoint, and no folder of checkpoints"),
        ("output/demo", "nowhere", "B 'nowhere': no such checkpoint, and no folder of checkpoints"),
        ("data", "output/demo", r"output, or A: no .*backbone\.pth in 'data'"),
        ("output/demo", "train.py", r"train\.py: not a readable checkpoint"),
        ("output/demo/6header.pth", "output/demo", r"6header\.pth: belongs to another network"),
    ],
)
def test_compare_without_a_checkpoint(run_main, tmp_path, a, b, message):
    assert_error(run_main("eval/compare.py", a, b, *DEMO, "--out", tmp_path / "out"), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "train.py"], "--out train.py: File exists; name another folder"),
        (["--out", "train.py/below"], "--out train.py/below: Not a directory; name another folder"),
        (["--config-b", "none.py"], r"config: no file 'none\.py'"),
        (["--config-b", "config/config_iresnet100.py"], r"12backbone\.pth: belongs to another network"),
        (["embedding_size=64"], r"6backbone\.pth: tail\.6\.weight has shape \(32, .*, but the config needs \(64, "),
    ],
)
def test_compare_with_wrong_options(run_main, tmp_path, options, message):
    start = ["output/demo/6", "output/demo/12", *DEMO, "--out", tmp_path / "out"]
    assert_error(run_main("eval/compare.py", *start, *options), message)


def test_compare_without_checkpoints_is_a_usage(demo):
    failed = run_command(demo, sys.executable, "eval/compare.py", *DEMO[:2], new_interpreter=True)
    assert failed.returncode == 2 and "the following arguments are required: A, B" in failed.stderr


@pytest.mark.parametrize("image", [1, 37])  # in the shard of rank 0, and of rank 1
def test_bad_input_of_two_processes_is_one_error(demo, tmp_path, image):
    """The rank that finds it ends all ranks: one line, exit code 2, and no report by torchrun."""
    encoded, issame = read_bin(demo / "data" / "faces_demo" / "demo.bin")
    encoded = [b"no image" if i == image else each for i, each in enumerate(encoded[:40])]
    (tmp_path / "bad.bin").write_bytes(pickle.dumps((encoded, issame[:20].tolist())))
    log_capture = run_command(
        demo, sys.executable, "eval/eval.py", *DEMO, f"rec={tmp_path}", "val_targets=bad", NPROC="2"
    )
    assert log_capture.returncode == 2
    assert re.fullmatch(rf"error: .*bad\.bin: image {image} of 40 cannot be decoded\n", log_capture.stderr), (
        log_capture.stderr
    )
