"""The command eval/IJB/runIJBEval.sh, and its main in this process where no shell is needed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score, roc_curve

from backbones.build import build_backbone
from config import load_config
from data.make_demo_ijb import Plan, make
from eval.folders import unique_folder_name
from eval.IJB.report import FPRS
from eval.IJB.templates import Switches
from eval.inference.embedding import TorchRuntime
from tests.helpers.bad_checkpoints import add_bad_checkpoints, bad_checkpoints_error
from tests.helpers.commands import DEMO, SMALL, run_command
from tests.helpers.ijb_reference import published_features, published_search, published_templates
from utils.datasets.alignment import crop, similarity
from utils.openvino_core import is_installed

SCRIPT = "eval/IJB/runIJBEval.sh"
PLAN = Plan(target="IJBC", people=5, probes=4, pairs=60)
BATCH = 16
PIPED_INDEX = 72  # of the fifth batch: the loader is two batches ahead, so two have been embedded when it is read
ALONE = [*DEMO, "workers=0"]  # the images are read by the process itself, batch after batch
LEFT = ["12_IJBC.npy", "6_IJBC.npy", "IJBC.pdf", "IJBC.png", "IJBC.txt", "results.json", "test.log"]


class Evaluation(NamedTuple):
    """Result of a command, and how many images it embedded."""

    code: int
    out: str
    err: str
    embedded: int


class Lists(NamedTuple):
    """The lists of a set, read without the project's reader."""

    names: list[str]
    landmarks: np.ndarray  # (N, 5, 2)
    det_scores: np.ndarray
    templates: np.ndarray
    media: np.ndarray
    pairs: np.ndarray  # (P, 3)

    def subjects(self, folder: Path, name: str) -> tuple[list[int], list[int]]:
        """Templates and their subjects of a list for identification."""
        _, *rows = (folder / "meta" / f"ijbc_1N_{name}.csv").read_text().splitlines()
        found = dict(tuple(map(int, row.split(",")[:2])) for row in rows)
        return list(found), list(found.values())


def read_lists(folder: Path) -> Lists:
    found, known, pairs = (
        [line.split() for line in (folder / "meta" / f"ijbc_{name}.txt").read_text().splitlines()]
        for name in ("name_5pts_score", "face_tid_mid", "template_pair_label")
    )
    numbers = np.array([line[1:] for line in found], np.float32)
    templates, media = np.array([line[1:] for line in known], int).T
    return Lists(
        [line[0] for line in found], numbers[:, :10].reshape(-1, 5, 2), numbers[:, 10], templates, media,
        np.array(pairs, int),
    )  # fmt: skip


def list_path(folder: Path, name: str) -> Path:
    return folder / "meta" / f"ijbc_{name}.txt"


def read_results(folder: Path, target: str = "IJBC") -> dict:
    return json.loads((folder / "results.json").read_text())[target]


@pytest.fixture(scope="module")
def ijb(tmp_path_factory) -> Path:
    """A small set in the layout of IJB-C; not to be changed."""
    folder = tmp_path_factory.mktemp("a set") / "ijb c"
    make(folder, PLAN)
    return folder


@pytest.fixture
def ijb_copy(ijb, tmp_path) -> Path:
    """A copy of the set."""
    return Path(shutil.copytree(ijb, tmp_path / "own"))


@pytest.fixture(scope="module")
def faces(ijb) -> np.ndarray:
    """The crops of all images."""
    lists = read_lists(ijb)
    return np.array([
        crop(cv2.imread(str(ijb / "loose_crop" / name), cv2.IMREAD_COLOR_RGB), similarity(landmarks))
        for name, landmarks in zip(lists.names, lists.landmarks, strict=True)
    ])  # fmt: skip


def pixels(faces: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((faces.astype(np.float32) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def checkpoints(demo, faces, tmp_path_factory) -> Path:
    """The demo's checkpoints, their batch norms set to these faces: as trained, all faces are one to the network."""
    folder = tmp_path_factory.mktemp("checkpoints")
    backbone = build_backbone(load_config(demo / "config" / "config_demo.py", SMALL))
    for norm in backbone.modules():
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            norm.momentum = 1.0
    for step in (6, 12):
        name = f"{step}backbone.pth"
        backbone.load_state_dict(torch.load(demo / "output" / "demo" / name, weights_only=True))
        with torch.no_grad():
            backbone.train()(pixels(faces[:32]))
        torch.save(backbone.state_dict(), folder / name)
    return folder


@pytest.fixture(scope="module")
def scored(demo, ijb, checkpoints, tmp_path_factory) -> tuple[Path, str]:
    """Result folder and output of a run on both checkpoints of config.output with --keep-features."""
    results = tmp_path_factory.mktemp("results")
    job = ["--result-dir", results, "--job", "small net", "--keep-features", "--batch-size", BATCH]
    done = run_command(demo, SCRIPT, *DEMO, f"output={checkpoints}", "--target", "IJBC", "--image-path", ijb, *job)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return results / "small net", done.stdout


@pytest.fixture
def earlier(scored, tmp_path) -> Path:
    """A copy of what that run left, with its embeddings: a --result-dir whose --job is PocketNet."""
    shutil.copytree(scored[0], tmp_path / "earlier" / "PocketNet")
    return tmp_path / "earlier"


@pytest.fixture
def evaluate(run_main, monkeypatch) -> Callable[..., Evaluation]:
    """Runs the script's main in this process, in the project's folder."""
    for name in [name for name in os.environ if name.startswith("IJB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("IJB_JOB", "PocketNet")
    batches: list[int] = []

    def counted(self: TorchRuntime, images: np.ndarray, call: Callable = TorchRuntime.__call__) -> object:
        batches.append(len(images))
        return call(self, images)

    monkeypatch.setattr(TorchRuntime, "__call__", counted)

    def run(*arguments: object) -> Evaluation:
        batches.clear()
        done = run_main("eval/IJB/evaluate.py", *arguments)
        return Evaluation(done.returncode, done.stdout, done.stderr, sum(batches))

    return run


# ---------------------------------------------------------------------------------------- the output and files of a run


def test_files_and_table(scored):
    folder, out = scored
    kept = [f"features_{step}_IJBC" for step in (6, 12)]
    assert sorted(path.name for path in folder.iterdir()) == sorted(LEFT + kept)
    assert (folder / "IJBC.pdf").read_bytes().startswith(b"%PDF")
    assert cv2.imread(str(folder / "IJBC.png")).shape[0] > 300
    table = (folder / "IJBC.txt").read_text()
    assert table in out
    results = read_results(folder)
    assert list(results) == ["6", "12"]
    lines = table.splitlines()
    assert lines[0].split() == ["IJBC:", "TPR", "in", "%", "at", "FPR", *(f"{fpr:.0e}" for fpr in FPRS), "AUC"]
    for line, (step, result) in zip(lines[1:3], results.items(), strict=True):
        rates = [f"{100 * rate:.2f}" for rate in result["tpr"].values()]
        assert line.split() == [step, *rates, f"{result['auc']:.6f}"]
    assert f"In {folder}: IJBC.txt, IJBC.png, IJBC.pdf, *_IJBC.npy, results.json, test.log" in out


def test_the_log_has_the_sizes_and_the_bottleneck(scored, ijb):
    folder, out = scored
    n, templates, pairs = len(read_lists(ijb).names), PLAN.people * (1 + PLAN.probes), len(read_lists(ijb).pairs)
    for text in (out, (folder / "test.log").read_text()):
        assert f"IJBC: {n} images, {templates} templates, {pairs} pairs, with lists for identification\n" in text
        limits = (
            r"% of the time in the network: the bottleneck is "
            r"(embedding|reading and cropping \(more workers may help\))"
        )
        for step in (6, 12):
            assert re.search(
                rf"IJBC {step}: {n} images in [\d.]+ s, \d+ img/s, each with its hflip; \d+ {limits}\n", text
            )


@pytest.fixture(scope="module")
def by_hand(demo, ijb, checkpoints, faces) -> tuple[Lists, np.ndarray, np.ndarray]:
    """The lists, and the embeddings of images and mirror images by checkpoint 12: PyTorch alone."""
    backbone = build_backbone(load_config(demo / "config" / "config_demo.py", SMALL)).eval()
    backbone.load_state_dict(torch.load(checkpoints / "12backbone.pth", weights_only=True))
    with torch.no_grad():
        return read_lists(ijb), backbone(pixels(faces)).numpy(), backbone(pixels(faces).flip(3)).numpy()


def scores_by_hand(by_hand: tuple[Lists, np.ndarray, np.ndarray], switches: Switches) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the pairs, and the features of the templates in the ascending order of their ids."""
    lists, direct, flipped = by_hand
    features = published_features(direct, flipped, lists.det_scores, switches)
    templates = published_templates(features, lists.templates, lists.media)
    first, second = (np.searchsorted(np.unique(lists.templates), lists.pairs[:, i]) for i in (0, 1))
    return np.sum(templates[first] * templates[second], axis=1), templates


def test_the_numbers_are_those_of_the_steps_by_hand(scored, by_hand, checkpoints):
    folder, _ = scored
    expected, _ = scores_by_hand(by_hand, Switches())
    scores = np.load(folder / "12_IJBC.npy")
    assert scores.dtype == np.float32 and scores.std() > 0.1
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    same = by_hand[0].pairs[:, 2]
    result = read_results(folder)["12"]
    fpr, tpr, _ = roc_curve(same, expected)
    nearest = [max(t for f, t in zip(fpr, tpr, strict=True) if f == fpr[np.argmin(abs(fpr - at))]) for at in FPRS]
    assert list(result["tpr"]) == ["1e-06", "1e-05", "1e-04", "1e-03", "1e-02", "1e-01"]
    assert list(result["tpr"].values()) == pytest.approx(nearest, abs=1e-12)
    assert result["auc"] == pytest.approx(roc_auc_score(same, expected), abs=1e-12)
    counts = {name: result[name] for name in ("images", "missing_images", "pairs", "different", "skipped_pairs")}
    assert counts == {
        "images": len(by_hand[1]), "missing_images": 0, "pairs": len(same), "different": int(np.sum(same == 0)),
        "skipped_pairs": 0,
    }  # fmt: skip
    assert result["switches"] == {"flip": True, "norm": True, "detector": True}
    assert result["checkpoint"] == str(checkpoints / "12backbone.pth")


def test_identification_is_that_of_the_steps_by_hand(scored, ijb, by_hand):
    folder, _ = scored
    _, features = scores_by_hand(by_hand, Switches())
    lists = by_hand[0]
    of = dict(zip(np.unique(lists.templates).tolist(), features, strict=True))
    probes, subjects = lists.subjects(ijb, "probe_mixed")
    found = []
    for name in ("gallery_G1", "gallery_G2"):
        gallery, people = lists.subjects(ijb, name)
        found.append(published_search([of[t] for t in gallery], people, [of[t] for t in probes], subjects))
    result = read_results(folder)["12"]["identification"]
    assert result["skipped_templates"] == 0
    assert len(result["galleries"]) == 2
    for ours, (rank1, rank5, tpir, mated, strangers) in zip(result["galleries"], found, strict=True):
        assert (ours["rank1"], ours["rank5"]) == pytest.approx((rank1, rank5))
        assert ours["tpir"] == {str(fpir): rate for fpir, rate in tpir.items()}
        assert (ours["mated"], ours["strangers"]) == (mated, strangers)
    assert [len(probes) - one[-1] for one in found] == [3 * PLAN.probes, 2 * PLAN.probes]
    means = np.mean([one[:2] for one in found], axis=0).tolist()
    assert [result["rank1"], result["rank5"]] == pytest.approx(means)
    assert result["tpir"] == {"0.01": None, "0.1": None}  # G1 has too few strangers
    numbers = [f"{100 * mean:.2f}" for mean in means]
    lines = (folder / "IJBC.txt").read_text().splitlines()
    assert ["12", *numbers, "-", "-"] in [line.split() for line in lines]


# ------------------------------------------------------------------------------------------------- arguments, variables


def test_environment_variables_from_another_folder_through_a_link(demo, tmp_path):
    """On IJB-B without lists for identification; results of another target are kept."""
    make(tmp_path / "ijbb", Plan(target="IJBB", people=2, probes=2, pairs=20))
    for path in (tmp_path / "ijbb" / "meta").glob("*_1N_*"):
        path.unlink()
    job = tmp_path / "results" / "mine"
    job.mkdir(parents=True)
    (job / "results.json").write_text('{"IJBC": {"0": 1}}')
    (tmp_path / "score").symlink_to(demo / SCRIPT)
    variables = {
        "IJB_TARGET": "IJBB", "IJB_IMAGE_PATH": "ijbb", "IJB_MODEL_PREFIX": str(demo / "output/demo/12"),
        "IJB_CONFIG": str(demo / "config/config_demo.py"), "IJB_RESULT_DIR": "results", "IJB_JOB": "mine",
    }  # fmt: skip
    done = run_command(tmp_path, "./score", *SMALL, new_interpreter=True, **variables)
    assert done.returncode == 0, done.stderr
    files = {"12_IJBB.npy", "IJBB.pdf", "IJBB.png", "IJBB.txt", "results.json", "test.log"}
    assert {path.name for path in job.iterdir()} == files
    results = json.loads((job / "results.json").read_text())
    assert list(results) == ["IJBC", "IJBB"] and results["IJBC"] == {"0": 1}
    assert results["IJBB"]["12"]["identification"] is None
    assert "without lists for identification" in done.stdout and "1:N" not in done.stdout


def test_an_argument_counts_more_than_a_variable(evaluate, ijb, checkpoints, earlier, monkeypatch):
    monkeypatch.setenv("IJB_TARGET", "IJBB")
    monkeypatch.setenv("IJB_IMAGE_PATH", "nowhere")
    monkeypatch.setenv("IJB_MODEL_PREFIX", "nowhere")
    monkeypatch.setenv("IJB_RESULT_DIR", "/dev/null")
    monkeypatch.setenv("IJB_JOB", "a/b")
    monkeypatch.setenv("IJB_CONFIG", "nowhere")
    arguments = ["--target", "IJBC", "--image-path", ijb, "--model-prefix", checkpoints / "6", "--result-dir", earlier]
    done = evaluate(*ALONE, *arguments, "--job", "PocketNet")
    assert done.code == 0 and done.embedded == 0


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("/12backbone.pth", ["12"]),
        ("/12", ["12"]),
        ("/", ["6", "12"]),
    ],
)
def test_model_prefix(evaluate, ijb, checkpoints, scored, earlier, prefix, names):
    done = evaluate(*ALONE, "--image-path", ijb, "--result-dir", earlier, "--model-prefix", f"{checkpoints}{prefix}")
    assert done.code == 0 and not done.err and done.embedded == 0
    assert read_results(earlier / "PocketNet") == read_results(scored[0])  # those of other checkpoints are unchanged
    assert re.findall(r"IJBC (\d+): \d+ images are already done", done.out) == names
    for name in names:
        assert not (earlier / "PocketNet" / f"features_{name}_IJBC").exists()  # --keep-features was not given


@pytest.mark.parametrize("name", ["best.pth", "model.safetensors"])
def test_a_file_of_another_name(evaluate, ijb, checkpoints, scored, tmp_path, name):
    weights = torch.load(checkpoints / "6backbone.pth", weights_only=True)
    (torch.save if name.endswith(".pth") else save_file)(weights, tmp_path / name)
    arguments = ["--image-path", ijb, "--result-dir", tmp_path, "--model-prefix", tmp_path / name]
    assert evaluate(*ALONE, *arguments).code == 0
    key = name.partition(".")[0]
    assert list(read_results(tmp_path / "PocketNet")) == [key]
    ours, before = (np.load(path) for path in (tmp_path / "PocketNet" / f"{key}_IJBC.npy", scored[0] / "6_IJBC.npy"))
    np.testing.assert_allclose(ours, before, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "switches"),
    [
        (["--no-flip"], Switches(flip=False)),
        (["--no-norm-score"], Switches(norm=False)),
        (["--no-detector-score"], Switches(detector=False)),
        (["--no-flip", "--no-norm-score", "--no-detector-score"], Switches(False, False, False)),
        (["--flip", "--norm-score", "--detector-score"], Switches()),
    ],
)
def test_switches_change_the_scores_as_they_should(evaluate, ijb, checkpoints, earlier, by_hand, options, switches):
    done = evaluate(
        *ALONE, "--image-path", ijb, "--result-dir", earlier, "--model-prefix", checkpoints / "12", "--keep-features",
        *options,
    )  # fmt: skip
    assert done.code == 0 and done.embedded == 0
    scores = np.load(earlier / "PocketNet" / "12_IJBC.npy")
    np.testing.assert_allclose(scores, scores_by_hand(by_hand, switches)[0], rtol=0, atol=1e-5)
    differs = np.abs(scores - scores_by_hand(by_hand, Switches())[0]).max() > 1e-4
    assert differs == (switches != Switches())
    off = [name for name, on in switches._asdict().items() if not on]
    assert read_results(earlier / "PocketNet")["12"]["switches"] == switches._asdict()
    # The other row of the table is of the first command, with all switches.
    assert (f"\n12: without {', '.join(off)}\n" in done.out) == bool(off)
    assert (earlier / "PocketNet" / "features_12_IJBC").is_dir()


def test_openvino_gives_the_same(evaluate, ijb, checkpoints, scored, tmp_path):
    is_installed() or pytest.skip("OpenVINO is not installed")
    arguments = ["--image-path", ijb, "--result-dir", tmp_path, "--model-prefix", checkpoints / "12"]
    done = evaluate(*ALONE, "eval_runtime=openvino", *arguments)
    assert done.code == 0 and done.embedded == 0  # by PyTorch
    ours, before = (np.load(folder / "12_IJBC.npy") for folder in (tmp_path / "PocketNet", scored[0]))
    np.testing.assert_allclose(ours, before, rtol=0, atol=1e-4)


def test_two_processes_give_the_same(demo, ijb, checkpoints, scored, tmp_path):
    arguments = ["--image-path", ijb, "--result-dir", tmp_path, "--model-prefix", checkpoints / "12"]
    done = run_command(demo, SCRIPT, *DEMO, *arguments, "--job", "PocketNet", NPROC="2")
    assert done.returncode == 0, done.stderr
    ours, before = (np.load(folder / "12_IJBC.npy") for folder in (tmp_path / "PocketNet", scored[0]))
    np.testing.assert_allclose(ours, before, rtol=0, atol=1e-5)
    assert read_results(tmp_path / "PocketNet")["12"]["missing_images"] == 0
    assert done.stdout.count("img/s") == 1  # only rank 0 prints


# ------------------------------------------------------------------------------- several checkpoints, folders and disks


@pytest.mark.parametrize("processes", ["1", "2"])
def test_bad_checkpoints_are_left_out_and_named(demo, ijb, checkpoints, scored, tmp_path, processes):
    folder = add_bad_checkpoints(Path(shutil.copytree(checkpoints, tmp_path / "checkpoints")))
    arguments = ["--image-path", ijb, "--result-dir", tmp_path, "--model-prefix", folder, "--job", "mine"]
    done = run_command(demo, SCRIPT, *DEMO, *arguments, NPROC=processes)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert re.fullmatch(bad_checkpoints_error(5), done.stderr), done.stderr
    assert "nan" not in done.stdout and list(read_results(tmp_path / "mine")) == ["6", "12"]
    lines = (tmp_path / "mine" / "IJBC.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["6", "12"]
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == LEFT


def test_results_of_other_checkpoints_are_kept_and_marked_when_their_file_changes(evaluate, ijb, checkpoints, tmp_path):
    folder, job = Path(shutil.copytree(checkpoints, tmp_path / "checkpoints")), tmp_path / "PocketNet"
    arguments = ["--image-path", ijb, "--result-dir", tmp_path, "--batch-size", BATCH]
    for step in (6, 12):
        assert evaluate(*ALONE, *arguments, "--model-prefix", folder / str(step)).code == 0
    assert [line.split()[0] for line in (job / "IJBC.txt").read_text().splitlines()[1:3]] == ["6", "12"]
    shutil.copy(checkpoints / "12backbone.pth", folder / "6backbone.pth")
    done = evaluate(*ALONE, *arguments, "--model-prefix", folder / "12")
    assert done.code == 0 and "file has changed since" in read_results(job)["6"]["outdated"]
    assert (job / "IJBC.txt").read_text().splitlines()[1].split()[0] == "12"
    assert "outdated" not in read_results(job)["12"]


def test_two_networks_in_one_job_keep_their_results(evaluate, ijb, checkpoints, tmp_path):
    """Scores and embeddings of equal steps too."""
    one, other = (Path(shutil.copytree(checkpoints, tmp_path / name / "nets")) for name in "ab")
    job = tmp_path / "PocketNet"
    shutil.copy(other / "12backbone.pth", other / "6backbone.pth")
    arguments = ["--image-path", ijb, "--result-dir", tmp_path, "--batch-size", BATCH, "--keep-features"]
    for folder in (one, other):
        assert evaluate(*ALONE, *arguments, "--model-prefix", folder / "6").code == 0
    name = f"6 ({unique_folder_name(other)})"
    assert list(read_results(job)) == ["6", name] and "outdated" not in str(read_results(job))
    assert not np.array_equal(*(np.load(job / f"{step}_IJBC.npy") for step in ("6", name)))
    table = (job / "IJBC.txt").read_text()
    assert (
        f"steps without a name: checkpoints in {one}\nsteps with ({unique_folder_name(other)}): checkpoints in {other}"
        in table
    )
    for folder in (one, other):  # each finds its embeddings again
        assert evaluate(*ALONE, *arguments, "--model-prefix", folder / "6").embedded == 0


def test_the_job_is_called_after_the_checkpoints_folder(evaluate, ijb, checkpoints, tmp_path, monkeypatch):
    monkeypatch.delenv("IJB_JOB")
    folders = [Path(shutil.copytree(checkpoints, tmp_path / name / "nets")) for name in ("a", "b")]
    for folder in folders:
        arguments = ["--image-path", ijb, "--result-dir", tmp_path / "results", "--model-prefix", folder / "6"]
        assert evaluate(*ALONE, *arguments).code == 0
    jobs = sorted((tmp_path / "results").iterdir())
    assert len(jobs) == 2 and all(job.name.startswith("nets-") and list(read_results(job)) == ["6"] for job in jobs)


def test_links_are_replaced_and_a_broken_file_too(evaluate, ijb, checkpoints, earlier, tmp_path):
    names = ["6_IJBC.npy", "IJBC.pdf", "IJBC.png", "IJBC.txt"]
    for name in names:
        (tmp_path / name).write_text("precious")
        (earlier / "PocketNet" / name).unlink()
        (earlier / "PocketNet" / name).symlink_to(tmp_path / name)
    (earlier / "PocketNet" / "results.json").write_text("[" * 200_000)
    done = evaluate(*ALONE, "--image-path", ijb, "--result-dir", earlier, "--model-prefix", checkpoints / "6")
    assert done.code == 0 and list(read_results(earlier / "PocketNet")) == ["6"]
    assert (earlier / "PocketNet" / "results.json.damaged").read_text() == "[" * 200_000
    assert done.out.count("damaged, or not a results file") == 1
    for name in names:
        assert (tmp_path / name).read_text() == "precious" and not (earlier / "PocketNet" / name).is_symlink()


def test_files_that_cannot_be_written_are_one_line_after_the_table(evaluate, ijb, checkpoints, earlier):
    """Folders at the paths of the files, in place of a full disk."""
    for name in ("IJBC.png", "6_IJBC.npy"):
        (earlier / "PocketNet" / name).unlink()
        (earlier / "PocketNet" / name).mkdir()
    done = evaluate(*ALONE, "--image-path", ijb, "--result-dir", earlier, "--model-prefix", checkpoints / "6")
    assert done.code == 2 and re.search(r"\n +IJBC: TPR in % at FPR .*\n +6 ", done.out)
    assert re.fullmatch(r"error: .*IJBC\.png could not be written \(Is a directory\) and stay as.*\n", done.err), (
        done.err
    )
    (earlier / "PocketNet" / "IJBC.png").rmdir()
    done = evaluate(*ALONE, "--image-path", ijb, "--result-dir", earlier, "--model-prefix", checkpoints / "6")
    assert done.code == 2 and "6_IJBC.npy could not be written (Is a directory)" in done.err


# -------------------------------------------------------------------------------------------------------- interruptions


class PipedImage:
    """An image that is a pipe: its reader waits until it is fed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)

    def wait(self, process: subprocess.Popen) -> int:
        """Opens it for writing once the process has opened it."""
        while process.poll() is None:
            try:
                return os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # it has no reader yet
                time.sleep(0.01)
        pytest.fail(f"ended: {process.communicate()}")

    def feed(self, process: subprocess.Popen, done: Path) -> None:
        """Writes the image to the pipe and waits for the file that the process writes afterwards."""
        with os.fdopen(self.wait(process), "wb") as stream:
            stream.write(self.content)
        while not done.is_file():
            assert process.poll() is None
            time.sleep(0.01)

    def fix(self) -> None:
        """Makes it an image again."""
        self.path.unlink()
        self.path.write_bytes(self.content)


def start(demo: Path, *command: object) -> subprocess.Popen:
    """Starts a command as `run_command` runs it, in a group of processes of its own."""
    plain = {key: value for key, value in os.environ.items() if key not in ("NPROC", "NNODES", "PYTHONPATH")}
    return subprocess.Popen(
        list(map(str, command)),
        cwd=demo,
        env=plain | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A run in the background of a shell ignores Ctrl-C, and what it starts would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


# The script, except that it reads an image from a pipe.
PIPES = """
import eval.IJB.features as features
from eval.IJB.evaluate import main
from utils.errors import run_cli

features.open_regular_file = lambda path: open(path, "rb")
"""
# And for the seconds between two times that it marks on disk what is done.
DRIVER = f"{PIPES}\nfeatures._FLUSH_INTERVAL = -1\nrun_cli(main)\n"


def test_the_same_command_resumes_after_ctrl_c(demo, evaluate, ijb_copy, checkpoints, scored, tmp_path):
    """After an interruption at the second checkpoint, the first is not embedded again."""
    n, folder = len(read_lists(ijb_copy).names), tmp_path / "PocketNet"
    piped = PipedImage(ijb_copy / "loose_crop" / read_lists(ijb_copy).names[PIPED_INDEX])
    arguments = [*DEMO, "--image-path", ijb_copy, "--result-dir", tmp_path, "--model-prefix", checkpoints]
    arguments += ["--batch-size", BATCH]
    process = start(demo, sys.executable, "-c", f"{PIPES}\nrun_cli(main)\n", *arguments)
    piped.feed(process, folder / "6_IJBC.npy")
    writer = piped.wait(process)
    embeddings = np.load(folder / "features_12_IJBC" / "direct.npy", mmap_mode="r")
    while not embeddings[2 * BATCH - 1].any():  # the worker, which waits for the third batch, is ahead
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    os.close(writer)
    assert process.returncode == 130 and not err, err
    embedded = int(np.load(folder / "features_12_IJBC" / "done.npy").sum())
    assert embedded in (BATCH, 2 * BATCH)
    piped.fix()
    done = evaluate(*arguments, "workers=0")
    assert done.code == 0, done.err
    assert done.embedded == n - embedded
    assert f"IJBC 6: {n} images are already done, 0 to go" in done.out
    assert f"IJBC 12: {embedded} images are already done, {n - embedded} to go" in done.out
    assert sorted(path.name for path in folder.iterdir()) == LEFT
    for name in ("6_IJBC.npy", "12_IJBC.npy"):
        assert (folder / name).read_bytes() == (scored[0] / name).read_bytes()
    assert read_results(folder) == read_results(scored[0])


def test_the_same_command_resumes_after_a_kill(demo, evaluate, ijb_copy, checkpoints, scored, tmp_path):
    n = len(read_lists(ijb_copy).names)
    piped = PipedImage(ijb_copy / "loose_crop" / read_lists(ijb_copy).names[PIPED_INDEX])
    arguments = [
        *ALONE, "--image-path", ijb_copy, "--result-dir", tmp_path, "--model-prefix", checkpoints / "12",
        "--batch-size", BATCH,
    ]  # fmt: skip
    process = start(demo, sys.executable, "-c", DRIVER, *arguments)
    writer = piped.wait(process)
    process.kill()
    process.communicate(timeout=60)
    os.close(writer)
    piped.fix()
    done = evaluate(*arguments)
    assert done.code == 0 and done.embedded == n - 32
    assert (tmp_path / "PocketNet" / "12_IJBC.npy").read_bytes() == (scored[0] / "12_IJBC.npy").read_bytes()


def test_the_same_command_resumes_after_an_unreadable_image_is_fixed(evaluate, ijb_copy, checkpoints, tmp_path):
    lists = read_lists(ijb_copy)
    path = ijb_copy / "loose_crop" / lists.names[40]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    arguments = [
        *ALONE, "--image-path", ijb_copy, "--result-dir", tmp_path, "--model-prefix", checkpoints / "12",
        "--batch-size", BATCH,
    ]  # fmt: skip
    assert evaluate(*arguments).code == 2
    path.write_bytes(content)
    done = evaluate(*arguments)
    assert done.code == 0 and done.embedded == len(lists.names) - 32


def test_another_checkpoint_of_the_same_name_is_embedded_again(evaluate, ijb, checkpoints, scored, earlier, tmp_path):
    shutil.copy(checkpoints / "6backbone.pth", tmp_path / "12backbone.pth")
    (earlier / "PocketNet" / "results.json").unlink()  # which would keep the two apart by their names
    arguments = ["--image-path", ijb, "--result-dir", earlier, "--batch-size", BATCH]
    done = evaluate(*ALONE, *arguments, "--model-prefix", tmp_path / "12")
    assert done.code == 0 and done.embedded == len(read_lists(ijb).names)
    assert (earlier / "PocketNet" / "12_IJBC.npy").read_bytes() == (scored[0] / "6_IJBC.npy").read_bytes()


def test_images_are_embedded_again_for_other_landmarks_but_not_for_other_templates(
    evaluate, ijb_copy, checkpoints, tmp_path
):
    n = len(read_lists(ijb_copy).names)
    arguments = [*ALONE, "--result-dir", tmp_path, "--model-prefix", checkpoints / "12", "--keep-features"]
    assert evaluate(*arguments, "--image-path", ijb_copy).embedded == n
    templates = list_path(ijb_copy, "face_tid_mid")
    templates.write_text(re.sub(r"\d+$", "1", templates.read_text(), flags=re.M))  # all of one medium
    before = np.load(tmp_path / "PocketNet" / "12_IJBC.npy")
    assert evaluate(*arguments, "--image-path", ijb_copy).embedded == 0
    assert np.abs(np.load(tmp_path / "PocketNet" / "12_IJBC.npy") - before).max() > 1e-4
    landmarks = list_path(ijb_copy, "name_5pts_score")
    landmarks.write_text(re.sub(r" (\d+\.)", r" 1\1", landmarks.read_text(), count=5))
    assert evaluate(*arguments, "--image-path", ijb_copy).embedded == n
    ijb_copy.rename(ijb_copy.with_name("moved"))
    assert evaluate(*arguments, "--image-path", ijb_copy.with_name("moved")).embedded == n


# ------------------------------------------------------------------------------------------------------------ bad input


def assert_error(done: Evaluation, message: str) -> None:
    assert done.code == 2 and done.embedded == 0
    assert re.fullmatch(f"error: .*{message}.*\n", done.err), done.err


def test_what_is_missing_stops_the_run_or_is_left_out_and_counted(evaluate, ijb_copy, checkpoints, scored, tmp_path):
    lists = read_lists(ijb_copy)
    arguments = [
        *ALONE, "--image-path", ijb_copy, "--result-dir", tmp_path, "--model-prefix", checkpoints / "12",
        "--batch-size", BATCH,
    ]  # fmt: skip
    (first, *_), (person, *_) = lists.subjects(ijb_copy, "gallery_G1")
    probe = next(t for t, subject in zip(*lists.subjects(ijb_copy, "probe_mixed"), strict=True) if subject != person)
    gone = np.flatnonzero(np.isin(lists.templates, [first, probe])).tolist()
    broken = int(np.flatnonzero(~np.isin(lists.templates, [first, probe]))[-1])
    for row in gone:
        (ijb_copy / "loose_crop" / lists.names[row]).unlink()
    image = ijb_copy / "loose_crop" / lists.names[broken]
    image.write_bytes(image.read_bytes()[:-20])
    source, pairs = (list_path(ijb_copy, name) for name in ("name_5pts_score", "template_pair_label"))
    for where, row in ((pairs, 1), (pairs, len(lists.pairs))):
        lines = pairs.read_text().splitlines()
        pairs.write_text("\n".join([*lines[:row], f"{probe} 999999 0", *lines[row:], ""]))
        assert_error(evaluate(*arguments), re.escape(f"{where} line {row + 1}: template 999999 has no image; --skip-"))
        pairs.write_text("\n".join([*lines, f"{probe} 999999 0", ""]))

    lines = pairs.read_text().splitlines()
    pairs.write_text("\n".join([*lines[:-2], ""]))  # those alone that have their images
    more = rf" \(and {len(gone) - 1} more\)" if len(gone) > 1 else ""
    missing = ijb_copy / "loose_crop" / lists.names[gone[0]]
    assert_error(evaluate(*arguments), f"{re.escape(f'{source} line {gone[0] + 1}: {missing} is missing')}{more};")
    pairs.write_text("\n".join([*lines, ""]))

    with (ijb_copy / "meta" / "ijbc_1N_probe_mixed.csv").open("a") as stream:
        stream.write("999999,260,none.jpg,1\n")
    done = evaluate(*arguments, "--skip-missing")
    assert done.code == 0, done.err
    left_out = np.isin(lists.pairs[:, :2], [first, probe]).any(axis=1)
    result = read_results(tmp_path / "PocketNet")["12"]
    assert (result["images"], result["missing_images"]) == (len(lists.names) - len(gone) - 1, len(gone) + 1)
    assert (result["pairs"], result["skipped_pairs"]) == (int(np.sum(~left_out)), int(np.sum(left_out)) + 2)
    assert result["different"] == int(np.sum(~left_out & (lists.pairs[:, 2] == 0)))
    assert f"12: left out {len(gone) + 1} images and {np.sum(left_out) + 2} pairs\n" in done.out
    assert "(2 left out: a template has no image)" in done.out
    scores = np.load(tmp_path / "PocketNet" / "12_IJBC.npy")
    assert np.isnan(scores).tolist() == left_out.tolist()
    touched = np.isin(lists.pairs[:, :2], [first, probe, lists.templates[broken]]).any(axis=1)
    np.testing.assert_allclose(scores[~touched], np.load(scored[0] / "12_IJBC.npy")[~touched], rtol=0, atol=1e-6)
    curve_same = lists.pairs[~left_out, 2]
    assert result["auc"] == pytest.approx(roc_auc_score(curve_same, scores[~left_out]), abs=1e-12)
    assert result["identification"]["skipped_templates"] == 3
    assert (
        sum(gallery["mated"] for gallery in result["identification"]["galleries"])
        == PLAN.people * PLAN.probes - 1 - PLAN.probes
    )


def test_an_image_that_a_worker_cannot_read_is_named_by_its_line(demo, ijb_copy, tmp_path):
    lists = read_lists(ijb_copy)
    path, source = ijb_copy / "loose_crop" / lists.names[3], list_path(ijb_copy, "name_5pts_score")
    path.write_bytes(path.read_bytes()[:-100])
    source.write_text("\n\n" + source.read_text())
    failed = run_command(demo, SCRIPT, *DEMO, "--image-path", ijb_copy, "--result-dir", tmp_path)
    assert failed.returncode == 2
    assert failed.stderr == (
        f"error: {source} line 6: {path} cannot be decoded; --skip-missing leaves such images out and counts them\n"
    )


def test_a_malformed_line_is_named_by_its_number(evaluate, ijb_copy, tmp_path):
    for name, line, words in (
        ("name_5pts_score", 7, "should read 'file x1 y1"),
        ("face_tid_mid", 2, "should read 'file template medium'"),
        ("template_pair_label", 5, "should read 'template template label'"),
    ):
        path = list_path(ijb_copy, name)
        content = path.read_bytes()
        lines = content.splitlines(keepends=True)
        lines[line - 1] = b"\xff\0 nan\n"
        path.write_bytes(b"".join(lines))
        done = evaluate(*ALONE, "--image-path", ijb_copy, "--result-dir", tmp_path)
        assert_error(done, re.escape(f"{path} line {line}: {words}"))
        path.write_bytes(content)


def test_no_image_at_all(evaluate, ijb_copy, checkpoints, tmp_path):
    for path in (ijb_copy / "loose_crop").iterdir():
        path.unlink()
    arguments = ["--image-path", ijb_copy, "--result-dir", tmp_path, "--model-prefix", checkpoints / "12"]
    done = evaluate(*ALONE, *arguments, "--skip-missing")
    assert done.code == 2 and done.err.startswith("error: all 0 pairs are of one kind") and done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--target", "IJBA"], "--target IJBA: should be IJBB or IJBC"),
        (["--target", "ijbc"], "--target ijbc: should be IJBB or IJBC"),
        (["--target", "IJBB"], r"meta/ijbb_name_5pts_score\.txt: No such file"),
        (["--image-path", ""], "--image-path: name the folder of the set"),
        (["--image-path", "nowhere"], "--image-path 'nowhere': no folders loose_crop and meta in it"),
        (["--image-path", "train.py"], "--image-path 'train.py': no folders"),
        (["--image-path", "x" * 300], "--image-path 'x+': no folders"),
        (["--model-prefix", "nowhere"], "--model-prefix 'nowhere': no such checkpoint"),
        (["--model-prefix", "config"], r"--model-prefix: no \{global_step\}backbone\.pth in 'config'"),
        (["--model-prefix", "x" * 300], "--model-prefix 'x+': "),
        (["--model-prefix", "train.py"], r"train\.py: not a readable checkpoint"),
        (["--model-prefix", "output/demo/12header.pth"], r"12header\.pth: belongs to another network"),
        (["embedding_size=64"], r"0backbone\.pth: tail\.6\.weight.*check .*embedding_size"),
        (["net_name=iresnet18"], r"0backbone\.pth: belongs to another network"),
        (["eval_batch=0"], "config eval_batch: "),
        (["embeding_size=3"], "embeding_size: no such field"),
        (["--config", "config/none.py"], "no file 'config/none.py'"),
        (["--result-dir", "train.py"], "--result-dir 'train.py' --job 'PocketNet': Not a directory; name another"),
        (["--batch-size", "-1"], "--batch-size -1: should be at least 1"),
        (["--batch-size", "0"], "--batch-size 0: should be at least 1"),
        (["--job", ""], "--job '': should be a plain name without slashes"),
        (["--job", ".."], r"--job '\.\.': should be a plain name without slashes"),
        (["--job", "."], r"--job '\.': should be a plain name without slashes"),
        (["--job", "a/b"], "--job 'a/b': should be a plain name without slashes"),
        (["--job", "/tmp"], "--job '/tmp': should be a plain name without slashes"),
        (["--job", "a\nb"], r"--job 'a\\nb': should be a plain name without slashes"),
        (["--job", "a\udcff"], r"--job 'a\\udcff': should be a plain name without slashes"),
        (["--job", "x" * 300], "--job 'x+': File name too long; name another"),
    ],
)
def test_a_wrong_argument_is_one_line(evaluate, ijb, tmp_path, change, message):
    done = evaluate(*ALONE, "--image-path", ijb, "--result-dir", tmp_path / "results", *change)
    assert_error(done, message)


@pytest.mark.parametrize("job", ["PocketNet-S 128_a.b", "Größe=1", "日本", ".hidden"])
def test_a_job_may_have_any_plain_name(evaluate, ijb, checkpoints, earlier, job):
    (earlier / "PocketNet").rename(earlier / job)
    arguments = ["--image-path", ijb, "--result-dir", earlier, "--model-prefix", checkpoints / "12"]
    done = evaluate(*ALONE, *arguments, "--job", job)
    assert done.code == 0 and done.embedded == 0


def test_a_wrong_start_of_the_script_is_one_line(demo, tmp_path):
    failed = run_command(demo, SCRIPT, *DEMO, "--result-dir", tmp_path)
    assert failed.returncode == 2
    expected = "--image-path: name the folder of the set, which contains loose_crop and meta"
    assert failed.stderr == f"error: {expected}\n" and not failed.stdout
