"""Pictures of a search: both cells of a genotype as graphs, and the alphas as a heat map. Needs matplotlib alone.

python NAS/visualize.py --config FILE [genotype=NAME] [--out cells.png]
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script, this folder stands first on the path instead of the project's
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from backbones.genotypes import N_INPUTS, Genotype, Node, parse
from config import add_config_arguments, load_config
from utils.errors import UserError, run

_COLOURS = {"max_pool": "tab:green", "avg_pool": "tab:olive", "skip_connect": "tab:gray", "dw_conv": "tab:blue"}


def draw_cells(genotype: Genotype, title: str = "") -> Figure:
    """Both cells: the states from left to right, an arrow for each operation, and what is concatenated."""
    figure = Figure(figsize=(12, 9), layout="constrained")
    if title:
        figure.suptitle(title)
    kinds = (
        ("normal", genotype.normal, genotype.normal_concat),
        ("reduction", genotype.reduce, genotype.reduce_concat),
    )
    for place, (name, nodes, concat) in enumerate(kinds, start=1):
        _draw_cell(figure.add_subplot(2, 1, place), nodes, concat, f"{name} cell")
    return figure


def _draw_cell(axes: Axes, nodes: list[Node], concat: list[int], title: str) -> None:
    names = ["c(k-2)", "c(k-1)", *map(str, range(len(nodes))), "c(k)"]
    # The inputs above each other on the left, the nodes on a zigzag, the output on the right.
    at = [(0.0, 1.0), (0.0, -1.0)] + [(2.0 + 2 * n, 0.6 if n % 2 else -0.6) for n in range(len(nodes))]
    at.append((2.0 + 2 * len(nodes), 0.0))
    taken: dict[tuple[int, int], int] = {}
    for n, edges in enumerate(nodes):
        for operation, state in edges:
            twice = taken.setdefault((state, n), 0)
            taken[state, n] += 1
            _arrow(
                axes, at[state], at[N_INPUTS + n], operation, bend=0.18 * (1 if (state + n) % 2 else -1) + 0.2 * twice
            )
    for state in concat:
        _arrow(axes, at[state], at[-1], "", bend=0.05)
    for state, ((x, y), name) in enumerate(zip(at, names, strict=True)):
        is_node = N_INPUTS <= state < N_INPUTS + len(nodes)
        colour = "lightblue" if is_node else "lightgreen" if state < N_INPUTS else "khaki"
        axes.text(
            x, y, name, ha="center", va="center", zorder=3, bbox={"boxstyle": "round,pad=0.5", "facecolor": colour}
        )
    axes.set(xlim=(-0.8, at[-1][0] + 0.8), ylim=(-2.2, 2.2), title=title)
    axes.set_axis_off()


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str, bend: float) -> None:
    colour = next((value for name, value in _COLOURS.items() if text.startswith(name)), "lightgray")
    style = {"arrowstyle": "-|>", "color": colour, "connectionstyle": f"arc3,rad={bend}", "shrinkA": 18, "shrinkB": 18}
    axes.annotate("", xy=end, xytext=start, arrowprops=style, zorder=1)
    if text:
        (x0, y0), (x1, y1) = start, end
        # The top of the arc: half the bend away from the line, on the side that arc3 takes.
        x, y = (x0 + x1) / 2 + bend * (y1 - y0) / 2, (y0 + y1) / 2 - bend * (x1 - x0) / 2
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color=colour, zorder=2,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip


def draw_alphas(normal: list[np.ndarray], reduce: list[np.ndarray], operations: tuple[str, ...]) -> Figure:
    """The softmax over each edge's operations, a row an edge, of both cells."""
    figure = Figure(figsize=(12, 0.3 * sum(map(len, normal)) + 3), layout="constrained")
    for place, (name, nodes) in enumerate((("normal cell", normal), ("reduction cell", reduce)), start=1):
        axes = figure.add_subplot(1, 2, place)
        weights = np.concatenate(nodes)  # (edges, operations)
        image = axes.imshow(
            weights, vmin=0, vmax=max(2 / len(operations), weights.max()), cmap="viridis", aspect="auto"
        )
        edges = [f"{state} → {N_INPUTS + n}" for n, of_node in enumerate(nodes) for state in range(len(of_node))]
        axes.set_xticks(range(len(operations)), operations, rotation=60, ha="right")
        axes.set_yticks(range(len(edges)), edges)
        axes.set_title(name)
    figure.colorbar(image, ax=figure.axes, label="weight")
    return figure


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw the cells of a config's genotype.")
    add_config_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("cells.png"), help="the picture (%(default)s)")
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides)
    figure = draw_cells(parse(config.genotypes[config.genotype]), config.genotype)
    try:
        figure.savefig(args.out, dpi=100)
    except (OSError, ValueError) as error:  # ValueError: a kind of file that matplotlib does not write
        raise UserError(f"--out {args.out}: {error!s:.100}") from None
    print(args.out)


if __name__ == "__main__":
    run(main)
