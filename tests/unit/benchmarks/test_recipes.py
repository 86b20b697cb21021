"""The comparison of recipes: its statistics, which runs it repeats, and the commands it runs."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.experiments import kept_runs, scored_runs
from benchmarks.experiments.kept_runs import finish_all
from benchmarks.experiments.paired import draw, paired_difference, table
from benchmarks.experiments.recipes import BASELINE, RECIPES, Setting, check, write_class_means
from benchmarks.experiments.scored_runs import ScoredRun
from config import load_config
from config.usage import unused_fields
from tests.helpers.paths import ROOT
from utils.datasets.face_dataset import FaceDataset
from utils.distillation.targets import open_caches
from utils.errors import UserError
from utils.filesystem import save_figure

ACCURACIES = {"arcface": [90.0, 91.0, 89.5, 90.2, 90.9], "cosface": [91.5, 91.8, 91.1, 90.9, 92.6]}


def test_the_difference_and_its_interval_are_those_of_the_paired_t_test():
    found = paired_difference(ACCURACIES["cosface"], ACCURACIES["arcface"])
    expected = stats.ttest_rel(ACCURACIES["cosface"], ACCURACIES["arcface"]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.mean == pytest.approx(1.26)


def test_the_table_and_the_picture_show_every_method(tmp_path):
    first, baseline, other = table(ACCURACIES, "arcface").splitlines()
    assert first.split() == ["accuracy", "to", "arcface", "95", "%", "interval", "by", "seed"]
    assert baseline.split() == ["arcface", "90.32", "±", "0.63", "90.00", "91.00", "89.50", "90.20", "90.90"]
    found = paired_difference(ACCURACIES["cosface"], ACCURACIES["arcface"])
    assert f"91.58 ± 0.67       +1.26    {found.low:+.2f} to {found.high:+.2f}   91.50  91.80" in other
    figure = draw(ACCURACIES, "arcface", "accuracy")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["arcface", "cosface"]
    save_figure(tmp_path / "figure.png", figure, dpi=20)


class Commands:
    """Stands in for the commands of the project: notes them, and writes the score."""

    def __init__(self, monkeypatch) -> None:
        self.scripts: list[str] = []
        self.fails = False
        monkeypatch.setattr(scored_runs, "command", self)

    def __call__(self, arguments: list[str], threads: int) -> None:
        self.scripts.append(arguments[0])
        folder = next(scored_runs.Path(text[7:]) for text in arguments if text.startswith("output="))
        if arguments[0] == "eval/eval.py":
            if self.fails:
                raise UserError("interrupted")
            scores = {"20": {"lfw": {"accuracy": 0.5}}, "40": {"lfw": {"accuracy": 0.925}}}
            (folder / "results.json").write_text(json.dumps(scores))
        else:
            (folder / "40backbone.pth").touch()


def test_a_finished_run_is_kept_an_interrupted_one_resumes_and_other_inputs_start_over(tmp_path, monkeypatch):
    commands = Commands(monkeypatch)
    weights = tmp_path / "teacher.pth"
    weights.write_text("first")
    run = ScoredRun(tmp_path / "run", ["train.py", "lr=1"], (tmp_path, "lfw"), "images", (weights,))
    commands.fails = True
    with pytest.raises(UserError, match="interrupted"):
        finish_all([run], 2)
    assert run.result() is None and (run.folder / "40backbone.pth").exists()
    (run.folder / "result.json").write_text('{"inputs"')  # cut short
    commands.fails = False
    (run.folder / "40backbone.pth").write_text("of the interrupted run")
    finish_all([run], 2)
    assert run.accuracy() == pytest.approx(92.5) and (run.folder / "40backbone.pth").read_text()
    finish_all([run, run], 2)
    assert commands.scripts == ["train.py", "eval/eval.py"] * 2
    for other, content in (
        (replace(run, training=["train.py", "lr=2"]), "first"),
        (replace(run, data="other images"), "first"),
        (run, "second"),
    ):
        weights.write_text(content)
        assert other.result() is None
        (run.folder / "40backbone.pth").write_text("of the run before")
        finish_all([other], 1)
        assert not (run.folder / "40backbone.pth").read_text()
    assert len(commands.scripts) == 10


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path, monkeypatch):
    Commands(monkeypatch)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "295672backbone.pth").touch()
    with pytest.raises(UserError, match=r"teacher: was not made by this experiment; choose another --out"):
        finish_all([ScoredRun(tmp_path / "teacher", ["train.py"], (tmp_path, "lfw"), "images", ())], 1)
    assert (tmp_path / "teacher" / "295672backbone.pth").exists()


def test_the_time_of_a_run_is_that_of_all_attempts(tmp_path, monkeypatch):
    commands, run = Commands(monkeypatch), ScoredRun(tmp_path / "run", ["train.py"], (tmp_path, "lfw"), "images", ())
    times = iter([10.0, 13.0, 20.0, 24.0])
    monkeypatch.setattr(kept_runs.time, "perf_counter", lambda: next(times))
    commands.fails = True
    with pytest.raises(UserError, match="interrupted"):
        run.finish(1)
    commands.fails = False
    assert run.finish(1)["seconds"] == 7


def test_every_recipe_is_a_valid_config_that_differs_in_its_own_fields_alone(tmp_path, tiny_data):
    files, changes = (tmp_path / "teacher.pth", tmp_path / "header.pth"), ["m=0.5", "batch_size=8"]
    setting = Setting(tiny_data, (tiny_data, "tiny"), ["teacher_cache=b"], *files, 12, changes)
    plain, *others = (setting.run(tmp_path, name, 3) for name in RECIPES)
    shared = set(plain.training[1:])
    for run in (plain, *others):
        script, _, config_file, *fields = run.training
        own = {text.split("=")[0] for text in run.training[1:] if text not in shared}
        assert shared <= set(run.training) and own <= {"loss", "m", "distill", "header_from", "header_frozen",
            "teacher_pth", "teacher_cache"}  # fmt: skip
        assert run.files[1:] == tuple(path for path in files if any(str(path) in text for text in fields))
        distills = script == "train_kd.py"
        config = load_config(ROOT / config_file, fields, distillation=distills)
        assert set(unused_fields(config, script[:-3])) <= {"w", "teacher_channel", "teacher_n_layers", "teacher_cache",
            "teacher_pth", "teacher_global_step", "teacher_network"}  # fmt: skip
        assert (config.max_steps, config.num_epoch, config.lr_steps, config.seed) == (12, 3, [2], 3)
        assert config.m == pytest.approx({"cosface": 0.35, "adaface": 0.4, "arcface": 0.5}[config.loss])
    assert len({run.folder for run in (plain, *others)}) == len(RECIPES) and next(iter(RECIPES)) == BASELINE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 1}, "--seeds 1: should be at least 2"),
        ({"faces": "x"}, "--faces, --sets, --teacher: name all three, or none"),
        ({"only": "cosface,softmax"}, "--only softmax: no such recipe; there are arcface, cosface"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options, message):
    defaults = {"seeds": 5, "faces": None, "sets": None, "teacher": None, "only": "", "set": "lfw"}
    with pytest.raises(UserError, match=message):
        check(SimpleNamespace(**defaults | options))
    assert check(SimpleNamespace(**defaults)) == list(RECIPES)
    assert check(SimpleNamespace(**defaults | {"only": "mse"})) == ["arcface", "mse"]


def test_class_means_are_those_of_the_teachers_embeddings(tmp_path, tiny_data):
    (tmp_path / "1backbone.pth").touch()
    fields = [f"rec={tiny_data}", f"teacher_pth={tmp_path / '1backbone.pth'}", f"teacher_cache={tmp_path}"]
    config = load_config(ROOT / "config/config_demo_kd.py", [*fields, "embedding_size=8"], distillation=True)
    data = FaceDataset(tiny_data)
    (cache,) = open_caches(config, [tmp_path / "1backbone.pth"], data).values()
    cache.embeddings[:] = np.random.default_rng(0).standard_normal(cache.embeddings.shape)
    write_class_means(config, tmp_path / "means.pth")
    kernel = torch.load(tmp_path / "means.pth")["kernel"]
    labels = data.label_values.astype(int)
    for label in range(data.count_classes()):
        mean = np.asarray(cache.embeddings[labels == label], np.float64).mean((0, 1))
        np.testing.assert_allclose(kernel[:, label].numpy(), mean / np.linalg.norm(mean), atol=1e-6)
