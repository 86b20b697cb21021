"""1:N identification: searches probes in a gallery, closed-set (rank) and open-set (TPIR at FPIR)."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FPIRS = (0.01, 0.1)

Features = NDArray[np.float32]
Labels = NDArray[np.integer]


@dataclass(frozen=True)
class Identification:
    """Identification rates in one gallery. All but the counts are fractions from 0 to 1."""

    rank1: float  # fraction of the mated probes whose person is the most similar one in the gallery
    rank5: float  # fraction of the mated probes whose person is among the five most similar
    tpir: dict[float, float | None]  # by FPIR; None if there are too few non-mated probes to measure that FPIR
    mated: int  # number of probes of people in the gallery
    strangers: int  # number of non-mated probes, of people not in the gallery

    asdict = asdict


def identify(gallery: Features, people: Labels, probes: Features, subjects: Labels) -> Identification | None:
    """Searches probes (Q, D) of subjects (Q,) in a gallery (G, D) of people (G,), with normalised features.

    The similarity of a person is the highest of their templates. TPIR is the fraction of mated probes whose person
    ranks first with a similarity above the threshold. FPIR is the fraction of non-mated probes with any similarity
    above it. This is the detection and identification rate at rank 1 of open-set identification (Grother and Phillips,
    Handbook of Face Recognition, 2011). The threshold is the lowest with at most the given FPIR.

    Returns None if no probe is of a person in the gallery.
    """
    if not len(people):
        return None
    order = np.argsort(people, kind="stable")
    ids, starts = np.unique(people[order], return_index=True)
    similarities = np.maximum.reduceat(probes @ gallery[order].T, starts, axis=1)  # (Q, people)
    best = similarities.max(axis=1)
    column = np.minimum(np.searchsorted(ids, subjects), len(ids) - 1)
    mated = ids[column] == subjects
    if not mated.any():
        return None
    mate_similarities = similarities[mated, column[mated]]
    rank = (similarities[mated] > mate_similarities[:, np.newaxis]).sum(axis=1)  # 0: ranks first
    nonmated = np.sort(best[~mated])[::-1]
    tpir: dict[float, float | None] = dict.fromkeys(FPIRS)
    for fpir in FPIRS:
        allowed = int(fpir * len(nonmated) + 1e-9)
        if allowed:
            threshold = nonmated[allowed] if allowed < len(nonmated) else -np.inf
            tpir[fpir] = float(np.mean((rank == 0) & (mate_similarities > threshold)))
    return Identification(float(np.mean(rank == 0)), float(np.mean(rank < 5)), tpir, int(mated.sum()), len(nonmated))


def mean_identification(results: list[Identification]) -> dict[str, Any]:
    """Returns the mean over the galleries, as IJB reports it. A TPIR is None if any gallery's is None."""
    tpirs = {fpir: [result.tpir[fpir] for result in results] for fpir in FPIRS}
    return {
        "rank1": float(np.mean([result.rank1 for result in results])),
        "rank5": float(np.mean([result.rank5 for result in results])),
        "tpir": {
            str(fpir): None if None in rates else float(np.mean([rate for rate in rates if rate is not None]))
            for fpir, rates in tpirs.items()
        },
    }
