"""How CatBoost is fitted: what is tuned, the fixed settings that keep it fast and repeatable, out-of-fold use."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from catboost import CatBoostClassifier, CatBoostError
from numpy.typing import NDArray

from infer.contract import SmaltiError
from preproc.classify.folds import Folds
from preproc.classify.model import probabilities

_COLUMNS = 24
"""Embedding numbers looked at for a split, drawn anew each time: far faster than all, and no less accurate."""

_FEW_ROWS = 100
"""With fewer rows each tree sees all of them: CatBoost refuses to draw a part of very few."""

Weights = Literal["None", "SqrtBalanced", "Balanced"]


@dataclass(frozen=True)
class Parameters:
    """What is tuned."""

    iterations: int = 160
    """Trees (times the number of classes)."""
    depth: int = 5
    learning_rate: float = 0.12
    l2_leaf_reg: float = 3.0
    class_weights: Weights = "SqrtBalanced"
    """How rare classes are lifted; computed by CatBoost from the rows of each fit, so inside the folds."""


def parameters(values: Mapping[str, Any]) -> Parameters:
    """The same from a mapping of all fields, as `asdict` gives it."""
    return Parameters(**values)


def fit(x_nc: NDArray[np.float32], code_n: NDArray[Any], chosen: Parameters, seed: int) -> CatBoostClassifier:
    """Fit on rows (N, C) with class codes (N,).

    One thread a fit: the model file records the number of threads, and folds run side by side instead.

    Raises:
        SmaltiError: if CatBoost refuses the rows, for example because all of them are equal.
    """
    settings = asdict(chosen)
    if len(x_nc) >= _FEW_ROWS:
        settings.update(bootstrap_type="Bernoulli", subsample=0.8)
    else:
        settings.update(bootstrap_type="No")
    weights = settings.pop("class_weights")
    model = CatBoostClassifier(
        loss_function="MultiClass",
        auto_class_weights=None if weights == "None" else weights,
        border_count=32,
        rsm=min(1.0, _COLUMNS / x_nc.shape[1]),
        boosting_type="Plain",
        random_seed=seed,
        thread_count=1,
        allow_writing_files=False,
        verbose=False,
        **settings,
    )
    try:
        model.fit(np.ascontiguousarray(x_nc), code_n)
    except CatBoostError as error:
        reason = str(error).strip().splitlines()[0].rpartition(": ")[2]
        raise SmaltiError(f"CatBoost cannot be trained on these {len(x_nc)} samples: {reason}: add labels") from error
    return model


def out_of_fold(
    x_nc: NDArray[np.float32],
    code_n: NDArray[Any],
    codes_k: NDArray[Any],
    folds: Folds,
    chosen: Parameters,
    *,
    seed: int,
    workers: int,
) -> NDArray[np.float32]:
    """Probabilities of each row from a model that saw none of its group.

    Args:
        x_nc: (N, C) embeddings.
        code_n: (N,) class codes.
        codes_k: (K,) all codes, ascending: the columns of the result.
        folds: who tests when.
        chosen: parameters.
        seed: of CatBoost.
        workers: folds fitted side by side; it does not change the result.

    Returns:
        (N, K) float32; a class that the training side of a fold lacks has probability 0 there.
    """
    result_nk = np.zeros((len(code_n), len(codes_k)), dtype=np.float32)

    def one(fold: int) -> tuple[NDArray[np.bool_], NDArray[np.intp], NDArray[np.float32]]:
        test = folds.fold_n == fold
        known = np.unique(code_n[~test])
        if len(known) == 1:  # CatBoost refuses a single class
            return test, np.searchsorted(codes_k, known), np.ones((int(test.sum()), 1), dtype=np.float32)
        model = fit(x_nc[~test], code_n[~test], chosen, seed)
        return test, np.searchsorted(codes_k, known), probabilities(model, x_nc[test], threads=1)

    with ThreadPoolExecutor(max(1, min(workers, folds.count))) as pool:
        for test, columns, values in pool.map(one, range(folds.count)):
            result_nk[np.ix_(test, columns)] = values
    return result_nk
