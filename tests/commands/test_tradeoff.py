"""The figure of accuracy against size: its published points, and a run of ours beside them."""

import json
import sys

import cv2
import pytest

from benchmarks.tradeoff import PUBLISHED, evaluated_network, published_networks
from config import load_config
from eval.reporting.published import published_result
from tests.helpers.commands import copy_run, run_command
from tests.helpers.paths import ROOT
from utils.errors import UserError

SETS = ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw", "IJBB", "IJBC")


def test_points_of_pocketnets_are_those_of_the_evaluation():
    for size in ("S128", "S256", "M128", "M256"):
        config = load_config(ROOT / "config" / f"config_PocketNet{size}.py")
        for name in SETS:
            (point,) = [p for p in published_networks(name) if p.name == f"PocketNet{size[0]}-{size[1:]}"]
            assert point.accuracy == published_result(config, name)


def test_every_point_has_a_source():
    content = json.loads(PUBLISHED.read_text())
    assert all(row["source"] in content["sources"] for row in content["networks"])
    assert len(published_networks("agedb_30")) == 24


def test_a_run_is_drawn_beside_them(demo, tmp_path):
    run = copy_run(demo / "output" / "demo", tmp_path / "mine")
    (run / "results.json").unlink(missing_ok=True)  # another test may have evaluated the demo
    with pytest.raises(UserError, match=r"results\.json: is no result of eval/eval\.py"):
        evaluated_network(run, "lfw")
    (run / "results.json").write_text(json.dumps({"6": {"lfw": {"accuracy": 0.9}}, "12": {"lfw": {"accuracy": 0.95}}}))
    with pytest.raises(UserError, match=r"has no result on cfp_fp; run python eval/eval\.py"):
        evaluated_network(run, "cfp_fp")
    network = evaluated_network(run, "lfw")
    assert network.accuracy == 95 and 0.01 < network.parameters < 0.2
    out = tmp_path / "figure.png"
    command = [sys.executable, "-m", "benchmarks.tradeoff", run, "--set", "lfw", "--out", out]
    done = run_command(ROOT, *command, new_interpreter=True)
    assert done.returncode == 0 and done.stdout == f"25 networks on LFW: {out}\n", done.stderr
    assert cv2.imread(str(out)).std() > 1
