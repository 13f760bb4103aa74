"""The commented run.toml that `smalti init` writes.

Every section, and the keys that people change; all keys are in docs/run-toml.md.
"""

from __future__ import annotations

from infer.contract import Run, SmaltiError, write_bytes

RUN_TOML = """\
# A smalti run. Paths are relative to this file. `smalti plan . --dry-run` shows what it will cost.
# These are the keys that people change; docs/run-toml.md of smalti has all of them.

[region]
geometry = "region.geojson"      # GeoJSON, GeoPackage or shapefile; or instead:
# layer = "fields"               # of a GeoPackage with several
# bbox = [4.05, 50.74, 4.12, 50.79]   # west, south, east, north in degrees; or
# mgrs = ["31UES"]               # squares of 100 km, by which Sentinel-2 tiles are named
start = "2024-01-01"             # any window up to two years, both days included (UTC)
end = "2024-12-31"

[archive]
source = "mpc"                   # Planetary Computer ("mpc"), "earth-search", or "static": a STAC file or mirror
# href = "archive/items.json"    # static: item collection, catalogue or stac-geoparquet, path or URL
# url = "https://..."            # mpc, earth-search: another address of the API
on_missing = "fail"              # a file that stays unreadable: "fail" its tiles, or "drop-date"
workers = 8                      # reads in flight

[tiles]
size = 512                       # pixels of 10 m
# keep = "record"                # of a country: let a tile's arrays go once it is embedded
min_clear = 0.0                  # every clear pixel counts; 0.05 drops dates that are clear on less than 5 % of a
                                 # tile: fewer bytes to read, but seams between tiles

[model]
name = "tessera-v2-small"        # get it with `smalti weights fetch tessera-v2-small`; others: `smalti weights list`
# checkpoint = "student_small.pt"   # instead of name: a file
# output = "float32"             # instead of int8: four times the disk
# dim = 64                       # of v2 students, instead of 128; or 32, 16

# Field data, points or polygons in any CRS. Without this section the run ends with the embeddings.
# [labels]
# path = "parcels.gpkg"
# class = "crop"                 # attribute with the class
# value = "yield"                # or, instead of class, a number to be mapped with an interval
# group = "parcel"               # attribute that keeps related pixels on one side of a fold

# Instead of labels: a classifier that another run trained on embeddings of the same kind (its model/, or a copy).
# [predict]
# model = "../2023/model"

# Labels of other years and regions, beside this run's own: runs with embeddings of the same kind.
# [train]
# runs = ["../2022", "../2023-north"]

[classify]
folds = 4                        # grouped cross-validation
trials = 20                      # Optuna trials, of classes and of numbers; 0 takes the defaults
seed = 0
shrink = 10                      # metres by which polygons are shrunk, so that mixed edge pixels are left out
# method = "linear"              # or "knn", "mlp", "best"; "catboost" unless it is set; or "segment":

# A segmentation head, which sees a pixel's surroundings: trained with torch, best on a GPU; more steps for more fields.
# [segment]
# steps = 250

# A cleaned map beside the map: the commonest class of 3 x 3 pixels, patches below 0.3 hectares given to neighbours.
# [clean]
# majority = 3
# minimum_unit = 0.3

# For the accuracy of the map: points drawn at random within its classes ("stratified") or all over it ("random").
# [validate]
# reference = "reference.gpkg"
# class = "crop"
# design = "stratified"

[stitch]
# formats = ["cog"]              # instead of both: a Zarr store as geotessera reads it, and GeoTIFFs
# dtype = "float32"              # of the GeoTIFFs, instead of codes with the scales in a file beside them
# missing = "nodata"             # of a country: tiles that failed are nodata, and filled in by a later run

# Of a simulated archive the truth is known: the report compares the map with it.
# [report]
# truth = "archive/truth.tif"

[site]
profile = "local"                # this machine; or lumi, betzy, saga, generic, or a .toml file of your own
# scratch = "$TMPDIR/smalti"     # node-local disk: fetch makes tiles there, the engine reads them from there
# container = "smalti-rocm.sif"  # run the engine in this image instead of in this Python
"""


def init_run(run: Run) -> None:
    """Make a run directory with a commented run.toml.

    Raises:
        SmaltiError: if there is one already.
    """
    if run.config.exists():
        raise SmaltiError(f"{run.config}: exists already: edit it, or choose another folder")
    if run.root.exists() and not run.root.is_dir():
        raise SmaltiError(f"{run.root}: is a file: choose a folder")
    write_bytes(run.config, RUN_TOML.encode())
