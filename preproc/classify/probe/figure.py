"""The probe's results as a Markdown table and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from infer.contract import JsonObject


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
