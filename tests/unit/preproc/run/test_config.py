"""run.toml: what is right is read; what is wrong is refused in one line that names section and key."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest

from infer.contract import Run, SmaltiError
from preproc.run.config import Config, load_config, parse_config
from preproc.run.template import RUN_TOML

GOOD = """
[region]
geometry = "region.geojson"
start = "2021-01-01"
end = "2021-12-31"

[archive]
source = "mpc"
"""


def parse(text: str) -> Config:
    return parse_config(text, Path("/runs/mine/run.toml"))


def replaced(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def test_the_least_that_is_needed() -> None:
    config = parse(GOOD)
    assert config.region.start == date(2021, 1, 1)
    assert config.tiles.size == 512
    assert config.tiles.min_clear == 0.0
    assert config.model.name == "demo"
    assert config.archive.on_missing == "fail"
    assert config.labels is None


def test_the_template_of_init_is_valid() -> None:
    assert parse(RUN_TOML).archive.source == "mpc"
    for model in ("monthly", "demo+monthly"):  # of floats: what the template would state of codes is refused
        floats = parse(RUN_TOML.replace('name = "tessera-v2-small"', f'name = "{model}"'))
        assert (floats.model.name, floats.stitch.formats) == (model, ("cog",) if "+" in model else ("zarr", "cog"))


def test_the_template_has_all_sections_and_a_model_to_make_maps_with() -> None:
    for name, field in Config.model_fields.items():
        assert re.search(rf"^(# )?\[{field.alias or name}\]$", RUN_TOML, re.MULTILINE), name
    assert parse(RUN_TOML).model.name == "tessera-v2-small"
    hidden = r"^# (?=\[labels\]|path =|class =|group =|\[validate\]|reference =|design =)"
    whole = parse(re.sub(hidden, "", RUN_TOML, flags=re.MULTILINE))  # what is commented out is right as well
    assert whole.labels is not None
    assert whole.validate_ is not None


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = parse(GOOD + '[labels]\npath = "../parcels.gpkg"\nclass = "crop"\n[model]\ncheckpoint = "m.pt"\n')
    assert config.region.geometry == Path("/runs/mine/region.geojson")
    assert config.labels is not None
    assert config.labels.path.resolve() == Path("/runs/parcels.gpkg").resolve()
    assert config.model.checkpoint == Path("/runs/mine/m.pt")
    static = parse(replaced('source = "mpc"', 'source = "static"\nhref = "archive/items.json"'))
    assert static.archive.href == "/runs/mine/archive/items.json"
    assert static.archive.folders == ("/runs/mine/archive",)
    static = parse(replaced('source = "mpc"', 'source = "static"\nhref = "a/items.json"\nalso = ["../x", "/data"]'))
    assert static.archive.folders == ("/runs/mine/a", "/runs/x", "/data")
    assert parse(replaced("region.geojson", "/data/r.gpkg")).region.geometry == Path("/data/r.gpkg")


def test_urls_are_left_alone() -> None:
    static = parse(replaced('source = "mpc"', 'source = "static"\nhref = "https://example.org/items.json"'))
    assert static.archive.href == "https://example.org/items.json"
    assert static.archive.folders == ()


def test_toml_dates_and_whole_numbers_are_welcome() -> None:
    text = replaced('"2021-01-01"', "2021-01-01").replace('geometry = "region.geojson"', "bbox = [4, 50, 5, 51]")
    config = parse(text + "[tiles]\nmin_clear = 1\n")
    assert config.region.bbox == (4.0, 50.0, 5.0, 51.0)
    assert config.region.start == date(2021, 1, 1)
    assert config.tiles.min_clear == 1.0


def test_the_model_job_says_the_same() -> None:
    job = parse(GOOD + '[model]\nname = "tessera-v2-small"\noutput = "float32"\ndim = 64\n').model.job()
    assert (job.name, job.checkpoint, job.output, job.dim) == ("tessera-v2-small", None, "float32", 64)


def test_models_side_by_side_are_kept_as_floats() -> None:
    config = parse(GOOD + '[model]\nname = "demo+monthly"\n[stitch]\nsheet = 1024\n')
    assert (config.model.dim, config.model.output) == (272, "float32")
    assert (config.stitch.formats, config.stitch.dtype, config.stitch.sheet) == (("cog",), "float32", 1024)
    assert parse(GOOD + '[model]\nname = "monthly"\n').stitch.dtype == "int8"


ARCHIVE = 'source = "mpc"'
GEOMETRY = 'geometry = "region.geojson"'
BAD = {
    "codes of two models": (
        GOOD + '[model]\nname = "demo+monthly"\noutput = "int8"\n',
        r"\[model\].*demo\+monthly gives 272 numbers as float32 \(one scale would crush one of them\)",
    ),
    "a mosaic of codes of two": (
        GOOD + '[model]\nname = "demo+monthly"\n[stitch]\nformats = ["zarr"]\n',
        r"would crush the smaller numbers of demo\+monthly: leave out formats and dtype",
    ),
    "a model beside itself": (GOOD + '[model]\nname = "demo+demo"\n', r"one of its parts comes twice"),
    "archives that differ": (
        GOOD + '[model]\nname = "tessera-v1.1-mpc+tessera-v1.1-aws"\n',
        r"trained on the data of different archives",
    ),
    "a model beside nothing": (GOOD + '[model]\nname = "demo+x"\n', r"unknown model 'x': one of demo"),
    "no region": ("[archive]\nsource = 'mpc'\n", r"\[region\]: missing"),
    "no archive": (GOOD.split("[archive]")[0], r"\[archive\]: missing"),
    "empty file": ("", r"\[region\]: missing"),
    "no dates": (re.sub(r"start.*\n", "", GOOD), r"\[region\] start: missing"),
    "nested without end": ("a = " + "[" * 100_000 + "]" * 100_000, r"not valid TOML: nested more than 100 deep"),
    "ten thousand digits": ("a = 0x" + "f" * 10_000, r"not valid TOML: a number of more than a thousand digits"),
    "keys of a megabyte": (GOOD + f"[{'x' * 10**6}]\na = 1\n", r"\[x{100}"),
    "the last year there is": (GOOD.replace("2021", "9999"), r"no satellite of Copernicus flies .*correct the years"),
    "not toml": ("[region\n", r"not valid TOML: .*line 1"),
    "a key twice": (GOOD + ARCHIVE + "\n", r"not valid TOML"),
    "unknown key": (GOOD + 'sorce = "mpc"\n', r"\[archive\] sorce: unknown key"),
    "unknown section": (GOOD + "[tile]\nsize = 512\n", r"\[tile\]: unknown section"),
    "key outside a section": ("size = 512\n" + GOOD, r"\[size\]: unknown section"),
    "a section that is a number": (GOOD + "", None),
    "empty geometry": (replaced("region.geojson", ""), r"\[region\] geometry: is empty"),
    "neither geometry nor bbox": (replaced(GEOMETRY, ""), r"\[region\]: give geometry, bbox or mgrs, one of them"),
    "both": (replaced(GEOMETRY, f"{GEOMETRY}\nbbox = [4, 50, 5, 51]"), r"\[region\]: give geometry, bbox or mgrs"),
    "end before start": (
        replaced("2021-12-31", "2020-12-31"),
        r"\[region\]: end 2020-12-31 is before start 2021-01-01",
    ),
    "three years": (replaced("2021-12-31", "2023-12-31"), r"\[region\]: the window is longer than two years"),
    "not a date": (
        replaced("2021-12-31", "31.12.2021"),
        r"\[region\] end: '31.12.2021' is not a date: write YYYY-MM-DD",
    ),
    "no such date": (replaced("2021-12-31", "2021-02-30"), r"\[region\] end: '2021-02-30' is not a date"),
    "a week": (replaced("2021-12-31", "2021-W52"), r"\[region\] end: '2021-W52' is not a date: write YYYY-MM-DD"),
    "a time": (replaced('"2021-12-31"', "2021-12-31T10:00:00Z"), r"\[region\] end: "),
    "a year": (replaced('"2021-12-31"', "2021"), r"\[region\] end: "),
    "bbox of three": (replaced(GEOMETRY, "bbox = [4, 50, 5]"), r"\[region\] bbox: \[4, 50, 5\]: give four numbers"),
    "bbox of words": (replaced(GEOMETRY, 'bbox = ["4", "50", "5", "51"]'), r"\[region\] bbox\.0: .*number"),
    "bbox upside down": (replaced(GEOMETRY, "bbox = [4, 51, 5, 50]"), r"\[region\]: bbox .*south must be below north"),
    "bbox without width": (replaced(GEOMETRY, "bbox = [4, 50, 4, 51]"), r"\[region\]: bbox .*longitudes must differ"),
    "bbox in metres": (replaced(GEOMETRY, "bbox = [5e5, 5e6, 6e5, 6e6]"), r"\[region\]: bbox .*-180..180"),
    "bbox at the pole": (replaced(GEOMETRY, "bbox = [4, 80, 5, 90]"), r"\[region\]: bbox .*-80..84"),
    "bbox of nan": (replaced(GEOMETRY, "bbox = [nan, 50, 5, 51]"), r"\[region\]: bbox "),
    "unknown source": (replaced(ARCHIVE, 'source = "gee"'), r"\[archive\] source: .*'mpc', 'earth-search' or 'static'"),
    "static without href": (replaced(ARCHIVE, 'source = "static"'), r"\[archive\]: source = .static. needs href"),
    "static with url": (
        replaced(ARCHIVE, 'source = "static"\nhref = "i.json"\nurl = "http://x"'),
        r"\[archive\]: source = .static. needs href",
    ),
    "folders of an archive on the network": (
        replaced(ARCHIVE, 'source = "static"\nhref = "s3://b/i.json"\nalso = ["/data"]'),
        r"\[archive\]: also names folders of this machine",
    ),
    "mpc with href": (
        replaced(ARCHIVE, f'{ARCHIVE}\nhref = "i.json"'),
        r"\[archive\]: href belongs to source = .static.",
    ),
    "url without scheme": (
        replaced(ARCHIVE, f'{ARCHIVE}\nurl = "x.org"'),
        r"\[archive\]: url 'x.org' must start with http",
    ),
    "on_missing": (replaced(ARCHIVE, f'{ARCHIVE}\non_missing = "ignore"'), r"\[archive\] on_missing: .*'drop-date'"),
    "no workers": (replaced(ARCHIVE, f"{ARCHIVE}\nworkers = 0"), r"\[archive\] workers: .*greater than or equal to 1"),
    "odd size": (GOOD + "[tiles]\nsize = 511\n", r"\[tiles\] size: .*multiple of 2.*511"),
    "huge size": (GOOD + "[tiles]\nsize = 8192\n", r"\[tiles\] size: .*less than or equal to 2048"),
    "size as text": (GOOD + '[tiles]\nsize = "512"\n', r"\[tiles\] size: .*valid integer.*'512'"),
    "size as fraction": (GOOD + "[tiles]\nsize = 512.5\n", r"\[tiles\] size: .*integer"),
    "min_clear in per cent": (GOOD + "[tiles]\nmin_clear = 5\n", r"\[tiles\] min_clear: .*less than or equal to 1"),
    "min_clear true": (GOOD + "[tiles]\nmin_clear = true\n", r"\[tiles\] min_clear: .*number"),
    "unknown model": (GOOD + '[model]\nname = "tessera"\n', r"\[model\] name: unknown model 'tessera': one of demo, "),
    "name and checkpoint": (
        GOOD + '[model]\nname = "demo"\ncheckpoint = "m.pt"\n',
        r"\[model\]: give either name or checkpoint, one of them",
    ),
    "no model": (GOOD + '[model]\noutput = "int8"\n', r"\[model\]: give either name or checkpoint"),
    "output": (GOOD + '[model]\nname = "demo"\noutput = "int16"\n', r"\[model\] output: .*'int8' or 'float32'"),
    "dim": (GOOD + '[model]\nname = "demo"\ndim = 0\n', r"\[model\] dim: .*greater than or equal to 1"),
    "labels without class": (GOOD + '[labels]\npath = "p.gpkg"\n', r"\[labels\]: give class"),
    "one fold": (GOOD + "[classify]\nfolds = 1\n", r"\[classify\] folds: .*greater than or equal to 2"),
    "negative trials": (GOOD + "[classify]\ntrials = -1\n", r"\[classify\] trials: .*greater than or equal to 0"),
    "seed": (GOOD + '[classify]\nseed = "a"\n', r"\[classify\] seed: .*integer"),
    "site": (GOOD + '[site]\nprofile = ""\n', r"\[site\] profile: "),
}
BAD["a section that is a number"] = ("tiles = 512\n" + GOOD, r"\[tiles\]: .*")


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(case: str) -> None:
    text, words = BAD[case]
    assert words is not None
    with pytest.raises(SmaltiError, match=words) as caught:
        parse(text)
    lines = str(caught.value).splitlines()
    assert all(line.startswith("/runs/mine/run.toml: ") for line in lines)
    assert caught.value.exit_code == 2


def test_all_problems_are_told_at_once_a_line_each() -> None:
    with pytest.raises(SmaltiError) as caught:
        parse(replaced("2021-01-01", "yesterday") + "workers = 0\n[tiles]\nsise = 3\n")
    assert len(str(caught.value).splitlines()) == 3


def test_a_run_without_settings(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match="no such run directory: make one with `smalti init"):
        load_config(Run(tmp_path / "gone"))
    with pytest.raises(SmaltiError, match=r"run.toml: missing: write one with `smalti init"):
        load_config(Run(tmp_path))
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SmaltiError, match=r"run.toml: cannot be read"):
        load_config(Run(tmp_path))


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_config(Run(tmp_path)).tiles.size == 512
