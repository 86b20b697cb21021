"""Searches for the people in photos: python -m deploy.search faces.npz PHOTO … [--top 5] [--far 1e-3]

faces.npz is a file of python -m deploy.embed. Prints the people whose similarity reaches the threshold, best first, or
that nobody of the file is in the photo. The threshold holds for one comparison: among many people a stranger reaches it
more often, and the last line says how often.
"""

from pathlib import Path

from config import CommandParser, path_argument
from deploy.arguments import add_model_arguments, add_threshold_arguments, load_embedder
from deploy.gallery import Gallery, Match
from deploy.networks.thresholds import Threshold, choose_threshold
from utils.errors import UserError, one_line, run_cli


def main() -> None:
    """Parses the command line, searches and prints the matches."""
    parser = CommandParser("Search for the people in photos.")
    parser.add_argument("gallery", type=path_argument, metavar="GALLERY", help="a file of python -m deploy.embed")
    parser.add_argument("photos", type=path_argument, nargs="+", metavar="PHOTO", help="a photo of one person")
    parser.add_argument("--top", type=int, default=5, help="number of people to show (%(default)s)")
    add_model_arguments(parser)
    add_threshold_arguments(parser)
    args = parser.parse()
    if args.top < 1:
        raise UserError(f"--top: should be at least 1, is {args.top}")
    gallery = Gallery.load(args.gallery)
    args.model = args.model or gallery.model
    embedder = load_embedder(args)
    if embedder.model.sha256 != gallery.sha256:
        raise UserError(
            f"{args.gallery}: was made with another network than {embedder.model.path}",
            fix=f"name that one with --model (it was {gallery.model}), or embed the photos again",
        )
    threshold = choose_threshold(embedder.model.thresholds, args.far, str(embedder.model.path), args.set)
    for photo, matches in zip(args.photos, gallery.search(embedder.embed(args.photos), args.top), strict=True):
        print(format_matches(photo, matches, threshold.cosine))
    print(format_threshold(threshold, gallery))


def format_matches(photo: Path, matches: list[Match], threshold: float) -> str:
    """Returns a line for each match that reaches the threshold, or one line that says that there is none."""
    found = [match for match in matches if match.similarity >= threshold]
    if not found:
        return one_line(f"{photo}: nobody here (nearest: {matches[0].person}, {matches[0].similarity:.3f})")
    lines = [f"  {match.similarity:.3f}  {match.person}  {match.photo}" for match in found]
    return "\n".join(map(one_line, [f"{photo}:", *lines]))


def format_threshold(threshold: Threshold, gallery: Gallery) -> str:
    """Returns a line on the threshold, and on how often it takes a stranger for one of the people.

    If comparisons are independent, a stranger reaches it at least as often as if each person had one photo, and, as the
    photos of a person resemble each other, at most as often as if each photo were of another person.
    """
    low, high = (100 * (1 - (1 - threshold.far) ** n) for n in (gallery.n_people, len(gallery.photos)))
    return f"threshold {threshold}; among {gallery.n_people:,} people {low:.2g} to {high:.2g} % of strangers reach it"


if __name__ == "__main__":
    run_cli(main)
