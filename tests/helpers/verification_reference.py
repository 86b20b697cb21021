"""The published verification, computed one fold, threshold and pair at a time."""

import numpy as np
from sklearn.model_selection import KFold

from eval.verification import FINE_THRESHOLDS, THRESHOLDS


def published_verification(dist, same, n_folds):
    """Computes the published evaluation fold by fold, threshold by threshold, pair by pair."""
    accuracy, best, curves, val, far = [], [], [], [], []
    for train, test in KFold(n_folds, shuffle=False).split(dist):
        train_accuracy = [rates(t, dist[train], same[train])[2] for t in THRESHOLDS]
        best.append(THRESHOLDS[np.argmax(train_accuracy)])
        accuracy.append(rates(best[-1], dist[test], same[test])[2])
        curves.append([rates(t, dist[test], same[test])[:2] for t in THRESHOLDS])
        train_far = np.nan_to_num([rates(t, dist[train], same[train])[1] for t in FINE_THRESHOLDS])
        threshold = 0.0
        if train_far.max() >= 1e-3:
            left = np.flatnonzero(train_far <= 1e-3)[-1]
            threshold = FINE_THRESHOLDS[left]
            if train_far[left] < 1e-3:
                share = (1e-3 - train_far[left]) / (train_far[left + 1] - train_far[left])
                threshold += share * (FINE_THRESHOLDS[left + 1] - FINE_THRESHOLDS[left])
        val.append(rates(threshold, dist[test], same[test])[0])
        far.append(rates(threshold, dist[test], same[test])[1])
    tpr, fpr = np.nan_to_num(curves).mean(axis=0).T
    return accuracy, best, tpr, fpr, np.nanmean(val), np.nanstd(val), np.nanmean(far)


def rates(threshold, dist, same):
    """Returns true accept rate, false accept rate and accuracy; a rate without pairs is NaN."""
    tp = fp = correct = 0
    for accepted, is_same in zip(np.less(dist.astype(np.float64), threshold), same, strict=True):
        tp += bool(accepted and is_same)
        fp += bool(accepted and not is_same)
        correct += bool(accepted == is_same)
    n_same, n_different = int(same.sum()), int((~same).sum())
    return tp / n_same if n_same else np.nan, fp / n_different if n_different else np.nan, correct / len(same)
