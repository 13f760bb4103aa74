"""Findings of checks, one line each, with what to do about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from infer.contract import JsonObject


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


_ORDER = (Verdict.OK, Verdict.WARNING, Verdict.FAILED)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    """Short name, the same for good and bad."""
    verdict: Verdict
    text: str
    """What is the case."""
    remedy: str = ""
    """What to do, where something is wrong."""
    where: str = "here"
    """here, node (a batch job, this Python) or container (a batch job, in the image)."""


@dataclass(frozen=True)
class Findings:
    """All of them."""

    items: tuple[Finding, ...]

    @property
    def worst(self) -> Verdict:
        """The worst verdict."""
        return max((item.verdict for item in self.items), key=_ORDER.index, default=Verdict.OK)

    def as_text(self) -> str:
        """One line a check, and a line of counts."""
        width = max((len(item.check) for item in self.items), default=0)
        lines = []
        for item in self.items:
            place = "" if item.where == "here" else f"[{item.where}] "
            remedy = f": {item.remedy}" if item.remedy and item.verdict is not Verdict.OK else ""
            lines.append(f"{item.verdict.value:<8} {item.check:<{width}}  {place}{item.text}{remedy}")
        counts = [sum(item.verdict is verdict for item in self.items) for verdict in _ORDER]
        lines.append(f"{counts[0]} ok, {counts[1]} warnings, {counts[2]} failed")
        return "\n".join(lines)

    def as_json(self) -> str:
        """For machines."""
        return json.dumps({"worst": self.worst, "findings": [asdict(item) for item in self.items]}, indent=1)


def ok(check: str, text: str) -> Finding:
    """A check that went well."""
    return Finding(check, Verdict.OK, text)


def warning(check: str, text: str, remedy: str) -> Finding:
    """Something that may go wrong."""
    return Finding(check, Verdict.WARNING, text, remedy)


def failed(check: str, text: str, remedy: str) -> Finding:
    """Something that will go wrong."""
    return Finding(check, Verdict.FAILED, text, remedy)


def finding_from(record: JsonObject, where: str) -> Finding:
    """A finding that a probe job printed as JSON."""
    keys = ("check", "text", "remedy")
    check, text, remedy = (str(record.get(key, "")) for key in keys)
    return Finding(check, Verdict(record["verdict"]), text, remedy, where)


def error_text(error: BaseException) -> tuple[str, str]:
    """A SmaltiError's message as text and remedy: it ends with what to do, after the last colon."""
    text, separator, remedy = str(error).replace("\n", " ").rpartition(": ")
    return (text, remedy) if separator else (str(error), "see above")


def flatten(groups: Sequence[Sequence[Finding]]) -> tuple[Finding, ...]:
    """All findings in order."""
    return tuple(item for group in groups for item in group)
