"""Random cells at equal cost, the spread of their scores, and their runs, which are not repeated."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones.genotypes import SEARCH_SPACE, SOFTMAX_CASIA, Genotype, parse_genotype, to_text
from benchmarks.experiments import cell_runs, cells
from benchmarks.experiments.cell_spread import measure_spread, percentile
from benchmarks.experiments.equal_cost import derive_at_cost, read_search
from benchmarks.experiments.random_cells import draw_at_equal_cost, network_cost
from NAS.supernet import derive_nodes
from utils.errors import UserError

PUBLISHED = parse_genotype(SOFTMAX_CASIA)
SIZE = 2, 4, 8
KINDS = "normal", "reduce"


def test_cells_have_the_cost_of_the_published_ones_and_follow_from_the_seed():
    found, draws = draw_at_equal_cost(3, PUBLISHED, 0.1, SIZE, SEARCH_SPACE, 1)
    wanted = network_cost(PUBLISHED, *SIZE).multiply_adds
    assert draws > 3 and all(abs(network_cost(cell, *SIZE).multiply_adds / wanted - 1) <= 0.1 for cell in found)
    for cell in found:
        assert parse_genotype(to_text(cell)) == cell and cell.normal_concat == cell.reduce_concat == [2, 3, 4, 5]
        for node in (*cell.normal, *cell.reduce):
            assert len({state for _, state in node}) == 2 and "none" not in dict(node)
    fewer, _ = draw_at_equal_cost(2, PUBLISHED, 0.1, SIZE, SEARCH_SPACE, 1)
    assert fewer == found[:2] and found[0] not in found[1:]


def test_cells_of_no_such_cost_are_an_error(monkeypatch):
    monkeypatch.setattr("benchmarks.experiments.random_cells.MAX_DRAWS", 3)
    with pytest.raises(UserError, match=r"no cell within 0 % of .* in 3 draws; raise --tolerance"):
        draw_at_equal_cost(1, PUBLISHED, 0.0, SIZE, ("max_pool_3x3", "skip_connect"), 0)


def write_search(folder, found, alphas):
    line = {
        "epoch": 0,
        "genotype": to_text(found),
        "operations": SEARCH_SPACE,
        "alphas": {name: [node.tolist() for node in kind] for name, kind in zip(KINDS, alphas, strict=True)},
    }
    (folder / "genotypes.jsonl").write_text(json.dumps(line))


def test_cells_of_a_search_are_derived_at_equal_cost(tmp_path):
    """Also where the alphas favour the dearest or the cheapest operation."""
    wanted = network_cost(PUBLISHED, *SIZE).multiply_adds
    for favourite in ("dw_conv_7x7", "skip_connect"):
        rng = torch.Generator().manual_seed(0)
        alphas = [[torch.randn(2 + n, len(SEARCH_SPACE), generator=rng) for n in range(4)] for _ in range(2)]
        for node in (*alphas[0], *alphas[1]):
            node[:, SEARCH_SPACE.index(favourite)] += 3
        nodes = [derive_nodes(kind) for kind in alphas]
        found = Genotype(nodes[0], [2, 3, 4, 5], nodes[1], [2, 3, 4, 5])
        assert abs(network_cost(found, *SIZE).multiply_adds / wanted - 1) > 0.05
        write_search(tmp_path, found, alphas)
        for limit in (1, -1):
            (tmp_path / "config.json").write_text(json.dumps({"skip_limit": limit}))
            derived, origin = read_search(tmp_path, PUBLISHED, 0.05, SIZE)
            assert abs(network_cost(derived, *SIZE).multiply_adds / wanted - 1) <= 0.05
            assert origin == "derived at equal cost" and parse_genotype(derived) == derived
            skips = sum(operation == "skip_connect" for node in derived.normal for operation, _ in node)
            assert skips <= (1 if limit == 1 else 8)


def test_cells_of_a_search_with_the_cost_are_left_as_found(tmp_path):
    """Also with a limit of skip_connect, which derivation keeps one by one: other cells may have a greater sum."""
    (tmp_path / "config.json").write_text(json.dumps({"skip_limit": 2}))
    greater = 0
    for seed in range(8):
        rng = torch.Generator().manual_seed(seed)
        alphas = [[torch.randn(2 + n, len(SEARCH_SPACE), generator=rng) for n in range(4)] for _ in range(2)]
        normal, reduce = derive_nodes(alphas[0], skip_limit=2), derive_nodes(alphas[1])
        found = Genotype(normal, [2, 3, 4, 5], reduce, [2, 3, 4, 5])
        write_search(tmp_path, found, alphas)
        assert read_search(tmp_path, found, 0.05, SIZE) == (found, "as found")
        greater += derive_at_cost(*alphas, SEARCH_SPACE, 2, found, 0.05, SIZE) != found
    assert greater


def test_spread_of_scores_by_hand():
    """Mean squares 8 between and 1 within: variances (8 - 1) / 2 and 1."""
    spread = measure_spread(np.array([[1, 3], [3, 4], [6, 5]]) + 0.0)
    between = 2 * np.var([2, 3.5, 5.5], ddof=1)
    within = np.mean([2, 0.5, 0.5])
    assert spread.mean == pytest.approx(22 / 6)
    assert spread.between_cells == pytest.approx(np.sqrt((between - within) / 2))
    assert spread.between_seeds == pytest.approx(np.sqrt(within))
    assert spread.icc == pytest.approx((between - within) / (between + within))
    assert spread.icc_mean == pytest.approx(1 - within / between)
    assert spread.spearman == pytest.approx(1)
    assert spread.icc_low < spread.icc < spread.icc_high


def test_spread_finds_the_deviations_that_scores_were_made_with():
    rng = np.random.default_rng(0)
    scores = 90 + rng.normal(0, 0.5, (400, 1)) + rng.normal(0, 0.7, (400, 3))
    spread = measure_spread(scores)
    assert spread.between_cells == pytest.approx(0.5, abs=0.06)
    assert spread.between_seeds == pytest.approx(0.7, abs=0.04)
    assert spread.icc_low < 0.25 / 0.74 < spread.icc_high and spread.spearman == pytest.approx(0.33, abs=0.08)
    noise = measure_spread(np.array([[1, 2], [2, 1], [1, 2]]) + 0.0)
    assert noise.between_cells == 0 and noise.icc < 0


def test_percentile_counts_half_of_the_equal_ones():
    assert percentile(3, [1, 2, 3, 4]) == 62.5
    assert (percentile(0, [1, 2]), percentile(9, [1, 2])) == (0, 100)


@pytest.fixture
def trainings(monkeypatch, tmp_path) -> list[str]:
    """The output folders that were trained, in a table of runs that score their seed and a part of their genotype."""
    folders: list[str] = []

    def command(arguments: list[str], threads: int) -> None:
        fields = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        if arguments[0] == "data/make_demo_faces.py":
            folder = tmp_path / arguments[arguments.index("--out") + 1]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "made.json").write_text("{}")
        elif arguments[0] == "train.py" and fields["max_steps"] == "469":
            assert fields["lr"] == "0.8"
        elif arguments[0] == "train.py":
            assert (fields["max_steps"], fields["lr"]) == ("625", "0.08")
            folders.append(Path(fields["output"]).name)
            score = 0.01 * int(fields["seed"]) + 0.001 * fields["genotypes"].count("dw_conv")
            numbers = {"accuracy": score, "auc": score, "eer": 1 - score, "tar": {"1e-02": score}}
            Path(fields["output"], "results.json").write_text(json.dumps({"7": {"demo": numbers}, "3": {"demo": {}}}))

    monkeypatch.setattr(cell_runs, "command", command)
    monkeypatch.setattr(cell_runs, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return folders


def test_runs_are_kept_and_a_cell_is_ranked_among_them(trainings, monkeypatch, capsys):
    small = [
        "--channel",
        "2",
        "--layers",
        "4",
        "--steps",
        "625",
        "--images",
        "40",
        "--tolerance",
        "0.2",
        "--table",
        "cells.json",
    ]

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["cells", *small, *arguments])
        cells.main()
        return capsys.readouterr().out

    assert "published" in run("--cells", "2", "momentum=0.5")
    wanted = [f"{name}-{seed}" for seed in (0, 1) for name in ("random00", "random01", "published")]
    assert sorted(trainings) == sorted(wanted)
    run("--cells", "3", "momentum=0.5")
    assert sorted(trainings) == sorted([*wanted, "random02-0", "random02-1"])  # the others are done
    table = json.loads(Path("cells.json").read_text())
    assert list(table["random"]) == ["random00", "random01", "random02"]
    assert table["settings"]["changes"][-1] == "momentum=0.5" and Path("output/cells/cells.png").is_file()
    for row in (*table["random"].values(), table["published"]):
        score = 0.1 * row["genotype"].count("dw_conv")
        assert row["scores"]["auc"] == pytest.approx([score, score + 1])
    assert table["spread"]["auc"]["spearman"] == pytest.approx(1)

    trainings.clear()
    Path("mine.txt").write_text(SOFTMAX_CASIA)
    ranked = run("--rank", "mine.txt", SOFTMAX_CASIA)  # the same cells twice
    assert len(trainings) == 2 and all(name.startswith("rank-") for name in trainings)
    row, same = json.loads(Path("output/cells/ranks.json").read_text())
    assert row["scores"] == same["scores"] == table["published"]["scores"]
    assert ranked.count("; published") == 8 and "equal cost" not in ranked
    run("--cells", "2", "momentum=0.6")  # other settings: all anew
    assert len(trainings) == 2 + 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1"], "--seeds 1: should be at least 2"),
        (["--images", "30"], "--images 30: should be a multiple of 20"),
        (["lr=0.1"], "lr=0.1: not a field to change here; --steps and --lr"),
        (["--rank", "nothing.txt"], "--table none.json: cannot be read"),
    ],
)
def test_a_wrong_command_is_one_line(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cells", "--table", "none.json", *arguments])
    with pytest.raises(UserError, match=f"^{message}"):
        cells.main()
