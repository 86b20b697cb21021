"""The published IJB evaluation, computed one image, template and probe at a time."""

import numpy as np

from eval.IJB.identification import FPIRS
from eval.IJB.templates import Switches


def published_features(direct, flipped, det_scores, switches: Switches) -> np.ndarray:
    """Computes the features of images by the published formula, one at a time in float64."""
    features = []
    for one, other, score in zip(direct.astype(float), flipped.astype(float), det_scores.astype(float), strict=True):
        feature = one + other if switches.flip else one
        if not switches.norm:
            feature = feature / np.sqrt(np.sum(feature**2))
        features.append(feature * score if switches.detector else feature)
    return np.array(features)


def published_templates(features, templates, media) -> np.ndarray:
    """Pools features by template: the mean of each medium, the sum of the media, of unit length."""
    pooled = []
    for template in sorted(set(templates.tolist())):
        total = np.zeros(features.shape[1])
        for medium in sorted(set(media[templates == template].tolist())):
            total += features[(templates == template) & (media == medium)].astype(float).mean(axis=0)
        pooled.append(total / np.linalg.norm(total))
    return np.array(pooled)


def published_search(gallery, people, probes, subjects) -> tuple[float, float, dict[float, float | None], int, int]:
    """Returns rank 1 and 5, TPIR by FPIR, and the numbers of mated and unmated probes."""
    mated, strangers = [], []
    for probe, subject in zip(probes, subjects, strict=True):
        best: dict[int, float] = {}
        for template, person in zip(gallery, people, strict=True):
            best[person] = max(best.get(person, -np.inf), float(template @ probe))
        if subject in best:
            mated.append((sum(other > best[subject] for other in best.values()), best[subject]))
        else:
            strangers.append(max(best.values()))
    tpir: dict[float, float | None] = {}
    for fpir in FPIRS:
        thresholds = sorted({*strangers, *(mate for _, mate in mated), np.inf})
        fit = [t for t in thresholds if sum(s >= t for s in strangers) <= fpir * len(strangers) + 1e-9]
        found = float(np.mean([rank == 0 and mate >= min(fit) for rank, mate in mated]))
        tpir[fpir] = found if fpir * len(strangers) >= 1 - 1e-9 else None
    ranks = np.array([rank for rank, _ in mated])
    return float(np.mean(ranks == 0)), float(np.mean(ranks < 5)), tpir, len(mated), len(strangers)
