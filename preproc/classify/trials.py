"""The journal of a study in progress: every finished trial, kept so that a killed study goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import SmaltiError, parse_json, read_regular, write_bytes
from preproc.classify.boost import Parameters, parameters
from preproc.run.progress import say


@dataclass(frozen=True)
class Trial:
    """One finished trial."""

    number: int
    values: Mapping[str, Any]
    """The fields of `Parameters`."""
    score: float
    """Pooled grouped-CV macro-F1."""
    predicted_n: NDArray[np.uint8]
    """(N,) out-of-fold class of each tuning row, as its index in the classes."""

    @property
    def parameters(self) -> Parameters:
        """The values, typed."""
        return parameters(self.values)


def _trial(record: Any) -> Trial:
    predicted_n = np.frombuffer(bytes.fromhex(record["predicted"]), np.uint8)
    return Trial(int(record["number"]), dict(record["params"]), float(record["score"]), predicted_n)


class Journal:
    """A file of JSON lines: what the study is made from, then its trials. Written anew, atomically, for every trial."""

    def __init__(self, path: Path, key: str) -> None:
        """Args: path; key: fingerprint of the study's inputs. A journal with another key is put aside."""
        self._path = path
        self._lines = [json.dumps({"study": key})]
        self.trials: list[Trial] = []
        if path.exists():
            self._resume(key)

    def _resume(self, key: str) -> None:
        try:
            lines = read_regular(self._path).decode().splitlines()
            head, *records = [parse_json(line) for line in lines]
            if head != {"study": key}:
                return
            trials = [_trial(record) for record in records]
        except (SmaltiError, OSError, ValueError, KeyError, TypeError) as error:
            say(f"train: {self._path}: not a readable journal ({error}): the study starts anew")
            return
        if [trial.number for trial in trials] == list(range(len(trials))):
            self._lines, self.trials = lines, trials

    def append(self, trial: Trial) -> None:
        """Add the next trial."""
        record = {
            "number": trial.number,
            "params": dict(trial.values),
            "score": trial.score,
            "predicted": trial.predicted_n.tobytes().hex(),
        }
        self._lines.append(json.dumps(record, sort_keys=True))
        self.trials.append(trial)
        write_bytes(self._path, ("\n".join(self._lines) + "\n").encode())


def published(trials: list[Trial]) -> bytes:
    """The lines of trials.jsonl: number, parameters and score of each trial."""
    records = [{"number": t.number, "params": dict(t.values), "score": t.score} for t in trials]
    return "".join(json.dumps(record, sort_keys=True) + "\n" for record in records).encode()
