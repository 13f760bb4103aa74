"""A study in progress, a file a trial: any number of processes work on it; a killed one loses its trial alone."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import FormatError, JsonObject, SmaltiError, read_manifest, write_manifest
from preproc.classify.methods import Method
from preproc.run.progress import say

KIND = "trial"
WAVE = 4
"""Trials that do not know of each other: so many processes can work on a study at once, and its result is the same."""


@dataclass(frozen=True)
class Trial:
    """One finished trial."""

    number: int
    values: JsonObject
    """The fields of the method's parameters."""
    score: float
    """Of the pooled out-of-fold rows, macro-F1 or pinball loss; of a pruned trial, of the folds that it got to."""
    told_n: NDArray[Any]
    """(N,) what each tuning row got from a model that had not seen its group: the index of a class, or of a number
    the loss; empty of a pruned trial."""
    partial: tuple[float, ...] = ()
    """The score after each fold."""
    pruned: bool = False
    """Given up, for trials before it were better by then."""


@dataclass(frozen=True)
class Study:
    """The trials of one method on disk."""

    folder: Path
    key: str
    """Fingerprint of what the study is made from: trials with another one are not looked at."""
    dtype: type[np.generic] = np.uint8
    """Of what a trial keeps of each row."""

    def path(self, number: int) -> Path:
        """Of a trial's file."""
        return self.folder / f"{number:04d}.json"

    @property
    def inputs(self) -> dict[str, str]:
        """Fingerprint of a trial."""
        return {"study": self.key}

    def read(self, number: int) -> Trial | None:
        """A finished trial; None if it is not there, not readable or of another study."""
        path = self.path(number)
        if not path.exists():
            return None
        try:
            record = read_manifest(path, KIND, remedy="it is made again")
            if record["inputs"] != self.inputs:
                return None
            return Trial(
                number=_same(int(record["number"]), number),
                values=dict(record["params"]),
                score=float(record["score"]),
                told_n=np.frombuffer(bytes.fromhex(record["predicted"]), self.dtype),
                partial=tuple(float(value) for value in record["partial"]),
                pruned=bool(record["pruned"]),
            )
        except (SmaltiError, OSError, ValueError, KeyError, TypeError) as error:
            say(f"train: {path}: not a readable trial ({error}): it is made again")
            return None

    def write(self, trial: Trial) -> None:
        """Keep a finished trial."""
        fields = {**_told(trial), "predicted": trial.told_n.tobytes().hex(), "partial": list(trial.partial)}
        write_manifest(self.path(trial.number), KIND, inputs=self.inputs, files=[], fields=fields)

    @contextmanager
    def claimed(self, number: int) -> Iterator[bool]:
        """Whether this is the one process (or thread) that works on a trial; the claim ends with the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{number:04d}.lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
            else:
                yield True


def _same(number: int, wanted: int) -> int:
    if number != wanted:
        raise FormatError(f"it is trial {number}")
    return number


def _told(trial: Trial) -> dict[str, Any]:
    return {"number": trial.number, "params": dict(trial.values), "score": trial.score, "pruned": trial.pruned}


def published(trials: Mapping[Method, Sequence[Trial]]) -> bytes:
    """The lines of trials.jsonl: method, number, parameters, score and whether it was pruned, of each trial."""
    records = [{"method": method, **_told(trial)} for method, made in trials.items() for trial in made]
    return "".join(json.dumps(record, sort_keys=True) + "\n" for record in records).encode()
