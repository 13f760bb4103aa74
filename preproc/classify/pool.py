"""The samples that a classifier is trained on: this run's, and those of [train] runs, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer.contract import PIXEL_SIZE, Run, SmaltiError
from infer.contract.classification import SamplesManifest
from infer.contract.provenance import Embedded
from preproc.classify.labels import assign_codes
from preproc.classify.table import Samples, Source, counted, read_samples
from preproc.run.config import Config
from preproc.run.progress import say

_UNNAMED = ("region", "bbox")
"""Names that a region has when nobody gave it one."""


def samples_inputs(run: Run, config: Config) -> list[str]:
    """Fingerprints of the tables that a classifier is trained on: this run's first."""
    digests = [] if config.labels is None else [SamplesManifest.read(run).files_fingerprint]
    return digests + [_manifest(path).files_fingerprint for path in config.train.runs]


def pooled_samples(run: Run, config: Config) -> Samples:
    """Read all tables; classes are matched by name, and groups of different runs are different groups.

    Raises:
        SmaltiError: if a table is missing, damaged or of another kind of embeddings, if two are the same, or if no
            class is in more than one.
    """
    tables = [] if config.labels is None else [read_samples(run)]
    names = _names(config.train.runs)
    for path, name in zip(config.train.runs, names, strict=True):
        if path.resolve() == run.root.resolve():
            raise SmaltiError(f"[train] runs: {path} is this run itself: leave it out")
        _manifest(path)
        tables.append(read_samples(Run(path), name))
    if len(tables) == 1:
        return tables[0]
    _check_alike(tables)
    return _join(tables)


def _manifest(path: Path) -> SamplesManifest:
    if not path.is_dir():
        raise SmaltiError(f"[train] runs: {path}: no such run directory")
    if not Run(path).samples_manifest.exists():
        raise SmaltiError(f"[train] runs: {path} has no samples.parquet: run `smalti sample {Run(path).quoted}`")
    return SamplesManifest.read(Run(path))


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with those above where two are alike."""
    names = [path.name for path in paths]
    return [
        "/".join(path.parts[-2:]) if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)
    ]


def _check_alike(tables: Sequence[Samples]) -> None:
    first = tables[0].sources[0]
    digests: dict[str, str] = {}
    for table in tables:
        source = table.sources[0]
        if source.digest in digests:
            raise SmaltiError(
                f"[train] runs: {digests[source.digest]} and {source.name} hold the same samples: leave one out"
            )
        digests[source.digest] = source.name
        if source.embedded is None:
            raise SmaltiError(
                f"[train] runs: the samples of {source.name} are of an older version and do not say of what embeddings "
                "they are: run `smalti sample --force` there"
            )
        _check_embedded(first, tables[0].values_nc.shape[1], source, source.embedded, table.values_nc.shape[1])
    _check_numbers([table.sources[0] for table in tables])
    known = [set(table.legend.values()) for table in tables]
    for table, names in zip(tables, known, strict=True):
        others = set().union(*(other for other in known if other is not names))
        if not names & others:
            raise SmaltiError(
                f"[train] runs: no class of {table.sources[0].name} ({_some(names)}) is in another run "
                f"({_some(others)}): name classes alike in all labels"
            )
    for name in sorted(set().union(*known)):
        having = [table.sources[0].name for table, names in zip(tables, known, strict=True) if name in names]
        if len(having) < len(tables):
            say(f"train: {name} is labelled in {', '.join(having)} only")


def _check_numbers(sources: Sequence[Source]) -> None:
    """Make sure that all learn classes, or all the same number."""
    first = sources[0]
    for source in sources:
        if source.value == first.value:
            continue
        if source.value is None:
            hold = f"classes, and not {first.value}: leave it out, or sample {first.value} there"
        elif first.value is None:
            hold = f"numbers ({source.value}), and not classes: leave it out, or learn numbers here as well"
        else:
            hold = f"{source.value}, and not {first.value}: if they are the same in the same unit, name them alike"
        raise SmaltiError(f"[train] runs: the samples of {source.name} hold {hold}")


def _check_embedded(first: Source, dim: int, source: Source, embedded: Embedded, other_dim: int) -> None:
    one = first.embedded
    assert one is not None, "the first table is checked first"
    pairs = {
        "of another encoder": (one.model.checkpoint, embedded.model.checkpoint),
        "of another length": (dim, other_dim),
        "kept in another way": (one.embeddings_as, embedded.embeddings_as),
    }
    for what, (a, b) in pairs.items():
        if a != b:
            shown = (one.model.label, embedded.model.label) if what == "of another encoder" else (a, b)
            raise SmaltiError(
                f"[train] runs: the embeddings of {source.name} are {what} ({shown[1]}) than those of {first.name} "
                f"({shown[0]}): set [model] alike there and run `smalti run` again, or leave it out"
            )


def _join(tables: Sequence[Samples]) -> Samples:
    """One table; codes are given anew by name, and a group is called by its run as well."""
    codes = assign_codes(set().union(*(table.legend.values() for table in tables)))
    columns: dict[str, list[NDArray[np.generic]]] = {}
    for index, table in enumerate(tables):
        arrays = table.arrays()
        highest = max(table.legend, default=0)
        lookup = np.zeros(highest + 1, dtype=np.int32)
        for code, name in table.legend.items():
            lookup[code] = codes[name]
        arrays["code_n"] = lookup[table.code_n]
        arrays["group_n"] = np.array([f"{table.sources[0].name}: {group}" for group in table.group_n.tolist()])
        arrays["run_n"] = np.full(len(table), index, dtype=np.int16)
        for name, values in arrays.items():
            columns.setdefault(name, []).append(values)
    legend = {code: name for name, code in sorted(codes.items(), key=lambda item: item[1])}
    sources = tuple(table.sources[0] for table in tables)
    return Samples(**{name: np.concatenate(parts) for name, parts in columns.items()}, legend=legend, sources=sources)


def years(samples: Samples) -> NDArray[np.str_]:
    """(N,) the year of each row's season."""
    return _of_run(samples, [source.embedded.year if source.embedded else "" for source in samples.sources])


def regions(samples: Samples) -> NDArray[np.str_]:
    """(N,) the region of each row; runs whose boxes overlap are of one."""
    boxes = [source.embedded.bbox if source.embedded else None for source in samples.sources]
    pairs = [(i, j) for i, a in enumerate(boxes) for j, b in enumerate(boxes) if _overlap(a, b)]
    number = _joined(np.array([i for i, _ in pairs]), np.array([j for _, j in pairs]))
    names: dict[int, str] = {}
    for index, source in enumerate(samples.sources):
        region = source.embedded.region if source.embedded else ""
        name = source.name if region in (*_UNNAMED, "") else region
        taken = {other for part, other in names.items() if part != number[index]}
        names.setdefault(int(number[index]), name if name not in taken else f"{name} ({source.name})")
    return _of_run(samples, [names[int(part)] for part in number])


def _of_run(samples: Samples, names: Sequence[str]) -> NDArray[np.str_]:
    found: NDArray[np.str_] = np.array(names, dtype=np.str_)[samples.run_n]
    return found


def _overlap(a: Sequence[float] | None, b: Sequence[float] | None) -> bool:
    if a is None or b is None:
        return a is b
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def same_ground(samples: Samples) -> NDArray[np.str_]:
    """(N,) groups, those of different runs that share a pixel taken as one: the same field in another year."""
    names, group_n = np.unique(samples.group_n, return_inverse=True)
    if len(samples.sources) < 2:
        return samples.group_n
    place = np.column_stack(
        [samples.epsg_n, np.floor(samples.x_n / PIXEL_SIZE), np.floor(samples.y_n / PIXEL_SIZE)]
    ).astype(np.int64)
    _, pixel_n = np.unique(place, axis=0, return_inverse=True)
    part_g = _joined(group_n, pixel_n.ravel())
    joined = len(names) - len(np.unique(part_g))
    if joined:
        told = counted(joined, "group")
        say(f"train: {told} on the ground of a group of another run: on its side of every fold")
    found: NDArray[np.str_] = names[part_g][group_n]
    return found


def _joined(one_e: NDArray[np.intp], other_e: NDArray[np.intp]) -> NDArray[np.intp]:
    """Connected parts of a graph of edges between two kinds of nodes: (G,) the first of the first kind in each part."""
    part_g = np.arange(int(one_e.max()) + 1)
    while True:
        part_h = np.full(int(other_e.max()) + 1, len(part_g))
        np.minimum.at(part_h, other_e, part_g[one_e])
        lower_g = part_g.copy()
        np.minimum.at(lower_g, one_e, part_h[other_e])
        if (lower_g == part_g).all():
            return part_g
        part_g = lower_g


def _some(names: set[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (" ..." if len(ordered) > 5 else "")
