"""How CatBoost is fitted: what is tuned, the fixed settings that keep it fast and repeatable."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from infer.contract import JsonObject, SmaltiError
from preproc.run.workers import OneAtATime

if TYPE_CHECKING:
    from catboost import CatBoostClassifier, CatBoostRegressor

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


def refuse_missing_gpu() -> None:
    """Make sure that CatBoost finds a GPU.

    Raises:
        SmaltiError: if there is none that it can use.
    """
    from catboost.utils import get_gpu_device_count  # as below

    count = get_gpu_device_count()
    if count < 1:
        raise SmaltiError(
            '[classify] task_type = "GPU": CatBoost finds no GPU here (it needs one of NVIDIA with its driver): '
            'set task_type = "CPU", or train on a node that has one'
        )


def fit(
    x_nc: NDArray[np.float32],
    code_n: NDArray[Any],
    chosen: Parameters,
    seed: int,
    *,
    threads: int = 1,
    task_type: str = "CPU",
) -> CatBoostClassifier:
    """Fit on rows (N, C) with class codes (N,).

    The model file records the number of threads, and sums over rows depend on it: it is a part of the recipe, never
    what this machine happens to have. Folds take one thread each and run side by side.

    Raises:
        SmaltiError: if CatBoost refuses the rows, for example because all of them are equal.
    """
    settings = asdict(chosen)
    if len(x_nc) >= _FEW_ROWS:
        settings.update(bootstrap_type="Bernoulli", subsample=0.8)
    else:
        settings.update(bootstrap_type="No")
    if task_type == "CPU":  # on a GPU CatBoost looks at all columns
        settings.update(rsm=min(1.0, _COLUMNS / x_nc.shape[1]))
    weights = settings.pop("class_weights")
    settings.update(
        loss_function="MultiClass",
        auto_class_weights=None if weights == "None" else weights,
        border_count=32,
        boosting_type="Plain",
        random_seed=seed,
        thread_count=threads,
        task_type=task_type,
    )
    return cast("CatBoostClassifier", fit_catboost("CatBoostClassifier", settings, x_nc, code_n))


FITS = OneAtATime()
"""A fit sets CatBoost's handler of Ctrl-C when it begins and clears it when it ends, and another one in a thread beside
it may call it just then: the process ends with a segmentation fault (1.2.10; seen once in some ten thousand fits)."""


def fit_catboost(
    kind: Literal["CatBoostClassifier", "CatBoostRegressor"],
    settings: JsonObject,
    x_nc: NDArray[np.float32],
    target_n: NDArray[Any],
) -> CatBoostClassifier | CatBoostRegressor:
    """Fit a model of CatBoost; threads may do so side by side.

    Args:
        kind: of model.
        settings: its arguments.
        x_nc: (N, C) rows.
        target_n: (N,) what is learned.

    Raises:
        SmaltiError: if CatBoost refuses the rows.
    """
    from catboost import CatBoostError  # here: it takes long, and whoever looks at a run fits none

    try:
        return FITS.call(_fit, kind, settings, np.ascontiguousarray(x_nc), target_n)
    except CatBoostError as error:
        reason = str(error).strip().splitlines()[0].rpartition(": ")[2]
        raise SmaltiError(f"CatBoost cannot be trained on these {len(x_nc)} samples: {reason}: add labels") from error


def _fit(kind: str, settings: JsonObject, x_nc: NDArray[np.float32], target_n: NDArray[Any]) -> Any:
    import catboost  # as above

    return getattr(catboost, kind)(allow_writing_files=False, verbose=False, **settings).fit(x_nc, target_n)
