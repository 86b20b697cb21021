"""1:N identification: who of a gallery is it, and is it anybody there?"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FPIRS = (0.01, 0.1)

Features = NDArray[np.float32]
Labels = NDArray[np.integer]


@dataclass(frozen=True)
class Identification:
    """All but the counts are fractions from 0 to 1."""

    rank1: float  # mated probes whose person is the most similar of the gallery
    rank5: float  # … among the five most similar
    tpir: dict[float, float | None]  # by FPIR; None where the probes of strangers are too few to tell
    mated: int  # probes of people of the gallery
    strangers: int  # probes of others

    asdict = asdict


def identify(gallery: Features, people: Labels, probes: Features, subjects: Labels) -> Identification | None:
    """Search probes (Q, D) of subjects (Q,) in a gallery (G, D) of people (G,), all features normalised.

    A person's similarity is that of his best template. TPIR: mated probes whose person comes first, above the
    threshold; FPIR: strangers of whom anybody does (the detection and identification rate at rank 1 of open-set
    identification; Grother and Phillips, Handbook of Face Recognition, 2011). The threshold is the lowest at which no
    more than FPIR of the strangers are taken for somebody.

    None where no probe is of a person of the gallery.
    """
    if not len(people):
        return None
    order = np.argsort(people, kind="stable")
    names, starts = np.unique(people[order], return_index=True)
    similarities = np.maximum.reduceat(probes @ gallery[order].T, starts, axis=1)  # (Q, people)
    best = similarities.max(axis=1)
    place = np.minimum(np.searchsorted(names, subjects), len(names) - 1)
    mated = names[place] == subjects
    if not mated.any():
        return None
    mates = similarities[mated, place[mated]]
    rank = (similarities[mated] > mates[:, np.newaxis]).sum(axis=1)  # 0: the first
    strangers = np.sort(best[~mated])[::-1]
    tpir: dict[float, float | None] = dict.fromkeys(FPIRS)
    for fpir in FPIRS:
        allowed = int(fpir * len(strangers) + 1e-9)
        if allowed:
            threshold = strangers[allowed] if allowed < len(strangers) else -np.inf
            tpir[fpir] = float(np.mean((rank == 0) & (mates > threshold)))
    return Identification(float(np.mean(rank == 0)), float(np.mean(rank < 5)), tpir, int(mated.sum()), len(strangers))


def mean_of(results: list[Identification]) -> dict[str, Any]:
    """The mean over the galleries, as IJB reports it; where one cannot tell a TPIR, none is given."""
    tpirs = {fpir: [result.tpir[fpir] for result in results] for fpir in FPIRS}
    return {
        "rank1": float(np.mean([result.rank1 for result in results])),
        "rank5": float(np.mean([result.rank5 for result in results])),
        "tpir": {
            str(fpir): None if None in found else float(np.mean([rate for rate in found if rate is not None]))
            for fpir, found in tpirs.items()
        },
    }
