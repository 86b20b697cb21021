"""Draws the cells of a genotype as graphs, and the alphas of a search as heat maps. Needs matplotlib, but no torch.

python NAS/visualize.py --config FILE [genotype=NAME] [--out cells.png]
"""

import math
import sys
from collections import Counter
from pathlib import Path

if not __package__:  # run as a script: this folder is first on the path; use the project's instead
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.path import Path as Curve

from backbones.genotypes import N_INPUTS, Genotype, Node, parse_genotype
from config import CommandParser, add_config_arguments, load_config, path_argument, warn_unused_fields
from utils.errors import UserError, run_cli
from utils.filesystem import save_figure

_COLOURS = {"max_pool": "tab:green", "avg_pool": "tab:olive", "skip_connect": "tab:gray", "dw_conv": "tab:blue"}
_BOX_WIDTH, _BOX_HEIGHT = 0.5, 0.3  # of the box of a state; boxes are 1 apart


def draw_cells(genotype: Genotype, title: str = "") -> Figure:
    """Draws both cells, with the states in a row.

    Arcs above the row are operations, arcs below it lead from concatenated states to the output.
    """
    kinds = (
        ("normal", genotype.normal, genotype.normal_concat),
        ("reduction", genotype.reduce, genotype.reduce_concat),
    )
    longest = max(len(genotype.normal), len(genotype.reduce))
    figure = Figure(figsize=(max(8, 4 + 1.8 * longest), max(6, 4 + 1.2 * longest)), layout="constrained")
    if title:
        figure.suptitle(title)
    for row, (name, nodes, concat) in enumerate(kinds, start=1):
        _draw_cell(figure.add_subplot(2, 1, row), nodes, concat, f"{name} cell")
    return figure


def _draw_cell(axes: Axes, nodes: list[Node], concat: list[int], title: str) -> None:
    """Draws a cell: state i is a box around (i, 0). Arcs leave the row between their ends, so they cross no box."""
    names = ["c(k-2)", "c(k-1)", *map(str, range(len(nodes))), "c(k)"]
    output = len(names) - 1
    drawn: Counter[tuple[int, int]] = Counter()
    for node, edges in enumerate(nodes, start=N_INPUTS):
        for operation, state in edges:
            _arc(axes, state, node, operation, height=0.4 * (node - state) + 0.3 * drawn[state, node])
            drawn[state, node] += 1
    for state in concat:
        _arc(axes, state, output, "", height=-0.15 * (output - state))
    for state, name in enumerate(names):
        colour = "lightgreen" if state < N_INPUTS else "khaki" if state == output else "lightblue"
        corner = state - _BOX_WIDTH / 2, -_BOX_HEIGHT / 2
        axes.add_patch(Rectangle(corner, _BOX_WIDTH, _BOX_HEIGHT, facecolor=colour, edgecolor="black"))
        axes.text(state, 0, name, ha="center", va="center")
    axes.set(xlim=(-0.5, output + 0.5), ylim=(-0.15 * output - 0.3, 0.4 * output + 0.2), title=title)
    axes.set_axis_off()


def _arc(axes: Axes, start: int, end: int, text: str, height: float) -> None:
    """Draws an arrow between two states, which rises by `height` above the boxes, or falls below them if negative."""
    colour = next((value for name, value in _COLOURS.items() if text.startswith(name)), "lightgray")
    edge = math.copysign(_BOX_HEIGHT / 2, height)
    leave, arrive = start + _BOX_WIDTH / 4, end - _BOX_WIDTH / 4
    control = edge + height * 4 / 3  # a cubic curve rises to 3/4 of its control points
    points = [(leave, edge), (leave, control), (arrive, control), (arrive, edge)]
    curve = Curve(points, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
    axes.add_patch(FancyArrowPatch(path=curve, arrowstyle="-|>", mutation_scale=12, color=colour))
    if text:
        axes.text((leave + arrive) / 2, edge + height, text, ha="center", va="center", fontsize=8, color=colour,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip


def draw_alphas(normal: list[np.ndarray], reduce: list[np.ndarray], operations: tuple[str, ...]) -> Figure:
    """Draws the softmax of the alphas of both cells as heat maps, with a row per edge.

    normal, reduce: for each node an array (input states, operations).
    """
    figure = Figure(figsize=(12, 0.3 * sum(map(len, normal)) + 3), layout="constrained")
    for column, (name, nodes) in enumerate((("normal cell", normal), ("reduction cell", reduce)), start=1):
        axes = figure.add_subplot(1, 2, column)
        weights = np.concatenate(nodes)  # (edges, operations)
        image = axes.imshow(
            weights, vmin=0, vmax=max(2 / len(operations), weights.max()), cmap="viridis", aspect="auto"
        )
        edges = [f"{state} → {N_INPUTS + n}" for n, node in enumerate(nodes) for state in range(len(node))]
        axes.set_xticks(range(len(operations)), operations, rotation=60, ha="right")
        axes.set_yticks(range(len(edges)), edges)
        axes.set_title(name)
    figure.colorbar(image, ax=figure.axes, label="weight")
    return figure


def main() -> None:
    """Runs the command."""
    parser = CommandParser("Draw the cells of the genotype in a config.")
    add_config_arguments(parser)
    parser.add_argument(
        "--out", type=path_argument, default=Path("cells.png"), help="file of the picture (%(default)s)"
    )
    args = parser.parse()
    config = load_config(args.config, args.overrides)
    warn_unused_fields(config, "visualize")
    figure = draw_cells(parse_genotype(config.genotypes[config.genotype]), config.genotype)
    try:
        save_figure(args.out, figure, dpi=100)
    except OSError as error:
        raise UserError(f"--out {args.out}: {error.strerror}") from None
    except ValueError as error:  # a file format that matplotlib does not support
        raise UserError(f"--out {args.out}: {error!s:.100}") from None
    print(args.out)


if __name__ == "__main__":
    run_cli(main)
