"""Models scored alike: the same pixels, folds, deals and draws for each. Pure but for the clock of its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infer.contract.classification import Figure, LearningPoint
from infer.contract.compared import ComparedModel, Difference, MethodFigures
from preproc.classify.accuracy import class_scores, count_matrix, macro_f1, overall
from preproc.classify.folds import Folds
from preproc.classify.learning import few_groups
from preproc.classify.methods import Method, out_of_fold, parameters
from preproc.classify.performance import bootstrap, paired
from preproc.classify.split import Split, divide
from preproc.classify.table import Samples
from preproc.run.config import Classify

Step = Callable[[str], None]


@dataclass(frozen=True)
class Contest:
    """What is the same for all models."""

    samples: Samples
    """(N) the labelled pixels; their embeddings are not looked at."""
    codes_k: NDArray[np.int32]
    deals: tuple[Folds, ...]
    """The folds, dealt anew each time."""
    methods: tuple[Method, ...]
    seed: int
    workers: int

    @classmethod
    def of(
        cls, samples: Samples, split: Split, settings: Classify, methods: Sequence[Method], deals: int, workers: int
    ) -> Contest:
        """Deal the folds out; folds that are named parts of the land are the same in every deal, so there is one.

        Raises:
            SmaltiError: if two folds cannot be made.
        """
        first = divide(samples, split, settings, settings.seed)
        more = range(1, 1 if first.names else deals)
        dealt = (first, *(divide(samples, split, settings, settings.seed + deal) for deal in more))
        return cls(samples, np.unique(samples.code_n), dealt, tuple(methods), settings.seed, workers)

    @property
    def steps(self) -> int:
        """What `score` counts for one model."""
        return len(self.methods) * len(self.deals)

    def score(self, values_nc: NDArray[np.float32], told: Step) -> tuple[tuple[MethodFigures, ...], NDArray[np.int16]]:
        """Cross-validate every method in every deal.

        Args:
            values_nc: (N, C) numbers of a model.
            told: called after each deal of each method.

        Returns:
            The figures of each method, and (M, D, N) the codes that it said.
        """
        figures, said = [], np.zeros((len(self.methods), len(self.deals), len(self.samples)), dtype=np.int16)
        for index, method in enumerate(self.methods):
            made, said[index] = self._method(values_nc, method, told)
            figures.append(made)
        return tuple(figures), said

    def _method(
        self, values_nc: NDArray[np.float32], method: Method, told: Step
    ) -> tuple[MethodFigures, NDArray[np.int16]]:
        samples, codes_k, chosen = self.samples, self.codes_k, parameters(method)
        whole_dn = np.zeros((len(self.deals), len(samples)), dtype=np.int32)
        curves: dict[int, list[tuple[NDArray[np.int32], float]]] = {}
        for deal, folds in enumerate(self.deals):
            given = values_nc, samples.code_n, codes_k, folds, chosen
            shares_nk = out_of_fold(*given, seed=self.seed, workers=self.workers)
            whole_dn[deal] = codes_k[shares_nk.argmax(axis=1)]
            drawn = {"seed": self.seed + deal, "workers": self.workers}
            for size, predicted_n, rows in few_groups(values_nc, samples, codes_k, folds, chosen, **drawn):
                curves.setdefault(size, []).append((predicted_n, rows))
            told(method)
        points = []
        for size, found in sorted(curves.items()):
            said_dn = np.stack([predicted_n for predicted_n, _ in found])
            points.append(LearningPoint(size, round(float(np.mean([rows for _, rows in found]))), *self._both(said_dn)))
        trained = np.mean([len(samples) - len(samples) / folds.count for folds in self.deals])
        most = max(np.unique(samples.group_n[samples.code_n == code]).size for code in codes_k.tolist())
        whole = self._both(whole_dn)
        points.append(LearningPoint(int(most), round(float(trained)), *whole))
        matrices = [count_matrix(predicted_n, samples.code_n, codes_k) for predicted_n in whole_dn]
        f1_k = np.mean([class_scores(matrix_kk).f1_k for matrix_kk in matrices], axis=0)
        by_class = {samples.legend[int(code)]: float(f1) for code, f1 in zip(codes_k, f1_k, strict=True)}
        deals = tuple(macro_f1(matrix_kk) for matrix_kk in matrices)
        return MethodFigures(method, *whole, by_class, deals, tuple(points)), whole_dn.astype(np.int16)

    def _both(self, said_dn: NDArray[np.int32]) -> tuple[Figure, Figure]:
        """Macro-F1 and overall accuracy of deals taken together; the interval draws groups, each with all its deals."""
        deals = len(said_dn)
        code_m, group_m = np.tile(self.samples.code_n, deals), np.tile(self._group_i, deals)
        intervals = bootstrap(said_dn.ravel(), code_m, group_m, self.codes_k, self.seed)
        matrix_kk = count_matrix(said_dn.ravel(), code_m, self.codes_k)

        def figure(value: float, name: str) -> Figure:
            found = intervals[name]
            return Figure(value, None if found is None else (found[0], found[1]))

        return figure(macro_f1(matrix_kk), "macro_f1"), figure(overall(matrix_kk), "overall_accuracy")

    @property
    def _group_i(self) -> NDArray[np.intp]:
        found: NDArray[np.intp] = np.unique(self.samples.group_n, return_inverse=True)[1]
        return found

    def difference(self, method: Method, names: tuple[str, str], said: Mapping[str, NDArray[np.int16]]) -> Difference:
        """How much better the first of two models is: the same groups are drawn for both, in all deals at once."""
        index = self.methods.index(method)
        deals = len(self.deals)
        one, other = (said[name][index].ravel() for name in names)
        stacked = np.tile(self.samples.code_n, deals), np.tile(self._group_i, deals)
        found = paired(one, other, *stacked, self.codes_k, self.seed)
        figures = {}
        for key in ("macro_f1", "overall_accuracy"):
            ci95 = found[key]["ci95"]
            figures[key] = Figure(found[key]["value"], None if ci95 is None else (ci95[0], ci95[1]))
        return Difference(method, names[0], names[1], figures["macro_f1"], figures["overall_accuracy"])


def verdict(best: ComparedModel, method: str, closest: Difference | None) -> str:
    """Which model is best, and whether the next is clearly behind it."""
    score = next(one for one in best.scores if one.method == method).macro_f1.value
    if closest is None:
        return f"{best.name}: macro-F1 {score:.2f}, and nothing to compare it with"
    value, ci95 = closest.macro_f1.value, closest.macro_f1.ci95
    if ci95 is None:
        return f"{best.name} has the highest macro-F1 ({score:.2f}), of one group: that shows nothing"
    span = f"{value:+.2f} ({ci95[0]:+.2f} to {ci95[1]:+.2f})"
    if ci95[0] > 0:
        return f"{best.name} is best: macro-F1 {score:.2f}, {span} against {closest.against}, the next"
    return (
        f"{best.name} has the highest macro-F1 ({score:.2f}), but nothing shows that it is better than "
        f"{closest.against}: {span}"
    )
