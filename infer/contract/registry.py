"""Models known by name, for both environments: family, data source and where the weights come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelEntry:
    """One registered checkpoint."""

    name: str
    family: Literal["v2-student", "v2-teacher", "v1.1", "v1.0", "v1.0-qat"]
    data_source: Literal["mpc", "aws", "other"]
    """Archive that it was trained on; "other" fits any tile."""
    repository: str | None
    """Hugging Face hub repository, or None when there is no stable address (then the user names the file)."""
    filename: str
    """File inside the repository, or inside infer/checkpoints for a bundled one."""
    sha256: str | None
    """Known checksum, or None: recorded at the first fetch and enforced from then on."""
    note: str


def _student(size: str, letter: str, parameters: str) -> ModelEntry:
    return ModelEntry(
        f"tessera-v2-{size}",
        "v2-student",
        "mpc",
        f"geotessera/TESSERA-V-2.0-2B-{letter}",
        f"ckpt/student_{size}.pt",
        None,
        f"TESSERA v2 student, {parameters} parameters, 128 dimensions (Matryoshka 16/32/64/128)",
    )


MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry("demo", "v2-student", "other", None, "demo.pt", None, "bundled demonstration model, not TESSERA"),
        _student("nano", "N", "1.07 M"),
        _student("small", "S", "7.11 M"),
        _student("medium", "M", "21.03 M"),
        _student("large", "L", "43.83 M"),
    )
}
