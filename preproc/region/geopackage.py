"""GeoPackages in WGS 84 or another CRS, whose bytes depend on nothing but their content."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray


def geopackage(
    layer: str,
    geometries_n: NDArray[Any] | Sequence[Any],
    fields: Mapping[str, Sequence[Any] | NDArray[Any]],
    *,
    kind: Literal["Point", "Polygon", "Unknown"],
    epsg: int = 4326,
    about: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of a GeoPackage of one layer. GDAL's settings are the process's: not for several threads at once.

    Args:
        layer: its name.
        geometries_n: (N,) shapely geometries.
        fields: attributes by name, each (N,), text or numbers; text may be empty.
        kind: of the geometries; "Unknown" for several kinds in one layer.
        epsg: of their CRS.
        about: the layer's metadata.
    """
    import pyogrio  # here: pandas comes with it, and tasks that make sheets write none

    content = io.BytesIO()
    with _fixed_clock():
        pyogrio.raw.write(
            content,
            geometry=shapely.to_wkb(np.asarray(geometries_n, dtype=object)),
            field_data=[_field(values) for values in fields.values()],
            fields=list(fields),
            geometry_type=kind,
            crs=f"EPSG:{epsg}",
            driver="GPKG",
            layer=layer,
            layer_metadata=about,
        )
    return content.getvalue()


def _field(values: Sequence[Any] | NDArray[Any]) -> NDArray[Any]:
    made = np.asarray(values)
    return made.astype(object) if made.dtype.kind == "U" else made


@contextmanager
def _fixed_clock() -> Iterator[None]:
    """GeoPackages carry the time of their last change: equal content is to have equal bytes."""
    import pyogrio

    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2021-01-01T00:00:00.000Z"})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})
