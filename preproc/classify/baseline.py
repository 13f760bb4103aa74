"""What the embedding adds: the same classifier on monthly medians of the same labelled pixels, on the same folds."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from infer.contract import Run, SmaltiError
from infer.contract.classification import ClassifierManifest
from infer.contract.imported import imported_tiles
from infer.contract.monthly import MONTHLY_FAMILY
from preproc.classify.accuracy import count_matrix, macro_f1, overall
from preproc.classify.folds import Folds
from preproc.classify.methods import out_of_fold, parameters
from preproc.classify.out_of_fold import OutOfFold, Places
from preproc.classify.performance import bootstrap, paired
from preproc.classify.probe.features import MOST_WORK, raw_features
from preproc.run.config import Config
from preproc.run.progress import progress

FEATURES = "monthly medians of the ten Sentinel-2 bands and of VV and VH"


def baseline(
    run: Run, config: Config, about: ClassifierManifest, oof: OutOfFold, places: Places
) -> tuple[dict[str, Any] | None, str]:
    """Compare the embedding with plain features.

    Args:
        run: the run that the classifier was trained in.
        config: its settings.
        about: the classifier.
        oof: (N) what it said of each cross-validated sample.
        places: (N) their pixels.

    Returns:
        The content of a `Baseline`, or None; and what it comes to, or why it was not made.
    """
    wanted, work = config.classify.baseline, len(oof.code_n) * len(about.classes)
    if wanted is False:
        return None, "[classify] baseline = false"
    if config.labels is None:
        return None, "the labelled pixels are of other runs"
    if wanted == "auto" and work > MOST_WORK:
        return None, f"it takes more than a minute for {len(oof.code_n)} pixels: ask with [classify] baseline = true"
    if about.trained_on and about.trained_on[0].embedded.model.family == MONTHLY_FAMILY:
        return None, "the classifier was trained on them"
    if about.method == "segment":
        return None, "a segmentation head sees surroundings, and these features are of single pixels"
    if len(about.trained_on) > 1:
        return None, "samples of several runs were trained on"
    workers = config.site.workers or len(os.sched_getaffinity(0))
    with progress("validate: monthly medians", 2, "steps") as bar:
        try:
            values_nc = raw_features(run, places)
        except SmaltiError as error:
            if any(not (run.tiles / tile).is_dir() for tile in imported_tiles(run)):
                return None, "imported embeddings come without the time series of their pixels"
            why = str(error).replace(f"{run.root}/", "")  # equal runs say the same, wherever they are
            return None, f"the time series of the labelled pixels are not there ({why})"
        bar.advance(note="read")
        codes_k = np.array([entry.code for entry in about.classes])
        chosen = parameters(about.method, about.parameters)
        folds = Folds(oof.fold_n, int(oof.fold_n.max()) + 1, {})
        given = values_nc, oof.code_n, codes_k, folds, chosen
        shares_nk = out_of_fold(*given, seed=config.classify.seed, workers=workers)
        bar.advance(note="cross-validated")
    predicted_n = codes_k[shares_nk.argmax(axis=1)]
    matrix_kk = count_matrix(predicted_n, oof.code_n, codes_k)
    group_i = np.unique(oof.group_n, return_inverse=True)[1]
    intervals = bootstrap(predicted_n, oof.code_n, group_i, codes_k, config.classify.seed)
    adds = paired(oof.predicted_n, predicted_n, oof.code_n, oof.group_n, codes_k, config.classify.seed)
    content = {
        "features": FEATURES,
        "macro_f1": {"value": macro_f1(matrix_kk), "ci95": intervals["macro_f1"]},
        "overall_accuracy": {"value": overall(matrix_kk), "ci95": intervals["overall_accuracy"]},
        "adds_macro_f1": adds["macro_f1"],
        "adds_overall_accuracy": adds["overall_accuracy"],
    }
    return content, told(**adds["macro_f1"])


def told(value: float, ci95: list[float] | None) -> str:
    """A paired difference of macro-F1 in words."""
    if ci95 is None:
        return f"the embedding adds {value:+.2f}, of one group: that shows nothing"
    low, high = ci95
    span = f"{value:+.2f} ({low:+.2f} to {high:+.2f})"
    if low > 0:
        return f"the embedding adds {span}"
    if high < 0:
        return f"the embedding loses against them: {span}"
    return f"the embedding adds nothing that shows here: {span}"
