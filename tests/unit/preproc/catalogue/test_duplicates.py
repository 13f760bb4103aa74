"""What counts as the same scene twice, and which copy is kept."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import permutations
from typing import Any

import pytest
import shapely
from shapely.geometry.base import BaseGeometry

from infer.contract import SmaltiError
from preproc.catalogue.declared import mgrs_tile
from preproc.catalogue.duplicates import Candidate, dedupe, identity
from preproc.catalogue.scene import Scene

GRANULE = shapely.box(4, 50, 5, 51)
WEST_PART, EAST_PART = shapely.box(4, 50, 4.55, 51), shapely.box(4.45, 50, 5, 51)


def s2(
    identifier: str,
    *,
    footprint: BaseGeometry = GRANULE,
    when: str = "2023-01-08T10:54:21",
    assets: int = 11,
    collection: str = "sentinel-2-l2a",
    **properties: Any,
) -> Candidate:
    scene = Scene(
        identifier,
        "s2",
        datetime.fromisoformat(when).replace(tzinfo=UTC),
        {str(number): "x" for number in range(assets)},
        footprint.wkt,
    )
    return Candidate({"id": identifier, "collection": collection, "properties": properties}, scene)


def s1(identifier: str, *, footprint: BaseGeometry = GRANULE, orbit: str = "ascending", **properties: Any) -> Candidate:
    scene = Scene(
        identifier,
        "s1",
        datetime(2023, 1, 8, tzinfo=UTC),
        {"VV": "x", "VH": "x"},
        footprint.wkt,
        orbit=orbit,  # type: ignore[arg-type]  # a test's own words
    )
    return Candidate({"id": identifier, "collection": "sentinel-1-rtc", "properties": properties}, scene)


def kept(*candidates: Candidate) -> list[str]:
    """Ids kept; the same whatever the order."""
    results = {tuple(scene.id for scene in dedupe(order)[0]) for order in permutations(candidates)}
    assert len(results) == 1, "the result must not depend on the order"
    return list(results.pop())


def reprocessed(made: str, **properties: Any) -> Candidate:
    return s2(f"S2A_MSIL2A_20230108T105421_R051_T31UES_{made}", **properties)


OLD, NEW = "20230109T000000", "20240501T000000"


def test_the_newest_processing_is_kept() -> None:
    old = reprocessed(OLD, **{"s2:generation_time": "2023-01-09T00:00:00Z", "s2:processing_baseline": "05.09"})
    new = reprocessed(NEW, **{"s2:generation_time": "2024-05-01T00:00:00Z", "s2:processing_baseline": "05.10"})
    assert kept(old, new) == [new.scene.id]
    assert dedupe([old, new])[1] == {old.scene.id: f"an older copy of {new.scene.id}"}


def test_without_a_generation_time_the_baseline_and_then_the_id_decide() -> None:
    names = {"grid:code": "MGRS-31UES"}
    old = s2("b", **{"s2:processing_baseline": "05.09", **names})
    new = s2("a", **{"s2:processing_baseline": "05.10", **names})
    assert kept(old, new) == ["a"]
    assert kept(s2("a", **names), s2("b", **names)) == ["b"]


def test_the_time_in_a_products_name_stands_in_for_the_generation_time() -> None:
    old = reprocessed(OLD, **{"s2:processing_baseline": "05.10", "s2:generation_time": None, "updated": "2025-01-01"})
    new = reprocessed(NEW, **{"s2:processing_baseline": "05.09", "s2:generation_time": 20240501})
    assert kept(old, new) == [new.scene.id]
    named = s2("S2A_31UES_20230108_0_L2A", **{"s2:product_uri": f"{new.scene.id}.SAFE", "s2:mgrs_tile": "31UES"})
    assert kept(old, named) == [named.scene.id]


def test_a_new_copy_that_lacks_a_band_does_not_replace_a_complete_one() -> None:
    old = reprocessed(OLD, **{"s2:generation_time": "2023-01-09T00:00:00Z"})
    new = reprocessed(NEW, assets=10, **{"s2:generation_time": "2024-05-01T00:00:00Z"})
    assert kept(old, new) == [old.scene.id]


def copies(*candidates: Candidate) -> list[tuple[str, int]]:
    """Ids kept in the order of their processing."""
    scenes, _ = dedupe(candidates)
    numbered = [(scene.id, -1 if scene.copy is None else scene.copy.number) for scene in scenes]
    return sorted(numbered, key=lambda pair: pair[1])


@pytest.mark.parametrize("share", [0.1, 0.15, 0.38, 0.6])
def test_an_older_copy_that_alone_covers_a_part_is_kept_behind_the_newest(share: float) -> None:
    old = reprocessed(OLD)
    new = reprocessed(NEW, footprint=shapely.box(4 + share, 50, 5, 51))
    for order in permutations([old, new]):
        assert copies(*order) == [(new.scene.id, 0), (old.scene.id, 1)]


def test_an_older_copy_with_a_smaller_footprint_is_left_out() -> None:
    old = reprocessed(OLD, footprint=WEST_PART)
    new = reprocessed(NEW)
    assert copies(old, new) == [(new.scene.id, -1)]
    drawn_otherwise = reprocessed(OLD, footprint=shapely.box(3.999, 49.999, 5.001, 51.001))
    assert copies(drawn_otherwise, new) == [(new.scene.id, -1)]


def test_what_several_newer_copies_cover_together_is_left_out() -> None:
    old = reprocessed(OLD)
    west = reprocessed("20240502T000000", footprint=WEST_PART)
    east = reprocessed(NEW, footprint=EAST_PART)
    assert copies(old, west, east) == [(west.scene.id, 0), (east.scene.id, 1)]
    assert dedupe([old, west, east])[1] == {old.scene.id: f"an older copy of {west.scene.id} and {east.scene.id}"}


def test_granules_split_along_a_datastrip_are_both_kept() -> None:
    west, east = reprocessed(OLD, footprint=WEST_PART), reprocessed(NEW, footprint=EAST_PART)
    assert kept(west, east) == sorted([west.scene.id, east.scene.id])


def test_of_a_split_granule_reprocessed_each_part_is_kept_once() -> None:
    parts = [
        reprocessed(OLD + "a", footprint=WEST_PART),
        reprocessed(OLD + "b", footprint=EAST_PART),
        reprocessed(NEW + "a", footprint=WEST_PART.buffer(0.01)),
        reprocessed(NEW + "b", footprint=EAST_PART.buffer(0.01)),
    ]
    assert kept(*parts) == [parts[2].scene.id, parts[3].scene.id]


def test_other_tiles_and_datatakes_are_other_scenes() -> None:
    one = s2("S2A_MSIL2A_20230108T105421_R051_T31UES_1")
    tile = s2("S2A_MSIL2A_20230108T105421_R051_T31UFS_1")
    satellite = s2("S2B_MSIL2A_20230108T105421_R051_T31UES_1")
    time = s2("S2A_MSIL2A_20230108T123456_R051_T31UES_1")
    assert len(kept(one, tile, satellite, time)) == 4


def test_the_same_product_in_both_collections_of_earth_search_is_taken_from_the_one_that_needs_no_guess() -> None:
    common = {
        "grid:code": "MGRS-31UES",
        "s2:datatake_id": "GS2A_20230108T105421_039437_N05.09",
        "s2:generation_time": "2023-01-08T15:00:00.000000Z",
        "s2:processing_baseline": "05.09",
    }
    first = s2("S2A_31UES_20230108_0_L2A", **common)
    second = s2("S2A_T31UES_20230108T105416_L2A", collection="sentinel-2-c1-l2a", **common)
    assert kept(first, second) == [second.scene.id]


def test_identical_ids_collapse() -> None:
    assert len(kept(reprocessed(OLD), reprocessed(OLD))) == 1


def test_two_scenes_with_one_id_are_refused_because_one_would_be_lost() -> None:
    for other in (s2("a", when="2023-01-18T10:54:21"), s2("a", footprint=shapely.box(8, 50, 9, 51))):
        with pytest.raises(SmaltiError, match="two items have the id a and are different scenes"):
            dedupe([s2("a"), other])


def test_order_is_by_day_and_id() -> None:
    scenes, _ = dedupe([s2("b", when="2023-01-08T23:00:00"), s2("a", when="2023-01-09T00:00:00"), s2("c")])
    assert [scene.id for scene in scenes] == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("properties", "identifier", "tile"),
    [
        ({"s2:mgrs_tile": "58UFE"}, "x", "58UFE"),
        ({"s2:mgrs_tile": "T06VVN"}, "x", "06VVN"),
        ({"grid:code": "MGRS-6VVN"}, "x", "06VVN"),
        ({"mgrs:utm_zone": 6, "mgrs:latitude_band": "V", "mgrs:grid_square": "VN"}, "x", "06VVN"),
        ({}, "S2_MSIL2A_20181202T105651_T31UES", "31UES"),
        ({}, "S2A_13TDE_20231008_0_L2A", "13TDE"),
        ({}, "scene-1", None),
    ],
)
def test_the_mgrs_tile(properties: dict[str, Any], identifier: str, tile: str | None) -> None:
    assert mgrs_tile({"id": identifier, "properties": properties}) == tile


def test_a_slice_of_sentinel_1_processed_twice_is_one() -> None:
    name = "S1A_IW_GRDH_1SDV_20240419T045904_20240419T045916_053498_067DF2"
    old = s1(f"{name}_rtc", updated="2024-04-20T00:00:00Z")
    new = s1(f"{name}_AF19_rtc", updated="2024-05-20T00:00:00Z")
    assert kept(old, new) == [new.scene.id]


def test_neighbouring_slices_are_two() -> None:
    one = s1("S1A_IW_GRDH_1SDV_20240419T045749_20240419T045814_053498_067DF2_rtc")
    two = s1("S1A_IW_GRDH_1SDV_20240419T045814_20240419T045839_053498_067DF2_rtc")
    assert len(kept(one, two)) == 2


def test_opera_bursts_are_told_by_burst_time_and_satellite() -> None:
    old = s1("OPERA_L2_RTC-S1_T144-308029-IW1_20230101T053012Z_20230102T000000Z_S1A_30_v1.0")
    new = s1("OPERA_L2_RTC-S1_T144-308029-IW1_20230101T053012Z_20240102T000000Z_S1A_30_v1.0")
    other = s1("OPERA_L2_RTC-S1_T144-308029-IW2_20230101T053012Z_20230102T000000Z_S1A_30_v1.0")
    assert kept(old, new, other) == sorted([new.scene.id, other.scene.id])
    assert identity(old) == ("s1", "T144-308029-IW1", "20230101T053012", "S1A")
