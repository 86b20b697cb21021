"""Times the search among embeddings: python -m benchmarks.gallery [--photos 1000000]

Random unit vectors of 128 numbers, five of a person. Beside it: the matrix product alone, and an exact index of
faiss (IndexFlatIP), where it is installed.
"""

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np

from deploy.gallery import Gallery

_DIMENSIONS, _PHOTOS_OF_A_PERSON, _ROUNDS = 128, 5, 3


def main() -> None:
    """Parses the command line and prints the seconds of one query and of 100."""
    parser = argparse.ArgumentParser(description="Time the search among embeddings.")
    parser.add_argument("--photos", type=int, default=1_000_000, help="number of photos (%(default)s)")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((args.photos, _DIMENSIONS), np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    photos = np.array([f"person{i // _PHOTOS_OF_A_PERSON}/{i}.jpg" for i in range(args.photos)])
    gallery = Gallery(embeddings, photos, "", "")
    gallery.search(embeddings[:1], 5)  # finds the people
    searches: dict[str, Callable[[np.ndarray], object]] = {
        "deploy.gallery": lambda queries: gallery.search(queries, 5),
        "matrix product alone": lambda queries: queries @ embeddings.T,
    }
    if find_spec("faiss"):
        import faiss

        index = faiss.IndexFlatIP(_DIMENSIONS)
        index.add(embeddings)
        searches["faiss IndexFlatIP"] = lambda queries: index.search(queries, 5)
    print(f"{args.photos:,} photos of {gallery.n_people:,} people, seconds")
    for count in (1, 100):
        for name, search in searches.items():
            print(f"{count:>4} queries  {name:22}{min(_time(search, embeddings[:count]) for _ in range(_ROUNDS)):8.3f}")


def _time(search: Callable[[np.ndarray], object], queries: np.ndarray) -> float:
    start = time.perf_counter()
    search(queries)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
