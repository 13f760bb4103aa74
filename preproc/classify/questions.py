"""What a study looks for: the parameters of a classifier, or of a model of numbers, and what says which are better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infer.contract import JsonObject
from preproc.classify import regression
from preproc.classify.accuracy import count_matrix, macro_f1
from preproc.classify.methods import Method, fold_probabilities, parameters
from preproc.classify.regression import NumberParameters
from preproc.classify.table import Samples

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Space: TypeAlias = "dict[str, BaseDistribution]"


@cache
def _spaces() -> Mapping[Method | None, Space]:
    """Method, or None of a number -> where its parameters are looked for."""
    # here: whoever looks at a run tunes nothing
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    even = CategoricalDistribution(["None", "Balanced"])
    return {
        "catboost": {
            "iterations": IntDistribution(60, 300, step=20),
            "depth": IntDistribution(3, 6),
            "learning_rate": FloatDistribution(0.03, 0.3, log=True),
            "l2_leaf_reg": FloatDistribution(1.0, 30.0, log=True),
            "class_weights": CategoricalDistribution(["None", "SqrtBalanced", "Balanced"]),
        },
        "linear": {"c": FloatDistribution(1e-4, 10.0, log=True), "class_weights": even},
        "knn": {"neighbours": IntDistribution(1, 31, step=2), "class_weights": even},
        "mlp": {
            "hidden": IntDistribution(16, 128, step=16),
            "alpha": FloatDistribution(1e-4, 1.0, log=True),
            "iterations": IntDistribution(20, 100, step=20),
        },
        None: {
            "iterations": IntDistribution(60, 400, step=20),
            "depth": IntDistribution(2, 6),
            "learning_rate": FloatDistribution(0.02, 0.3, log=True),
            "l2_leaf_reg": FloatDistribution(1.0, 30.0, log=True),
        },
    }


@dataclass(frozen=True)
class Question(ABC):
    """A method and the rows (N) that its parameters are tried on."""

    samples: Samples
    method: Method

    measure: ClassVar[str]
    """What a score is."""
    better: ClassVar[int]
    """1: the more of it, the better; -1: the less."""
    dtype: ClassVar[type[np.generic]]
    """Of what is kept of a row."""

    @property
    @abstractmethod
    def space(self) -> Space:
        """Where parameters are looked for."""

    @abstractmethod
    def parameters(self, values: JsonObject | None = None) -> Any:
        """A dataclass of all parameters; the defaults without values."""

    @abstractmethod
    def tell(self, test_n: NDArray[np.bool_], chosen: Any, seed: int) -> NDArray[Any]:
        """(M,) what the M rows of `test_n` get from a model of all others: whatever `score` needs."""

    @abstractmethod
    def plausible(self, told_n: NDArray[Any]) -> bool:
        """Whether this can be what rows got, of a trial that was read."""

    @abstractmethod
    def score(self, told_n: NDArray[Any], weights_n: NDArray[Any]) -> float:
        """Of what the rows got, each counted so many times."""


class ClassQuestion(Question):
    """Which parameters tell classes apart: by macro-F1 of all rows that were tested, to which rare classes matter."""

    measure, better, dtype = "macro-F1", 1, np.uint8

    @property
    def space(self) -> Space:
        """Of the method."""
        return _spaces()[self.method]

    def parameters(self, values: JsonObject | None = None) -> Any:
        """Of the method."""
        return parameters(self.method, values)

    @cached_property
    def _codes(self) -> tuple[NDArray[Any], NDArray[np.intp]]:
        codes_k, code_i = np.unique(self.samples.code_n, return_inverse=True)
        return codes_k, code_i

    def tell(self, test_n: NDArray[np.bool_], chosen: Any, seed: int) -> NDArray[np.uint8]:
        """(M,) the likeliest class, as its index."""
        rows, codes_k = self.samples, self._codes[0]
        shares = fold_probabilities(rows.values_nc, rows.code_n, codes_k, test_n, chosen, seed)
        likeliest: NDArray[np.uint8] = shares.argmax(axis=1).astype(np.uint8)
        return likeliest

    def plausible(self, told_n: NDArray[Any]) -> bool:
        """Indices of classes."""
        return bool((told_n < len(self._codes[0])).all())

    def score(self, told_n: NDArray[Any], weights_n: NDArray[Any]) -> float:
        """Macro-F1."""
        codes_k, code_i = self._codes
        return macro_f1(count_matrix(told_n, code_i, np.arange(len(codes_k)), weights_n))


class NumberQuestion(Question):
    """Which parameters predict a number: by the mean pinball loss of its three quantiles.

    It is what the model is trained to make small, and the one figure to which both what is mapped count, the number
    and the interval around it. RMSE is of a mean, which is not mapped, and a few odd fields decide it.
    """

    measure, better, dtype = "pinball loss", -1, np.float32

    @property
    def space(self) -> Space:
        """Of CatBoost's quantiles."""
        return _spaces()[None]

    def parameters(self, values: JsonObject | None = None) -> NumberParameters:
        """Of CatBoost's quantiles."""
        return NumberParameters(**(values or {}))

    def tell(self, test_n: NDArray[np.bool_], chosen: Any, seed: int) -> NDArray[np.float32]:
        """(M,) the loss of each row, in the number's unit."""
        rows = self.samples
        found_n3 = regression.unseen(rows.values_nc, rows.value_n, test_n, chosen, seed)
        return regression.pinball(found_n3, rows.value_n[test_n]).astype(np.float32)

    def plausible(self, told_n: NDArray[Any]) -> bool:
        """Losses."""
        return bool(np.isfinite(told_n).all() and (told_n >= 0).all())

    def score(self, told_n: NDArray[Any], weights_n: NDArray[Any]) -> float:
        """The mean."""
        return float(np.average(told_n.astype(np.float64), weights=weights_n))
