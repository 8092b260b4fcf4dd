"""Membership inference: can an attacker tell forget samples the model was trained on from ones it never saw?"""

import warnings

import numpy as np

from ..errors import DataError, NonFiniteError

__all__ = ["membership_auc"]


def membership_auc(members, others, *, seed=0, folds=5):
    """AUC of a cross-validated logistic attack (in the manner of Shokri et al. 2017, arXiv 1610.05820).

    members, others: arrays [N, F] and [M, F] of per-sample features (loss, alignment, ...) of samples the model was
    trained on and of samples it never saw. Each fold's attack is fitted on the others and scores the held-out samples;
    the AUC is that of all held-out scores. 0.5 means nothing leaks; values below it are fold noise.
    Raises DataError when either side has fewer samples than two folds need, or when the two have other features,
    NonFiniteError for NaN or infinite features.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
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
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=RuntimeWarning)
        scores = cross_val_predict(attack, features, truth, cv=splits, method="decision_function")
    return float(roc_auc_score(truth, scores))
