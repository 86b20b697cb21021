"""Compares the faces of two photos: python -m deploy.compare A.jpg B.jpg [--model PATH] [--far 1e-3]

Finds and aligns both faces, and prints the similarity and whether it reaches the threshold that an evaluation of the
network wrote to thresholds.json. --picture draws both faces with the verdict.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from config import CommandParser, path_argument
from deploy.arguments import add_model_arguments, add_threshold_arguments, load_embedder
from deploy.networks.thresholds import choose_threshold
from utils.errors import UserError, run_cli
from utils.filesystem import save_figure


def main() -> None:
    """Parses the command line, compares the faces and prints the verdict."""
    parser = CommandParser("Compare the faces of two photos.")
    parser.add_argument("a", type=path_argument, metavar="A", help="a photo")
    parser.add_argument("b", type=path_argument, metavar="B", help="another one")
    add_model_arguments(parser)
    add_threshold_arguments(parser)
    parser.add_argument("--picture", type=path_argument, metavar="FILE", help="draw both faces and the verdict")
    args = parser.parse()
    embedder = load_embedder(args)
    threshold = choose_threshold(embedder.model.thresholds, args.far, str(embedder.model.path), args.set)
    faces = np.stack([embedder.align(photo) for photo in (args.a, args.b)])
    first, second = embedder.embed_aligned(faces)
    similarity = float(first @ second)
    verdict = "the same person" if similarity >= threshold.cosine else "different people"
    print(f"similarity {similarity:.3f}, threshold {threshold}: {verdict}")
    if args.picture:
        _save_picture(args.picture, faces, f"{verdict}: {similarity:.3f}, threshold {threshold.cosine:.3f}")


def _save_picture(path: Path, faces: NDArray[np.uint8], title: str) -> None:
    """Draws two aligned faces (2, 112, 112, 3) beside each other. Raises UserError if the file cannot be written."""
    figure = Figure(figsize=(4.8, 2.9), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.add_subplot()
    axes.imshow(np.hstack(list(faces)))
    axes.set_axis_off()
    try:
        save_figure(path, figure, dpi=100)
    except (OSError, ValueError) as error:  # ValueError: a format that matplotlib does not write
        raise UserError(f"--picture {path}: {error}") from None


if __name__ == "__main__":
    run_cli(main)
