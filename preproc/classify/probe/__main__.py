"""Probe embeddings against raw features on the labelled pixels of a run.

python -m preproc.classify.probe RUN [--embeddings NAME=DIR ...] [--classes "maize,winter wheat"] [--out DIR]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from infer.contract import EXIT_OK, JsonObject, Run, SmaltiError, write_bytes, write_json
from preproc.classify.probe.features import Floats, embedding_features, keep_classes, raw_features
from preproc.classify.probe.score import CLASSIFIERS, cross_validated, efficiency
from preproc.classify.table import Samples, read_samples
from preproc.run.progress import say


def table(results: JsonObject, legend: Mapping[int, str]) -> str:
    """Markdown: one row a feature table and classifier; F1 of every class and macro-F1."""
    names = list(legend.values())
    lines = ["| features | classifier | " + " | ".join(names) + " | macro-F1 |", "| --- " * (len(names) + 3) + "|"]
    for feature, by_classifier in results.items():
        for kind, entry in by_classifier.items():
            cells = [f"{entry['f1'][name]:.2f}" for name in names]
            lines.append(
                f"| {feature} | {kind} | {' | '.join(cells)} | {entry['macro_f1']:.3f} ± {entry['macro_f1_sd']:.3f} |"
            )
    return "\n".join(lines) + "\n"


def curves_png(results: JsonObject) -> bytes | None:
    """PNG of the label-efficiency curves, or None if there are none."""
    kinds = sorted({kind for entry in results.values() for kind in entry if entry[kind]["curve"]})
    if not kinds:
        return None
    figure = Figure(figsize=(4.2 * len(kinds), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axis, kind in zip(axes, kinds, strict=True):
        for feature, entry in results.items():
            points = entry[kind]["curve"]
            x = [point["groups"] for point in points]
            y = [point["macro_f1"] for point in points]
            spread = [point["sd"] for point in points]
            axis.errorbar(x, y, spread, marker="o", markersize=3.5, linewidth=1.2, capsize=2, label=feature)
        axis.set_xscale("log")
        axis.set_xticks(x, [str(value) for value in x])
        axis.minorticks_off()
        axis.set_xlabel("training parcels of each class")
        axis.set_title(kind, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("macro-F1 on the other parcels")
    axes[0].legend(fontsize=8)
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=130, metadata={"Software": None})
    return stream.getvalue()


def build_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m preproc.classify.probe", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run with tiles, embeddings and samples")
    parser.add_argument(
        "--embeddings",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="other embeddings of the same tiles; a name given again puts its numbers beside those before",
    )
    parser.add_argument("--classes", metavar="A,B", help="only these classes")
    parser.add_argument("--folds", type=int, default=4, help="folds by parcel (default 4)")
    parser.add_argument("--deals", type=int, default=3, help="how often parcels are dealt to folds anew (default 3)")
    parser.add_argument("--counts", default="1,3,10,30", help="parcels a class of the curve (default 1,3,10,30)")
    parser.add_argument("--draws", type=int, default=10, help="draws for each point of the curve (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of folds, draws and the classifier (default 0)")
    parser.add_argument("--out", type=Path, help="where probe.json, probe.md and curves.png go (default RUN/probe)")
    return parser


def feature_tables(run: Run, samples: Samples, others: Sequence[str]) -> dict[str, Floats]:
    """Name -> (N, C): raw features, the run's embeddings, and any others."""
    tables = {"raw monthly medians": raw_features(run, samples), "embeddings": samples.values_nc}
    for text in others:
        name, separator, folder = text.partition("=")
        if not (separator and name and folder):
            raise SmaltiError(f"--embeddings {text}: expected NAME=DIR")
        more = embedding_features(Path(folder), samples)
        tables[name] = np.concatenate([tables[name], more], axis=1) if name in tables else more
    return tables


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise SmaltiError(f"--counts {text}: expected whole numbers separated by commas") from error
    if min(numbers) < 1:
        raise SmaltiError(f"--counts {text}: must be above 0")
    return numbers


def probe(samples: Samples, tables: dict[str, Floats], arguments: argparse.Namespace) -> dict[str, Any]:
    """All scores: features -> classifier -> figures."""
    counts = _numbers(arguments.counts)
    results: dict[str, Any] = {}
    for name, x_nc in tables.items():
        results[name] = {}
        for kind in CLASSIFIERS:
            score = cross_validated(
                kind,
                x_nc,
                samples.code_n,
                samples.group_n,
                folds=arguments.folds,
                deals=arguments.deals,
                seed=arguments.seed,
            )
            curve = efficiency(
                kind,
                x_nc,
                samples.code_n,
                samples.group_n,
                counts=counts,
                draws=arguments.draws,
                seed=arguments.seed,
            )
            results[name][kind] = {
                "macro_f1": score.macro,
                "macro_f1_sd": score.spread,
                "f1": {samples.legend[code]: value for code, value in score.by_class.items()},
                "curve": [{"groups": p.groups, "macro_f1": p.macro, "sd": p.spread} for p in curve],
            }
            say(f"probe: {name}, {kind}: macro-F1 {score.macro:.3f}")
    return results


def run_probe(arguments: argparse.Namespace) -> None:
    """Read, score, write."""
    if arguments.folds < 2 or arguments.deals < 1 or arguments.draws < 1:
        raise SmaltiError("--folds must be at least 2, --deals and --draws at least 1")
    _numbers(arguments.counts)
    run = Run(arguments.run)
    classes = None if arguments.classes is None else [name.strip() for name in arguments.classes.split(",")]
    samples = keep_classes(read_samples(run), classes)
    results = probe(samples, feature_tables(run, samples, arguments.embeddings), arguments)
    out: Path = arguments.out or run.root / "probe"
    present = {code: name for code, name in samples.legend.items() if code in set(samples.code_n.tolist())}
    settings = {name: getattr(arguments, name) for name in ("folds", "deals", "counts", "draws", "seed")}
    pixels = {name: int((samples.code_n == code).sum()) for code, name in present.items()}
    write_json(out / "probe.json", {"settings": settings, "pixels": pixels, "results": results})
    write_bytes(out / "probe.md", table(results, present).encode())
    picture = curves_png(results)
    if picture is not None:
        write_bytes(out / "curves.png", picture)
    say(table(results, present))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = build_parser().parse_args(argv)
    try:
        run_probe(arguments)
    except SmaltiError as error:
        print(f"probe: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
