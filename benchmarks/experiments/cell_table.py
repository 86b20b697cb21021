"""The table of random cells: as data, as text, and the rank of other cells in it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backbones.genotypes import Genotype, to_text
from benchmarks.experiments.cell_runs import MEASURES, Settings, train_cells
from benchmarks.experiments.cell_spread import percentile
from utils.errors import UserError

Table = dict[str, Any]  # the content of benchmarks/cells.json


def read_table(path: Path) -> Table:
    """Reads a table. Raises UserError if there is none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"--table {path}: cannot be read ({error!s:.80})", fix="make it with python -m benchmarks.experiments.cells"
        ) from None


def table_settings(table: Table) -> Settings:
    """Returns the settings that the cells of a table were trained with."""
    return Settings(**table["settings"] | {"changes": tuple(table["settings"]["changes"])})


def train_like_table(
    cells: Sequence[Genotype], table: Table, out: Path, parallel: int, threads: int
) -> list[dict[str, Any]]:
    """Trains and scores other cells as those of a table; returns their rows. The arguments are those of `train_cells`.

    The name of a cell's runs follows from its genotype, so that no cell is trained twice in a folder.
    """
    names = [f"rank-{hashlib.sha256(to_text(genotype).encode()).hexdigest()[:8]}" for genotype in cells]
    by_name = dict(zip(names, cells, strict=True))
    rows = train_cells(by_name, out, table_settings(table), table["seeds"], parallel, threads)
    return [rows[name] for name in names]


def random_scores(table: Table, name: str) -> np.ndarray:
    """Returns the scores of the random cells by a measure, (cells, seeds)."""
    return np.array([row["scores"][name] for row in table["random"].values()])


def format_table(table: Table) -> str:
    """Returns a row for each cell, the best EER first, and for each measure the spread."""
    rows = table["random"] | {"published": table["published"]}
    order = sorted(rows, key=lambda name: np.mean(rows[name]["scores"]["eer"]))
    lines = [f"{'':<12}{'M mult.-adds':>13}{'parameters':>12}" + "".join(f"{name + ' %':>12}" for name in MEASURES)]
    lines[0] += "   EER by seed"
    for name in order:
        row = rows[name]
        means = "".join(f"{np.mean(row['scores'][key]):>12.2f}" for key in MEASURES)
        by_seed = "  ".join(f"{value:.2f}" for value in row["scores"]["eer"])
        lines.append(f"{name:<12}{row['multiply_adds'] / 1e6:>13.2f}{row['parameters']:>12,}{means}   {by_seed}")
    lines += ["", f"{'random cells':<37}" + "".join(f"{key:>12}" for key in MEASURES)]
    for field, text in (
        ("mean", "mean"),
        ("between_cells", "standard deviation between cells"),
        ("between_seeds", "standard deviation between seeds"),
        ("icc", "intraclass correlation"),
        ("icc_low", "  95 % interval from"),
        ("icc_high", "  to"),
        ("icc_mean", "  of means over the seeds"),
        ("spearman", "rank correlation of seeds"),
    ):
        lines.append(f"{text:<37}" + "".join(f"{table['spread'][key][field]:>12.2f}" for key in MEASURES))
    return "\n".join(lines)


def rank(row: dict[str, Any], table: Table, measure: str) -> float:
    """Returns the percentile of a cell among the random cells of a table, by the mean over the seeds."""
    sign = -1 if measure == "eer" else 1  # of errors fewer are better
    others = sign * random_scores(table, measure).mean(axis=1)
    return percentile(sign * float(np.mean(row["scores"][measure])), others.tolist())


def format_rank(row: dict[str, Any], table: Table) -> str:
    """Returns the percentile of a cell among the random ones by each measure, in a line, and a second on its cost."""
    parts = []
    for name in MEASURES:
        score, published = (float(np.mean(cell["scores"][name])) for cell in (row, table["published"]))
        parts.append(f"{name} {score:.2f} ({rank(row, table, name):.0f}; published {published:.2f})")
    relative = row["multiply_adds"] / table["published"]["multiply_adds"] - 1
    lines = [f"  {'   '.join(parts)}"]
    if abs(relative) > table["drawn"]["tolerance"]:
        lines.append(f"  {100 * relative:+.1f} % multiply-adds: not at equal cost with the cells of the table")
    return "\n".join(lines)
