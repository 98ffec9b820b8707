"""The vocabulary: dimensions, variables and channels, each in one table. Values only, no logic.

Variable names follow ERA5 short names where the Climate Data Store has one; standard names and
units follow the CF conventions. Aliases are what other centres call the same quantity.
"""

from __future__ import annotations

from typing import NamedTuple

TIME = "time"
LATITUDE = "latitude"
LONGITUDE = "longitude"
LEVEL = "pressure_level"  # hPa, from the surface up: 1000, 900, 850, …
CHANNEL = "channel"
MEMBER = "number"
#: Dimensions of a map image, from its upper left corner: it has no coordinates of its own.
ROW, COLUMN = "row", "column"
#: The version of ERA5 that a map is of: 1 is final, 5 preliminary (ERA5T), 0 is not said.
EXPVER = "expver"
ERA5, ERA5T = 1, 5

#: Standard acceleration of gravity, m s-2 (WMO): geopotential = G0 * geopotential height.
G0 = 9.80665

#: Pressure levels (hPa) on which Hart's phase space is computed.
PHASE_SPACE_LEVELS = (900, 850, 700, 600, 500, 400, 300)

#: Label values of ``medicane(time)``.
NOT_MEDICANE, MEDICANE, UNKNOWN = 0, 1, -1


class Variable(NamedTuple):
    """A physical quantity as the project knows it."""

    standard_name: str
    units: str
    long_name: str
    on_levels: bool
    aliases: tuple[str, ...]


#: Name in the project → CF standard name, CF units, and what others call it.
VARIABLES: dict[str, Variable] = {
    "msl": Variable(
        "air_pressure_at_mean_sea_level",
        "Pa",
        "mean sea level pressure",
        False,
        ("mslp", "psl", "prmsl", "prmslmsl", "msletmsl", "slp", "mean_sea_level_pressure"),
    ),
    "u10": Variable(
        "eastward_wind",
        "m s-1",
        "10 m eastward wind",
        False,
        ("10u", "uas", "ugrd10m", "10m_u_component_of_wind"),
    ),
    "v10": Variable(
        "northward_wind",
        "m s-1",
        "10 m northward wind",
        False,
        ("10v", "vas", "vgrd10m", "10m_v_component_of_wind"),
    ),
    "t2m": Variable(
        "air_temperature",
        "K",
        "2 m air temperature",
        False,
        ("2t", "tas", "tmp2m", "2m_temperature"),
    ),
    "sst": Variable(
        "sea_surface_temperature",
        "K",
        "sea surface temperature",
        False,
        ("tos", "sea_surface_temperature"),
    ),
    "tcwv": Variable(
        "atmosphere_mass_content_of_water_vapor",
        "kg m-2",
        "total column water vapour",
        False,
        ("prw", "pwat", "pwatclm", "total_column_water_vapour"),
    ),
    "lsm": Variable(
        "land_binary_mask",
        "1",
        "land-sea mask (1 = land)",
        False,
        ("sftlf", "landsfc", "land_sea_mask"),
    ),
    "zg": Variable(
        "geopotential_height",
        "m",
        "geopotential height",
        True,
        ("gh", "hgt", "hgtprs", "geopotential_height"),
    ),
    "z": Variable("geopotential", "m2 s-2", "geopotential", True, ("geopotential", "phi")),
    "t": Variable(
        "air_temperature", "K", "air temperature", True, ("ta", "air", "tmpprs", "temperature")
    ),
    "u": Variable(
        "eastward_wind",
        "m s-1",
        "eastward wind",
        True,
        ("ua", "uwnd", "ugrdprs", "u_component_of_wind"),
    ),
    "v": Variable(
        "northward_wind",
        "m s-1",
        "northward wind",
        True,
        ("va", "vwnd", "vgrdprs", "v_component_of_wind"),
    ),
    "q": Variable(
        "specific_humidity",
        "1",
        "specific humidity",
        True,
        ("hus", "shum", "spfhprs", "specific_humidity"),
    ),
    # What a picture shows has no CF name.
    "red": Variable("", "1", "red of a map image", False, ()),
    "green": Variable("", "1", "green of a map image", False, ()),
    "blue": Variable("", "1", "blue of a map image", False, ()),
    "grey": Variable("", "1", "brightness of a map image", False, ()),
}

#: What others call the coordinates.
COORDINATE_ALIASES: dict[str, tuple[str, ...]] = {
    TIME: ("valid_time", "date", "datetime"),
    LATITUDE: ("lat", "nav_lat", "y"),
    LONGITUDE: ("lon", "nav_lon", "x"),
    LEVEL: ("level", "isobaricInhPa", "plev", "lev", "pressure", "isobaric"),
    MEMBER: ("member", "realization", "ensemble", "ens"),
}


#: CMIP's names of fields on one level, hPa: ``zg500``, ``ua850``.
LEVEL_IN_NAME = r"(zg|ua|va|ta|hus)(\d{2,4})"


class Channel(NamedTuple):
    """A field that the model sees: a formula over standard variables, and its units.

    In a formula a variable on levels carries its level in hPa (``zg_900``). ``local(x, 8)`` is x
    minus its mean over a box of 8 degrees; ``speed(u, v)`` and ``vorticity(u, v)`` are what they
    say; ``fill(sst)`` sets missing cells to the mean of the map.
    """

    formula: str
    units: str
    long_name: str


#: Channels with a name of their own. ``msl``, ``u10`` … and ``zg_850``, ``t_500`` … need no entry:
#: a variable is the channel of its own name.
CHANNELS: dict[str, Channel] = {
    "msl_local": Channel("local(msl, 8)", "Pa", "MSLP minus its 8 degree mean"),
    "wind10": Channel("speed(u10, v10)", "m s-1", "10 m wind speed"),
    "vorticity10": Channel("vorticity(u10, v10)", "s-1", "relative vorticity at 10 m"),
    "vorticity_850": Channel("vorticity(u_850, v_850)", "s-1", "relative vorticity at 850 hPa"),
    "thickness_900_600": Channel("zg_600 - zg_900", "m", "thickness 900-600 hPa"),
    "thickness_600_300": Channel("zg_300 - zg_600", "m", "thickness 600-300 hPa"),
    "thickness_900_600_local": Channel(
        "local(zg_600 - zg_900, 8)", "m", "thickness 900-600 hPa minus its 8 degree mean"
    ),
    "thickness_600_300_local": Channel(
        "local(zg_300 - zg_600, 8)", "m", "thickness 600-300 hPa minus its 8 degree mean"
    ),
}

#: What a model sees unless the configuration says otherwise.
DEFAULT_CHANNELS = (
    "msl_local",
    "u10",
    "v10",
    "thickness_900_600_local",
    "thickness_600_300_local",
    "lsm",
)
