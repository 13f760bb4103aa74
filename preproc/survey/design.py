"""`smalti design`: a stratified random reference sample of a map, drawn and written for those who label it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from infer.contract import (
    Plan,
    Run,
    SmaltiError,
    atomic_dir,
    sha256_file,
    sha256_json,
    verify_files,
    write_bytes,
)
from infer.contract.classification import AccuracyManifest
from infer.contract.survey import DesignManifest, Stratum
from preproc.classify.class_raster import ClassMap, open_map, read_map
from preproc.raster.legend import palette
from preproc.run.progress import say, show
from preproc.survey.assess import pairs
from preproc.survey.draw import ALLOCATIONS, LEAST, Units, allocate, draw_rounds, total
from preproc.survey.looks import NOTHING, look
from preproc.survey.points import LabellingPage, render, write_points

MANIFEST = "design.json"
UNITS = "strata.csv"
PAGE = "label.html"
SAVED = "labelled.geojson"
"""What the page saves, where the browser puts downloads."""
_GUESS = 0.8
"""User's accuracy that is expected where nothing is known."""
_BELIEVED = (0.5, 0.95)
"""Cross-validated figures are kept within: they flatter, and a class is not free of errors for having few samples."""


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for."""

    target: Path
    """A run, or a classified GeoTIFF."""
    output: Path | None = None
    """Folder; RUN/survey by default."""
    standard_error: float = 0.02
    """Of overall accuracy."""
    allocation: str = "proportional"
    minimum: int = 50
    sizes: str | None = None
    """By hand: NAME=POINTS,..."""
    users: str | None = None
    """Expected user's accuracies: NAME=SHARE,..."""
    seed: int = 1
    legend: Path | None = None


def design(asked: Wishes) -> DesignManifest:
    """Draw the sample and write its folder, or say that it is there already.

    Raises:
        SmaltiError: if the map, a name or a number is not usable, or another design is in the folder.
    """
    _check(asked)
    folder = output_folder(asked)
    class_map = map_of(asked)
    strata, sizes_by = _strata(asked, class_map)
    made = write_sample(
        asked, folder, class_map, strata, sizes_by, ({str(stratum.code): stratum.points for stratum in strata},)
    )
    show(_table(made))
    _tell(asked, folder)
    return made


def _check(asked: Wishes) -> None:
    if not 0 < asked.standard_error < 0.5:
        raise SmaltiError(f"--standard-error: {asked.standard_error} is no share between 0 and 0.5: 0.02 is usual")
    if asked.allocation not in ALLOCATIONS:
        raise SmaltiError(f"--allocation: {asked.allocation!r} is none of {', '.join(ALLOCATIONS)}")
    if asked.minimum < LEAST:
        raise SmaltiError(f"--minimum: a stratum needs {LEAST} points or more for a standard error")
    if asked.seed < 0:
        raise SmaltiError("--seed: takes whole numbers from 0 on")


def output_folder(asked: Wishes) -> Path:
    """Where the sample is, or is to be."""
    if asked.output is not None:
        return asked.output
    if asked.target.is_dir():
        return DesignManifest.path(Run(asked.target)).parent
    raise SmaltiError(f"{asked.target}: say where the sample of a GeoTIFF is to be written: --output FOLDER")


def map_of(asked: Wishes) -> ClassMap:
    """The run's map, or the GeoTIFF.

    Raises:
        SmaltiError: if there is none, or its pixels differ in size, for which a draw of pixels is no draw of places.
    """
    if asked.target.is_dir():
        return read_map(Run(asked.target))
    class_map = open_map(asked.target, asked.legend)
    if not class_map.even:
        raise SmaltiError(
            f"{asked.target}: its pixels differ in size on the ground, so places would not be equally likely: warp it "
            "to UTM or an equal-area system first (gdalwarp -r near -t_srs EPSG:...)"
        )
    return class_map


def read_design(folder: Path) -> DesignManifest:
    """The sample in a folder, after its files have been verified.

    Raises:
        FormatError: if it is missing or damaged.
    """
    remedy = "draw it again with `smalti design` into another folder"
    design = DesignManifest.read_at(folder / MANIFEST, remedy)
    frozen = {name: record for name, record in design.files.items() if name == UNITS}  # the others may be filled in
    verify_files(folder / MANIFEST, frozen, remedy=remedy)
    return design


def _strata(asked: Wishes, class_map: ClassMap) -> tuple[list[Stratum], str]:
    codes = list(class_map.pixels)
    hectares_h = np.array([class_map.hectares[code] for code in codes])
    units_h = np.array([class_map.pixels[code] for code in codes])
    users_h, whence = _expected(asked, class_map)
    share_h = hectares_h / hectares_h.sum()
    if asked.sizes is not None:
        points_h = _by_hand(asked.sizes, class_map)
        text = "given by hand"
    else:
        count = total(share_h, users_h, asked.standard_error, int(units_h.sum()))
        points_h = allocate(count, share_h, users_h, units_h, how=asked.allocation, minimum=asked.minimum)
        text = (
            f"{count} points for a standard error of {asked.standard_error:g} of overall accuracy (Olofsson et al. "
            f"2014, equation 13), {asked.allocation}, at least {asked.minimum} a class; user's accuracies "
            f"{whence}"
        )
    return [
        Stratum(
            code,
            class_map.names[code],
            class_map.pixels[code],
            round(class_map.hectares[code], 2),
            round(float(users_h[h]), 4),
            int(points_h[h]),
        )
        for h, code in enumerate(codes)
    ], text


def _by_name(text: str, option: str, class_map: ClassMap) -> dict[int, float]:
    """The numbers of an option by code; a class goes by its name or its code."""
    code_of = {str(code): code for code in class_map.names} | {name: code for code, name in class_map.names.items()}
    made = {}
    for name, value in pairs(text, option).items():
        if name not in code_of:
            known = ", ".join(class_map.names[code] for code in class_map.pixels)
            raise SmaltiError(f"{option}: {name!r} is no class of the map, which has {known}")
        if code_of[name] not in class_map.pixels:
            raise SmaltiError(f"{option}: no pixel of the map is {name!r}: leave that stratum out")
        made[code_of[name]] = value
    return made


def _by_hand(text: str, class_map: ClassMap) -> NDArray[np.int64]:
    sizes = _by_name(text, "--sizes", class_map)
    for code in class_map.pixels:
        count = sizes.get(code, 0.0)
        if count != int(count) or count < LEAST:
            raise SmaltiError(
                f"--sizes: {class_map.names[code]!r} gets {count:g} points: every class of the map is a stratum and "
                f"needs {LEAST} or more, or nothing can be said of that part of the map"
            )
    return np.array([int(sizes[code]) for code in class_map.pixels])


def _expected(asked: Wishes, class_map: ClassMap) -> tuple[NDArray[np.float64], str]:
    """Expected user's accuracy of each stratum, and where it comes from."""
    found: dict[str, float] = {}
    whence = f"taken to be {_GUESS}"
    if asked.target.is_dir() and Run(asked.target).accuracy.exists():
        made = AccuracyManifest.read(Run(asked.target))
        if made.map_accuracy is not None:
            whence = "from the map's accuracy"
            figures = [(c.name, c.users_accuracy) for c in made.map_accuracy.per_class]
            entries = [(name, None if figure is None else figure.value) for name, figure in figures]
        else:
            whence = "from cross-validation"
            entries = [(c.name, c.users_accuracy) for c in made.performance.pixels.per_class]
        found = {name: float(np.clip(value, *_BELIEVED)) for name, value in entries if value is not None}
    if asked.users is not None:
        given = _by_name(asked.users, "--users", class_map)
        wrong = [class_map.names[code] for code, value in given.items() if not 0 <= value <= 1]
        if wrong:
            raise SmaltiError(f"--users: {wrong[0]!r} is to have a share between 0 and 1")
        found |= {class_map.names[code]: value for code, value in given.items()}
        whence = "given by hand" if set(given) == set(class_map.pixels) else f"given by hand, others {whence}"
    return np.array([found.get(class_map.names[code], _GUESS) for code in class_map.pixels]), whence


def write_sample(
    asked: Wishes,
    folder: Path,
    class_map: ClassMap,
    strata: list[Stratum],
    sizes_by: str,
    rounds: tuple[Mapping[str, int], ...],
) -> DesignManifest:
    """Draw the sample, round by round, and write its folder; or say that this very sample is there already.

    Raises:
        SmaltiError: if anything else is in the folder.
    """
    names = {str(code): name for code, name in class_map.names.items()}
    inputs = {
        "map": [sha256_file(path) for path in class_map.files],
        "names": names,
        "strata": [asdict(stratum) for stratum in strata],
        "seed": asked.seed,
        "rounds": [dict(one) for one in rounds],
    }
    if (folder / MANIFEST).exists():
        there = read_design(folder)
        if dict(there.inputs) != inputs:
            raise SmaltiError(
                f"{folder}: holds a sample of another map or other sizes, on which somebody may be at work: name "
                "another folder"
            )
        say(f"{folder}: complete: this sample was drawn before")
        return there
    if folder.exists() and any(folder.iterdir()):
        raise SmaltiError(f"{folder}: is there and holds no sample of smalti: name another folder")
    units = draw_rounds(class_map, [{int(code): count for code, count in one.items()} for one in rounds], asked.seed)
    made = DesignManifest(
        strata=tuple(strata),
        points=len(units),
        sizes_by=sizes_by,
        seed=asked.seed,
        rounds=rounds,
        names=names,
    )
    html = _page(asked, class_map, units, sha256_json(inputs))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_dir(folder) as temporary:
        files = write_points(
            temporary, "points", units.id_n, units.place_n2, {"class": [""] * len(units), "note": [""] * len(units)}
        )
        write_bytes(temporary / UNITS, _units_csv(units, class_map))
        write_bytes(temporary / PAGE, html.encode())
        made.write(temporary / MANIFEST, inputs=inputs, files=[*files, temporary / UNITS, temporary / PAGE])
    return made


def _page(asked: Wishes, class_map: ClassMap, units: Units, key: str) -> str:
    """The labelling page; of a GeoTIFF, places alone."""
    plan = Plan.read(Run(asked.target)) if asked.target.is_dir() else None
    looks = [NOTHING] * len(units) if plan is None else look(Run(asked.target), plan, units.place_n2)
    names = list(class_map.names.values())
    about = LabellingPage(
        title=f"Reference sample of {len(units)} points",
        key=f"smalti {key[:16]}",
        names=names,
        colors=palette(names),
        window=None if plan is None else plan.window,
        saves=SAVED,
    )
    return render(about, units.id_n, units.place_n2, looks)


def _units_csv(units: Units, class_map: ClassMap) -> bytes:
    """Which unit was drawn in which stratum and pixel: kept apart from the points, as nobody who labels may know."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("id", "stratum", "code", "raster", "row", "column", "longitude", "latitude"))
    for number, code, (index, row, column), (longitude, latitude) in zip(
        units.id_n.tolist(), units.code_n.tolist(), units.pixel_n3.tolist(), units.place_n2.tolist(), strict=True
    ):
        name = class_map.names[code]
        writer.writerow((number, name, code, class_map.files[index].name, row, column, longitude, latitude))
    return stream.getvalue().encode()


def _table(made: DesignManifest) -> Table:
    shown = Table(title=f"{made.points} points: {made.sizes_by}", title_justify="left", box=None, pad_edge=False)
    shown.add_column("stratum")
    for column in ("share of the map", "expected user's accuracy", "points"):
        shown.add_column(column, justify="right")
    area = sum(stratum.hectares for stratum in made.strata) or 1.0
    for stratum in made.strata:
        shown.add_row(
            stratum.name,
            f"{stratum.hectares / area:.4f}",
            f"{stratum.expected_users_accuracy:.2f}",
            str(stratum.points),
        )
    return shown


def _tell(asked: Wishes, folder: Path) -> None:
    say(f"{folder / PAGE}: open it in a browser (offline), label with the keyboard, save {SAVED} beside it")
    say(f"or fill in class in points.gpkg or points.csv; {UNITS} is not for those who label")
    if asked.target.is_dir():
        saved, root = folder.resolve() / SAVED, asked.target.resolve()  # run.toml's paths are relative to the run
        shown = json.dumps(str(saved.relative_to(root) if saved.is_relative_to(root) else saved), ensure_ascii=False)
        say(f'then: [validate] reference = {shown}, class = "class", design = "stratified"')
    else:
        say(f"then: smalti validate --map {asked.target} --reference {folder / SAVED}")
