"""The classifiers that can be trained: CatBoost, and three that need few labels; fitted alike, saved as plain arrays.

The three see standardised numbers and are written in numpy where they are applied, so that nothing has to be unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from infer.contract import FormatError, JsonObject, atomic_file
from infer.contract.segment import read_arrays
from preproc.classify import boost
from preproc.classify.boost import Parameters
from preproc.classify.folds import Folds

Method = Literal["catboost", "linear", "knn", "mlp"]
METHODS: tuple[Method, ...] = ("catboost", "linear", "knn", "mlp")
_NEIGHBOURS_OF = 20_000
"""Rows that kNN keeps: every pixel of a map is compared with each of them."""
_SILENT = 1e9
"""Standard deviation of a column without a number: whatever is there later comes to nothing."""
_BLOCK = 1024
"""Rows compared with those at a time."""


@dataclass(frozen=True)
class LinearParameters:
    """Logistic regression."""

    c: float = 0.02
    """Inverse of the penalty: small is smooth."""
    class_weights: Literal["None", "Balanced"] = "Balanced"


@dataclass(frozen=True)
class KnnParameters:
    """Nearest neighbours by the angle between standardised embeddings, nearer ones counting more."""

    neighbours: int = 7
    class_weights: Literal["None", "Balanced"] = "Balanced"
    """Balanced: a vote counts less the more rows its class has."""


@dataclass(frozen=True)
class MlpParameters:
    """A perceptron with one hidden layer."""

    hidden: int = 64
    alpha: float = 0.01
    """Penalty on weights."""
    iterations: int = 60
    """Passes over the rows."""


Chosen = Parameters | LinearParameters | KnnParameters | MlpParameters
_KINDS: Mapping[Method, type[Any]] = {
    "catboost": Parameters,
    "linear": LinearParameters,
    "knn": KnnParameters,
    "mlp": MlpParameters,
}


def parameters(method: Method, values: JsonObject | None = None) -> Chosen:
    """Parameters of a method from a mapping of all fields, as `asdict` gives it; the defaults without one."""
    return cast(Chosen, _KINDS[method](**(values or {})))


class Model(Protocol):
    """What a fitted classifier can do."""

    @property
    def classes_(self) -> Any:
        """(K,) class codes, ascending: the columns of `predict_proba`."""

    def predict_proba(self, x: Any, *, thread_count: int = 1) -> Any:
        """(N, K) probabilities."""


@dataclass(frozen=True)
class _Arrays:
    """A classifier that is nothing but arrays."""

    method: ClassVar[Method]

    classes_: NDArray[np.int64]
    mean_c: NDArray[np.float32]
    scale_c: NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Write the arrays; equal ones give equal bytes."""
        arrays = {part.name: getattr(self, part.name) for part in fields(self)}
        with atomic_file(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FormatError: if it is something else.
        """
        remedy = "run `smalti train` again"
        names = [part.name for part in fields(cls)]
        made = cls(**read_arrays(path, names, remedy, f"the arrays of a {cls.method} classifier"))
        for part in fields(cls):
            values = getattr(made, part.name)
            if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
                raise FormatError(f"{path}: {part.name} holds what is no number: {remedy}")
        if not made.fits():
            raise FormatError(f"{path}: its arrays do not fit each other: {remedy}")
        return made

    def fits(self) -> bool:
        """Whether the arrays are of shapes that go together."""
        raise NotImplementedError

    def predict_proba(self, x: Any, *, thread_count: int = 1) -> NDArray[np.float32]:
        """(N, K) probabilities."""
        raise NotImplementedError

    def standard(self, x: Any) -> NDArray[np.float32]:
        """Standardised rows."""
        return _standard(np.asarray(x, np.float32), self.mean_c, self.scale_c)

    @property
    def feature_names_(self) -> list[str]:
        """As many as there are columns."""
        return [str(index) for index in range(len(self.mean_c))]


@dataclass(frozen=True)
class Layers(_Arrays):
    """Affine layers with ReLU between them and softmax at the end: logistic regression has one, the perceptron two."""

    method: ClassVar[Method] = "mlp"

    weights_ch: NDArray[np.float32]
    """(C, H); of logistic regression (C, K)."""
    bias_h: NDArray[np.float32]
    out_hk: NDArray[np.float32]
    """(H, K); empty for logistic regression."""
    out_k: NDArray[np.float32]

    def fits(self) -> bool:
        """Whether the arrays are of shapes that go together."""
        c, h, k = len(self.mean_c), len(self.bias_h), len(self.classes_)
        last = h == k if self.out_hk.size == 0 else self.out_hk.shape == (h, k) and self.out_k.shape == (k,)
        return self.scale_c.shape == (c,) and self.weights_ch.shape == (c, h) and last

    def predict_proba(self, x: Any, *, thread_count: int = 1) -> NDArray[np.float32]:
        """(N, K) probabilities; one thread, whatever is asked, so that no bit depends on the machine."""
        del thread_count
        with threadpool_limits(1):
            scores = self.standard(x) @ self.weights_ch + self.bias_h
            if self.out_hk.size:
                scores = np.maximum(scores, 0) @ self.out_hk + self.out_k
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        result: NDArray[np.float32] = shares / shares.sum(axis=1, keepdims=True)
        return result


@dataclass(frozen=True)
class Linear(Layers):
    """Logistic regression."""

    method: ClassVar[Method] = "linear"


@dataclass(frozen=True)
class Knn(_Arrays):
    """Nearest neighbours."""

    method: ClassVar[Method] = "knn"

    rows_mc: NDArray[np.float32]
    """(M, C) standardised rows of length 1."""
    class_m: NDArray[np.int64]
    """(M,) index of the class of each."""
    weight_k: NDArray[np.float32]
    """(K,) what a vote for a class counts."""
    neighbours: NDArray[np.int64]
    """() how many vote."""

    def fits(self) -> bool:
        """Whether the arrays are of shapes that go together."""
        c, m, k = len(self.mean_c), len(self.class_m), len(self.classes_)
        inside = m > 0 and self.class_m.min() >= 0 and self.class_m.max() < k
        votes = self.neighbours.shape == () and 1 <= int(self.neighbours) <= m
        return inside and votes and self.rows_mc.shape == (m, c) and self.weight_k.shape == (k,)

    def predict_proba(self, x: Any, *, thread_count: int = 1) -> NDArray[np.float32]:
        """(N, K) probabilities: votes by likeness, on one thread."""
        del thread_count
        rows = _unit(self.standard(x))
        count = int(self.neighbours)
        result = np.empty((len(rows), len(self.classes_)), np.float32)
        for top in range(0, len(rows), _BLOCK):
            with threadpool_limits(1):
                likeness = rows[top : top + _BLOCK] @ self.rows_mc.T
            nearest = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
            close = np.take_along_axis(likeness, nearest, axis=1)
            vote = np.exp(8 * (close - close.max(axis=1, keepdims=True))) * self.weight_k[self.class_m[nearest]]
            shares = np.zeros((len(close), len(self.classes_)), np.float32)
            np.add.at(shares, (np.arange(len(close))[:, None], self.class_m[nearest]), vote)
            result[top : top + _BLOCK] = shares / shares.sum(axis=1, keepdims=True)
        return result


SAVED: Mapping[Method, type[_Arrays]] = {"linear": Linear, "knn": Knn, "mlp": Layers}
"""Those that are arrays; CatBoost has a format of its own."""


def statistics(x_nc: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(C,) mean and standard deviation of what is there of each column; a column that is never there says nothing."""
    counts_c = np.count_nonzero(~np.isnan(x_nc), axis=0)
    if (counts_c == len(x_nc)).all():
        mean_c, scale_c = x_nc.mean(axis=0, dtype=np.float64), x_nc.std(axis=0, dtype=np.float64)
    else:
        known_c = np.maximum(counts_c, 1)
        mean_c = np.nansum(x_nc, axis=0, dtype=np.float64) / known_c
        scale_c = np.sqrt(np.nansum((x_nc - mean_c) ** 2, axis=0, dtype=np.float64) / known_c)
        scale_c[counts_c == 0] = _SILENT
    return mean_c.astype(np.float32), np.maximum(scale_c, 1e-6).astype(np.float32)


def _standard(
    x_nc: NDArray[np.float32], mean_c: NDArray[np.float32], scale_c: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Standardised rows; a missing number is taken for the mean of the training rows."""
    result: NDArray[np.float32] = (x_nc - mean_c) / scale_c
    result[np.isnan(result)] = 0
    return result


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return result


def fit_any(
    x_nc: NDArray[np.float32],
    code_n: NDArray[Any],
    chosen: Chosen,
    seed: int,
    *,
    threads: int = 1,
    task_type: str = "CPU",
) -> Model:
    """Fit the method that the parameters are of, on rows (N, C) with class codes (N,).

    Args:
        x_nc: embeddings.
        code_n: of two classes or more.
        chosen: its parameters.
        seed: of whatever it draws.
        threads: of CatBoost; a part of the recipe.
        task_type: of CatBoost: "CPU" or "GPU".

    Raises:
        SmaltiError: if CatBoost refuses the rows.
    """
    if isinstance(chosen, Parameters):
        if threads == 1 and task_type == "CPU":
            return cast(Model, boost.fit(x_nc, code_n, chosen, seed))
        return cast(Model, boost.fit(x_nc, code_n, chosen, seed, threads=threads, task_type=task_type))
    mean_c, scale_c = statistics(x_nc)
    standard_nc = _standard(x_nc, mean_c, scale_c)
    codes, code_i = np.unique(code_n, return_inverse=True)
    common = {"classes_": codes.astype(np.int64), "mean_c": mean_c, "scale_c": scale_c}
    if isinstance(chosen, KnnParameters):
        return _fit_knn(standard_nc, code_i, chosen, seed, common)
    with threadpool_limits(1):
        return _fit_layers(standard_nc, code_i, chosen, seed, common)


def _fit_knn(
    rows_nc: NDArray[np.float32], code_i: NDArray[np.intp], chosen: KnnParameters, seed: int, common: dict[str, Any]
) -> Knn:
    kept = np.sort(np.random.default_rng(seed).permutation(len(rows_nc))[:_NEIGHBOURS_OF])
    rows_nc, code_i = rows_nc[kept], code_i[kept]
    counts_k = np.bincount(code_i, minlength=len(common["classes_"]))
    weight_k = np.ones(len(counts_k)) if chosen.class_weights == "None" else 1 / np.sqrt(np.maximum(counts_k, 1))
    return Knn(
        **common,
        rows_mc=_unit(rows_nc),
        class_m=code_i.astype(np.int64),
        weight_k=weight_k.astype(np.float32),
        neighbours=np.array(min(chosen.neighbours, len(rows_nc)), dtype=np.int64),
    )


def _fit_layers(
    rows_nc: NDArray[np.float32],
    code_i: NDArray[np.intp],
    chosen: LinearParameters | MlpParameters,
    seed: int,
    common: dict[str, Any],
) -> Layers:
    from sklearn.linear_model import LogisticRegression  # here: who maps with a classifier fits none
    from sklearn.neural_network import MLPClassifier

    nothing: dict[str, Any] = {"out_hk": np.zeros((0, 0), np.float32), "out_k": np.zeros(0, np.float32)}
    if isinstance(chosen, LinearParameters):
        weights = None if chosen.class_weights == "None" else "balanced"
        linear = LogisticRegression(C=chosen.c, class_weight=weights, tol=1e-3, max_iter=2000)
        linear.fit(rows_nc.astype(np.float64), code_i)
        weights_kc, bias_k = linear.coef_, linear.intercept_
        if len(weights_kc) == 1:  # of two classes scikit-learn keeps the difference alone
            weights_kc, bias_k = np.concatenate([-weights_kc, weights_kc]) / 2, np.concatenate([-bias_k, bias_k]) / 2
        shaped: dict[str, Any] = {"weights_ch": weights_kc.T.astype(np.float32), "bias_h": bias_k.astype(np.float32)}
        return Linear(**common, **shaped, **nothing)
    mlp = MLPClassifier(
        (chosen.hidden,),
        alpha=chosen.alpha,
        batch_size=min(128, len(rows_nc)),
        learning_rate_init=0.003,
        random_state=seed,
    )
    for _ in range(chosen.iterations):
        mlp.partial_fit(rows_nc, code_i, classes=np.arange(len(common["classes_"])))
    (weights_ch, out_hk), (bias_h, out_k) = mlp.coefs_, mlp.intercepts_
    if out_hk.shape[1] == 1:  # of two classes: one logistic output
        out_hk, out_k = np.concatenate([-out_hk, out_hk], axis=1) / 2, np.concatenate([-out_k, out_k]) / 2
    named = {"weights_ch": weights_ch, "bias_h": bias_h, "out_hk": out_hk, "out_k": out_k}
    return Layers(**common, **{name: values.astype(np.float32) for name, values in named.items()})


def probabilities(model: Model, x_nc: NDArray[np.float32], *, threads: int) -> NDArray[np.float32]:
    """(N, K) float32 probabilities; the number of threads does not change them."""
    if not len(x_nc):  # of which CatBoost says "No objects info loaded"
        return np.zeros((0, len(model.classes_)), dtype=np.float32)
    values = model.predict_proba(np.ascontiguousarray(x_nc, dtype=np.float32), thread_count=threads)
    return np.asarray(values, dtype=np.float32)


def out_of_fold(
    x_nc: NDArray[np.float32],
    code_n: NDArray[Any],
    codes_k: NDArray[Any],
    folds: Folds,
    chosen: Chosen,
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
        seed: of the classifier.
        workers: folds fitted side by side; it does not change the result.

    Returns:
        (N, K) float32; a class that the training side of a fold lacks has probability 0 there.
    """
    result_nk = np.zeros((len(code_n), len(codes_k)), dtype=np.float32)

    def one(fold: int) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        test = folds.fold_n == fold
        return test, fold_probabilities(x_nc, code_n, codes_k, test, chosen, seed)

    with ThreadPoolExecutor(max(1, min(workers, folds.count))) as pool:
        for test, values in pool.map(one, range(folds.count)):
            result_nk[test] = values
    return result_nk


def fold_probabilities(
    x_nc: NDArray[np.float32],
    code_n: NDArray[Any],
    codes_k: NDArray[Any],
    test_n: NDArray[np.bool_],
    chosen: Chosen,
    seed: int,
    train_n: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """(M, K) probabilities of the M rows of `test_n`, by a model of the rows of `train_n` (None: all others)."""
    train_n = ~test_n if train_n is None else train_n
    known = np.unique(code_n[train_n])
    result = np.zeros((int(test_n.sum()), len(codes_k)), dtype=np.float32)
    if len(known) == 1:  # classifiers refuse a single class
        result[:, np.searchsorted(codes_k, known)] = 1.0
        return result
    model = fit_any(x_nc[train_n], code_n[train_n], chosen, seed)
    result[:, np.searchsorted(codes_k, known)] = probabilities(model, x_nc[test_n], threads=1)
    return result
