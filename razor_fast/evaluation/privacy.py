"""Membership inference: can an attacker tell forget samples the model was trained on from ones it never saw?"""

import warnings

import numpy as np

from ..errors import DataError, NonFiniteError

__all__ = ["membership_auc"]


def membership_auc(members, others, *, seed=0, folds=5, repeats=4):
    """AUC of a cross-validated logistic attack (in the manner of Shokri et al. 2017, arXiv 1610.05820).

    members, others: arrays [N, F] and [M, F] of per-sample features (loss, alignment, ...) of samples the model was
    trained on and of samples it never saw. Each fold's attack is fitted on the other folds and scores the held-out
    samples; the result is the mean of the folds' AUCs over `repeats` divisions into folds. AUCs are taken fold by fold
    because scores of different folds come from different attacks: pooled, they read below 0.5 where nothing leaks.
    Raises DataError when either side has fewer samples than two folds need, or when the two have other features,
    NonFiniteError for NaN or infinite features.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    members, others = np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if members.ndim != 2 or others.ndim != 2 or members.shape[1:] != others.shape[1:]:
        raise DataError(
            f"members {list(members.shape)} and others {list(others.shape)} were given; expected [N, F] and [M, F]"
        )
    if not (np.isfinite(members).all() and np.isfinite(others).all()):
        raise NonFiniteError("the features of the membership attack hold NaN or infinity; look at the model's losses")
    folds = min(folds, len(members), len(others))
    if folds < 2:
        raise DataError(
            f"a membership attack needs at least 2 samples on each side; got {len(members)} members and {len(others)} others"
        )
    features = np.concatenate([members, others])
    truth = np.concatenate([np.ones(len(members)), np.zeros(len(others))])
    attack = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=RuntimeWarning)
        for repeat in range(repeats):
            splits = StratifiedKFold(folds, shuffle=True, random_state=(seed * 1_000_003 + repeat) % 2**32)
            for fit, held_out in splits.split(features, truth):
                scores = attack.fit(features[fit], truth[fit]).decision_function(features[held_out])
                found.append(roc_auc_score(truth[held_out], scores))
    return float(np.mean(found))
