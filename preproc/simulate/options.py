"""What to simulate: place, season, size, climate and quirks, validated once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from datetime import date

from infer.contract import Inputs, SmaltiError
from preproc.simulate.crops import CROPS, crop_index

SIMULATION_VERSION = 3
"""Raised when the same options give other pixels; archives of another version are stale."""

DEFAULT_CROPS = (
    ("winter wheat", 0.24),
    ("grassland", 0.22),
    ("maize", 0.17),
    ("sugar beet", 0.12),
    ("winter barley", 0.09),
    ("potato", 0.09),
    ("rapeseed", 0.07),
)
"""Farmed kinds and their shares of the parcels, roughly those of the loess belt between Maastricht and Aachen."""


def _refuse(name: str, value: object, wanted: str) -> SmaltiError:
    return SmaltiError(f"simulation option {name} = {value!r}: {wanted}")


@dataclass(frozen=True)
class Climate:
    """Regional conditions. The defaults are those of north-western Europe at 51 degrees north."""

    season_shift: float = 0.0
    """Days by which every growing season is later (positive) or earlier (negative) than at 51 N."""
    dryness: float = 0.3
    """0 humid to 1 semi-arid: soils are drier and brighter, canopies thinner, rain rarer."""
    cloudiness: float = 0.5
    """Mean cloud fraction over the year, 0 to 1."""
    snow: float = 0.15
    """Chance that a winter acquisition shows snow, 0 to 1."""
    southern: bool = False
    """Whether seasons are those of the southern hemisphere."""

    def __post_init__(self) -> None:
        if not -90 <= self.season_shift <= 90:
            raise _refuse("climate.season_shift", self.season_shift, "days between -90 and 90")
        for name in ("dryness", "cloudiness", "snow"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise _refuse(f"climate.{name}", value, "a number between 0 and 1")

    @property
    def phase(self) -> float:
        """Days to subtract from the day of year before phenology tables are read."""
        return self.season_shift + (182.6 if self.southern else 0.0)


@dataclass(frozen=True)
class SimulationOptions:
    """Everything that the archive depends on: equal options give equal bytes."""

    seed: int = 1
    """Any non-negative integer."""
    start: date = date(2021, 10, 1)
    """First day of the season."""
    end: date = date(2022, 9, 30)
    """Last day, inclusive."""
    place: tuple[float, float] = (5.905, 50.798)
    """Longitude and latitude of the middle in degrees: South Limburg, where zones 31 and 32 meet."""
    extent_km: float = 2.0
    """Side of the region's bounding box in kilometres, 0.4 to 30; memory grows by about 7 MB per square kilometre."""
    margin_m: int = 240
    """How far the archive reaches beyond the region on each side, in metres."""
    s2_dates: int = 30
    """Sentinel-2 dates, spread over the season (all passes, if there are fewer)."""
    neighbour_dates: int = 5
    """Dates that also have a granule in the neighbouring UTM zone; on the two clearest it is the only one."""
    s1_dates: int = 31
    """Sentinel-1 dates per orbit direction (at most one every six days)."""
    crops: tuple[tuple[str, float], ...] = DEFAULT_CROPS
    """Farmed kinds (names of `crops.CROPS`) and their shares of the parcels."""
    parcel_ha: float = 2.4
    """Median parcel size in hectares."""
    climate: Climate = field(default_factory=Climate)
    """Regional conditions."""
    noise: float = 0.003
    """Standard deviation of the sensor noise of a 10 m pixel, in reflectance."""
    looks: float = 4.4
    """Equivalent number of looks of the radar speckle; 0 switches speckle off."""
    overlap: float = 0.3
    """Part of the width that both granules of the home zone cover."""
    quirks: bool = True
    """Duplicates, a missing asset, split datastrips, swath edges, a single-polarisation item, a saturated roof."""

    def __post_init__(self) -> None:
        self._check_window()
        self._check_numbers()
        self._check_crops()

    def _check_window(self) -> None:
        if self.end < self.start:
            raise _refuse("end", str(self.end), f"a day on or after the start, {self.start}")
        longitude, latitude = self.place
        if not (-179 <= longitude <= 179 and -70 <= latitude <= 75):
            raise _refuse("place", self.place, "longitude within 179 degrees and latitude between -70 and 75")

    def _check_numbers(self) -> None:
        limits = {
            "seed": (0, 2**63 - 1),
            "extent_km": (0.4, 30.0),
            "margin_m": (0, 5000),
            "s2_dates": (1, 1000),
            "neighbour_dates": (0, 1000),
            "s1_dates": (0, 1000),
            "parcel_ha": (0.3, 50.0),
            "noise": (0.0, 0.1),
            "looks": (0.0, 1000.0),
            "overlap": (0.05, 1.0),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise _refuse(name, value, f"a number between {low} and {high}")
        if self.margin_m % 20:
            raise _refuse("margin_m", self.margin_m, "a multiple of 20")

    def _check_crops(self) -> None:
        if not self.crops:
            raise _refuse("crops", self.crops, "at least one farmed kind and its share")
        for name, share in self.crops:
            if not CROPS[crop_index(name)].farmed:
                raise _refuse("crops", name, "a farmed kind; background comes by itself")
            if not share > 0:
                raise _refuse("crops", f"{name}: {share}", "a share above 0")
        names = [name for name, _ in self.crops]
        if len(set(names)) < len(names):
            raise _refuse("crops", names, "each kind once")

    def as_inputs(self) -> Inputs:
        """The options as JSON: the fingerprint in the archive's manifest."""
        inputs = asdict(self)
        inputs.update(
            start=self.start.isoformat(),
            end=self.end.isoformat(),
            place=list(self.place),
            crops=[list(pair) for pair in self.crops],
            version=SIMULATION_VERSION,
        )
        return inputs

    @classmethod
    def from_inputs(cls, inputs: Inputs) -> SimulationOptions:
        """Rebuild the options from a manifest's `inputs`.

        Raises:
            SmaltiError: if they are of another version of the simulation, or not options at all.
        """
        if inputs.get("version") != SIMULATION_VERSION:
            found = inputs.get("version")
            raise SmaltiError(f"simulated archive of version {found}, not {SIMULATION_VERSION}: simulate it again")
        names = {item.name for item in fields(cls)}
        if names != set(inputs) - {"version"}:
            raise SmaltiError("simulated archive: its options cannot be read: simulate it again")
        longitude, latitude = inputs["place"]
        plain = {name: inputs[name] for name in names - {"start", "end", "place", "crops", "climate"}}
        return cls(
            start=date.fromisoformat(inputs["start"]),
            end=date.fromisoformat(inputs["end"]),
            place=(longitude, latitude),
            crops=tuple((name, share) for name, share in inputs["crops"]),
            climate=Climate(**inputs["climate"]),
            **plain,
        )
