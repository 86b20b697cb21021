"""Draws verification accuracy against parameters and multiply-adds, for compact networks as published, and for ours.

    python -m benchmarks.tradeoff [--set agedb_30] [--out docs/tradeoff.png] [RUN …]

The published figures and their sources are in benchmarks/published.json. RUN: the folder of a run that eval/eval.py has
evaluated; the best checkpoint in its results.json is drawn.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from backbones.build import build_backbone
from config import CommandParser, load_config
from utils.errors import UserError, run_cli
from utils.filesystem import save_figure
from utils.flops import count_operations

PUBLISHED = Path(__file__).with_name("published.json")
TITLES = {
    "lfw": "LFW", "cfp_fp": "CFP-FP", "agedb_30": "AgeDB-30", "calfw": "CALFW", "cplfw": "CPLFW", "IJBB": "IJB-B",
    "IJBC": "IJB-C",
}  # fmt: skip
FONT_SIZE = 7

Box = tuple[float, float, float, float]  # left, bottom, right, top, in points


@dataclass(frozen=True)
class Network:
    """A point of the figure."""

    name: str
    parameters: float  # millions
    multiply_adds: float | None  # millions; None where none is published
    accuracy: float  # %
    is_ours: bool = False


def published_networks(name: str) -> list[Network]:
    """Returns the networks whose accuracy on a set has been published."""
    rows: list[dict[str, Any]] = json.loads(PUBLISHED.read_text())["networks"]
    return [Network(row["network"], row["parameters"], row["multiply_adds"], row[name]) for row in rows if name in row]


def evaluated_network(folder: Path, name: str) -> Network:
    """Returns the best checkpoint of a run on a set. Raises UserError where the run has no result on it."""
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text())
        accuracies = [sets[name]["accuracy"] for sets in results.values() if name in sets]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is no result of eval/eval.py ({error})", fix=f"run python eval/eval.py output={folder}"
        ) from None
    if not accuracies:
        raise UserError(
            f"{path}: has no result on {name}", fix=f"run python eval/eval.py output={folder} val_targets={name}"
        )
    cost = count_operations(build_backbone(load_config(None, [], saved_in=folder)))
    return Network(folder.name, cost.parameters / 1e6, cost.multiply_adds / 1e6, 100 * max(accuracies), is_ours=True)


def draw(networks: list[Network], name: str) -> Figure:
    """Returns the figure: accuracy against parameters at the left, against multiply-adds at the right."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _scatter(left, [(network.parameters, network) for network in networks])
    _scatter(right, [(network.multiply_adds, network) for network in networks if network.multiply_adds])
    left.set_xlabel("parameters (M)")
    left.set_ylabel(f"{TITLES[name]}, {'TAR at FAR 1e-4' if name.startswith('IJB') else 'accuracy'} (%)")
    right.set_xlabel("multiply-adds (M), as each paper counts them")
    return figure


def _scatter(axes: Any, points: list[tuple[float, Network]]) -> None:
    points = sorted(points, key=lambda point: not _is_highlighted(point[1]))  # their labels are placed first
    for x, network in points:
        highlighted = _is_highlighted(network)
        axes.scatter(
            x, network.accuracy, s=90 if highlighted else 26, marker="*" if highlighted else "o", c=_colour(network)
        )
    axes.grid(alpha=0.3)
    axes.margins(x=0.22, y=0.08)
    axes.figure.draw_without_rendering()  # fixes the scale of the axes
    to_points = 72 / axes.figure.dpi
    dots = [axes.transData.transform((x, network.accuracy)) * to_points for x, network in points]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in dots]  # boxes: left, bottom, right, top
    for (x, network), dot in zip(points, dots, strict=True):
        offset, box = _free_place(network.name, dot, taken)
        taken.append(box)
        far = abs(offset[1]) > 8
        axes.annotate(
            network.name, (x, network.accuracy), xytext=offset, textcoords="offset points", fontsize=FONT_SIZE,
            color=_colour(network) if _is_highlighted(network) else "black",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "gray", "shrinkB": 3} if far else None,
        )  # fmt: skip


def _free_place(text: str, dot: np.ndarray, taken: list[Box]) -> tuple[tuple[float, float], Box]:
    """Returns the offset of a label from its dot, in points, and the box it fills: where it overlaps least."""
    width, height = 0.56 * FONT_SIZE * len(text), FONT_SIZE
    offsets = [(dx, dy) for dy in (3, -9, 13, -19, 23, -29, 33) for dx in (5.0, -5 - width, -width / 2)]
    boxes = [(dot[0] + dx, dot[1] + dy, dot[0] + dx + width, dot[1] + dy + height) for dx, dy in offsets]
    best = min(range(len(boxes)), key=lambda i: sum(_overlap(boxes[i], box) for box in taken))
    return offsets[best], boxes[best]


def _overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _is_highlighted(network: Network) -> bool:
    return network.is_ours or network.name.startswith("PocketNet")


def _colour(network: Network) -> str:
    return "tab:green" if network.is_ours else "tab:red" if _is_highlighted(network) else "tab:gray"


def main() -> None:
    """Runs the command line."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="*", help="folders of evaluated runs, drawn as well")
    parser.add_argument("--set", choices=list(TITLES), default="agedb_30", help="verification set (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/tradeoff.png"), help="the picture (%(default)s)")
    args = parser.parse()
    networks = published_networks(args.set) + [evaluated_network(folder, args.set) for folder in args.runs]
    try:
        save_figure(args.out, draw(networks, args.set), dpi=110)
    except OSError as error:
        raise UserError(f"--out {args.out}: {error.strerror}", fix="name another file") from None
    print(f"{len(networks)} networks on {TITLES[args.set]}: {args.out}")


if __name__ == "__main__":
    run_cli(main)
