"""The comparison of searches: their runs, which are not repeated, and the ranks of what they find."""

import json
import sys
from pathlib import Path

import pytest

from backbones.genotypes import SOFTMAX_CASIA
from benchmarks.experiments import cell_runs, search_runs, searches
from config import load_config
from config.usage import unused_fields
from NAS.search import DEFAULT_CONFIG
from tests.helpers.faces import write_data
from utils.errors import UserError

SETTINGS = {
    "images": 40, "nuisance": 1.0, "test_people": 2, "pairs": 20, "channel": 2, "n_layers": 4, "embedding_size": 8,
    "steps": 4, "lr": 0.8, "changes": [],
}  # fmt: skip


@pytest.fixture
def commands(monkeypatch, tmp_path) -> list[list[str]]:
    """The commands that ran. Searches find the published cells; trainings score by the seed."""
    ran: list[list[str]] = []

    def command(arguments: list[str], threads: int) -> None:
        fields = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        if arguments[0] == "data/make_demo_faces.py":
            folder = tmp_path / arguments[arguments.index("--out") + 1]
            if not folder.exists():
                write_data(folder)
            (folder / "made.json").write_text("{}")
            return
        ran.append(arguments)
        if arguments[0] == "NAS/search.py":
            found = {"epoch": 0, "genotype": SOFTMAX_CASIA, "supernet_val": 0.25, "skips": 1}
            Path(fields["output"], "genotypes.jsonl").write_text(json.dumps(found) + "\n")
        elif arguments[0] == "eval/eval.py":
            score = 0.8 + 0.01 * int(fields["output"][-1])
            numbers = {"accuracy": score, "auc": score, "eer": 1 - score, "tar": {"1e-02": score}}
            Path(fields["output"], "results.json").write_text(json.dumps({"4": {"demo": numbers}}))

    for module in (cell_runs, search_runs, searches):
        monkeypatch.setattr(module, "command", command)
    monkeypatch.setattr(cell_runs, "ROOT", tmp_path)
    monkeypatch.setattr(searches, "FACES", tmp_path / "faces")
    return ran


@pytest.fixture
def table(tmp_path) -> dict:
    """A table of two random cells and the published ones, with an EER of 15, 25 and 20 %."""

    def row(eer: float) -> dict:
        scores = {"accuracy": [80, 80], "auc": [80, 80], "eer": [eer - 1, eer + 1], "tar": [80, 80]}
        return {"genotype": SOFTMAX_CASIA, "multiply_adds": 1, "scores": scores}

    table = {
        "settings": SETTINGS, "seeds": 2, "drawn": {"tolerance": 0.05}, "published": row(20),
        "random": {"random00": row(15), "random01": row(25)},
    }  # fmt: skip
    (tmp_path / "cells.json").write_text(json.dumps(table))
    return table


def test_searches_are_kept_and_their_cells_ranked(commands, table, tmp_path, monkeypatch, capsys):
    def run(*arguments: str) -> str:
        out = ["--table", str(tmp_path / "cells.json"), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["searches", *out, *arguments])
        searches.main()
        return capsys.readouterr().out

    first = run("--seeds", "2", "--epochs", "5")
    searched = [arguments for arguments in commands if arguments[0] == "NAS/search.py"]
    assert len(searched) == 2 * len(searches.KINDS)
    for arguments in searched:
        config = load_config(DEFAULT_CONFIG, arguments[1:])
        assert (config.channel, config.n_layers, config.embedding_size) == (2, 4, 8)
        assert config.num_epoch == (2 if config.second_order else 5)
        assert not unused_fields(config, "search")
    # All find the same cells, which are trained twice; the two trainings score an EER of 20 and 19 %.
    assert len([arguments for arguments in commands if arguments[0] == "train.py"]) == 4
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert {name: len(rows) for name, rows in results.items()} == dict.fromkeys(searches.KINDS, 2)
    for rows in results.values():
        assert all(row["percentile"] == 50 and row["scores"]["eer"] == pytest.approx([20, 19]) for row in rows)
    lines = {line.split()[0]: line.split()[2:] for line in first.splitlines() if line.strip()}
    assert all(lines[name] == ["19.50", "50", "50", "50"] for name in searches.KINDS)
    assert (tmp_path / "out/searches.png").is_file()

    commands.clear()
    run("--seeds", "2", "--epochs", "5")
    assert not commands
    run("--seeds", "1", "--epochs", "5", "--only", "beta-decay", "momentum=0.8")  # another search, the same cells
    assert [arguments[0] for arguments in commands] == ["NAS/search.py"]


def test_the_rows_of_a_table(table):
    rows = [table["random"]["random00"] | {"minutes": 3.0, "percentile": 100.0}]
    rows.append(table["random"]["random01"] | {"minutes": 6.0, "percentile": 25.0})
    _, row, published, random = searches.format_searches({"first-order": rows}, table).splitlines()
    assert row.split() == ["first-order", "4", "20.00", "62", "100", "25"]
    assert published.split() == ["published", "20.00", "50"] and random.split() == ["random,", "mean", "20.00"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "first-order,third-order"], "--only third-order: no such search; there are first-order, second"),
        (["--epochs", "0"], "--epochs 0: should be at least 1"),
        (
            ["--epochs", "1"],
            "--epochs 1: Beta-decay begins with the second epoch; leave it out with --only",
        ),
        (["--table", "none.json"], "--table none.json: cannot be read .*; make it with"),
    ],
)
def test_a_wrong_command_is_one_line(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["searches", *arguments])
    with pytest.raises(UserError, match=f"^{message}"):
        searches.main()
