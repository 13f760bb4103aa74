"""Files as an attacker, a disk or an editor may leave them: bytes and JSON, changed at random."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 10**30, -(10**400), float("nan"), float("inf")),
    *("", "..", "../../x", "/etc/passwd", "a\0b", "a\nb", "\ud800", "x" * 5000, "é", "326", "2021-02-30", "9999-12-31"),
    *([], {}, [[]], [None], {"a": None}, [1, 2, 3, 4], ["a", "b"], {"": {}}),
)
"""What may stand in place of any JSON value."""
_BYTES = (b"\0", b"\xff", b"\n", b'"', b"{", b"}", b"[", b"]", b",", b"=", b"9" * 50, b"-", b"e9", b"\x80\x02", b"PK")


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """The content with a few changes: bits flipped, pieces lost, doubled, replaced or put in."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        end = min(len(content), at + rng.choice((1, 2, 8, 64, 4096)))
        kind = rng.randrange(6)
        if kind == 0 and at < len(content):
            content = content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        elif kind == 1:
            content = content[:at] + content[end:]
        elif kind == 2:
            content = content[:at] + content[at:end] * 2 + content[end:]
        elif kind == 3:
            content = content[:at]
        elif kind == 4:
            content = content[:at] + rng.choice(_BYTES) + content[at:]
        else:
            content = content[:at] + rng.randbytes(end - at) + content[end:]
    return content


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    """The JSON with a few of its values replaced, lost, renamed or nested."""
    value: Any = json.loads(content)
    for _ in range(rng.randint(1, 3)):
        value = _changed(value, rng)
    return json.dumps(value).encode()


def _changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        kind = rng.randrange(10)
        if kind == 0:
            del value[key]
        elif kind == 1 and isinstance(value, dict):
            value[rng.choice([text for text in ODD if isinstance(text, str)])] = value.pop(key)
        elif kind == 1:
            value.append(value[key])
        else:
            value[key] = _changed(value[key], rng)
        return value
    return copy.deepcopy(rng.choice((*ODD, [value], {"a": value}, str(value))))  # what is put in may be changed again
