"""The card of a classifier: what it tells apart, what it was trained on, how well it does and where it may be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infer.contract import SOFTWARE, JsonObject
from infer.contract.classification import ClassifierManifest
from infer.contract.record import to_json
from preproc.classify.elsewhere import described, tested
from preproc.classify.model import OUT_OF_FOLD
from preproc.classify.out_of_fold import OutOfFold, read_out_of_fold
from preproc.classify.performance import WHAT, performance
from preproc.classify.regression import show as show_number
from preproc.run.classifier import file_of, learns_number, verified

CARD = "card.json"
CARD_TEXT = "card.md"
_LIMITS = (
    "It gives every pixel one of its classes, also where none of them is true.",
    "Its figures are of labelled groups that it had not seen, from the runs named above: not the accuracy of a map.",
    "It may map embeddings of the same encoder, length and kind of numbers only; for another year or region label some "
    "fields there and test it before its map is used.",
)


def card(about: ClassifierManifest, oof: OutOfFold, settings: JsonObject) -> dict[str, Any]:
    """The card as JSON values.

    Args:
        about: the classifier's manifest, or what will be written into it.
        oof: its out-of-fold predictions.
        settings: the part of its recipe that is from run.toml.
    """
    figures = performance(oof, about.classes, int(settings.get("seed", 0)))
    pixels = figures["pixels"]
    return {
        "format": "smalti/model-card",
        "software": SOFTWARE,
        "classes": to_json(about.classes),
        "embedding_numbers": about.dim,
        "trained_on": to_json(about.trained_on),
        "recipe": dict(settings),
        "parameters": dict(about.parameters),
        "rows": about.rows,
        "left_out": to_json(about.left_out),
        "performance": {
            "what": WHAT,
            **{name: pixels[name] for name in ("overall_accuracy", "macro_f1", "weighted_f1", "n", "n_groups")},
            "per_class": pixels["per_class"],
            "distance_m": figures["distance_m"],
            "transfers": to_json(about.transfers),
        },
        "limits": list(_LIMITS),
    }


def card_text(content: JsonObject, about: ClassifierManifest) -> str:
    """The card as Markdown."""
    pixels = content["performance"]
    encoder = about.trained_on[0].embedded if about.trained_on else None
    lines = [
        f"# A classifier of {len(about.classes)} classes",
        "",
        f"Made by {content['software']}. The figures below are {WHAT}.",
        "",
        "## What it was trained on",
        "",
        *[f"- {line}" for line in described(about.trained_on)],
    ]
    if encoder is None:
        lines.append("- not stated: it was made by an older version, and maps the run that it was trained in only")
    else:
        model = encoder.model
        lines += [
            f"- Embeddings of {model.label} ({model.name}), {about.dim} numbers, kept as {encoder.embeddings_as}; "
            f"checkpoint {model.checkpoint}; licence {model.licence or 'not stated'}",
        ]
    lines += [
        "",
        "## Classes",
        "",
        "| code | class | precision | recall | F1 | pixels | groups |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in pixels["per_class"]:
        scores = " | ".join(_two(row[key]) for key in ("users_accuracy", "producers_accuracy", "f1"))
        lines.append(f"| {row['code']} | {_cell(row['name'])} | {scores} | {row['n']} | {row['n_groups']} |")
    far = pixels["distance_m"]
    lines += [
        "",
        f"Macro-F1 {_around(pixels['macro_f1'])}, overall {_around(pixels['overall_accuracy'])}. Half of the tested "
        f"pixels lie within {far['median']:.0f} m of one trained on.",
        *[f"- {tested(row, row.n_groups)}: macro-F1 {_around(to_json(row.macro_f1))}" for row in about.transfers],
        *[f"- left out, for it has too few groups ({entry.groups}): {_cell(entry.name)}" for entry in about.left_out],
        "",
        "## Recipe",
        "",
        *[
            f"- {key}: {value}"
            for key, value in sorted({**content["recipe"], **content["parameters"]}.items())
            if key != "segment"
        ],
        "",
        "## Limits",
        "",
        *[f"- {line}" for line in content["limits"]],
        "",
    ]
    return "\n".join(lines)


def show(folder: Path) -> str:
    """The card of a classifier's folder, made anew from what is in it, after every checksum has been compared.

    Raises:
        SmaltiError: if it is not a classifier, or damaged.
    """
    if learns_number(folder):
        return show_number(folder)
    about = verified(folder)
    oof = read_out_of_fold(file_of(folder, OUT_OF_FOLD), [entry.code for entry in about.classes])
    settings = about.inputs.get("settings", {})
    return card_text(card(about, oof, settings if isinstance(settings, dict) else {}), about)


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _around(figure: JsonObject) -> str:
    low_high = figure["ci95"]
    tail = "" if low_high is None else f" (95 % CI {low_high[0]:.2f}-{low_high[1]:.2f})"
    return f"{figure['value']:.2f}{tail}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
