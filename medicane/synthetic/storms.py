"""The storms of the idealised sea: alike at the surface, told apart by their vertical structure.

A storm's *surface* (track, depth, radius, life, speed) and a *window* in its life are drawn first,
by one law for every kind that lives over sea. Its *kind* then says what the core does in that
window. Everything is a function of the hour, so that any map interval samples the same storms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medicane import config, names
from medicane.errors import InputError
from medicane.phase_space import hold, polar_phase_space, satisfies
from medicane.synthetic import vortex

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: Whether points (latitude, longitude) lie on land.
IsLand = Callable[[Array, Array], Mask]

MEDICANE = "medicane"
#: Kinds that are not medicanes, and their shares: the hard negatives.
NEGATIVES = {
    "baroclinic": 0.22,  # cold core, at most a hint of a transition
    "seclusion": 0.18,  # becomes warm below 4.5 km, cold above
    "lee": 0.10,  # cold below, decaying aloft
    "excursion": 0.30,  # a medicane's core again and again, each time for less than the time asked
    "hybrid": 0.10,  # a medicane's core in an asymmetric, sheared storm
    "heat_low": 0.10,  # shallow and warm over hot land in summer: the one kind with its own surface
}
#: Where storms are born: longitude, latitude and share.
BASINS = np.array(
    [
        [5, 41, 2],
        [3, 39, 2],
        [12, 39.5, 2],
        [18.5, 36.5, 3],
        [18, 34, 2],
        [25, 34.5, 2],
        [30, 33.8, 1],
    ]
)
#: Decay over land (h), and the least length (h) of a medicane, so that 6-hourly maps see it last.
LANDFALL_HOURS, LEAST_MEDICANE_HOURS = 10.0, 15
#: Rings and azimuths of the disc on which the noise-free phase space is taken.
RINGS, AZIMUTHS = 11, 16

#: Surfaces drawn before the laws are called impossible (about one in ten is good).
MOST_TRIES = 3000
LEVELS = names.PHASE_SPACE_LEVELS


@dataclass(frozen=True)
class Storm:
    """One storm, hour by hour; arrays have shape (hour,).

    ``start`` is the hour of the record it is born in; ``depth_hpa`` is Δp(t), ``tilt`` the
    thickness gradient (m km-1) to the right of the ``heading_deg`` (clockwise from north);
    ``a1`` and ``a2`` (hour, level) are the parabolas of `vortex.height_coefficients`. ``b``,
    ``vtl``, ``vtu`` and ``msl_hpa`` are the noise-free phase space, ``rule`` says where it is that
    of a medicane over sea, ``medicane`` where that lasts.
    """

    kind: str
    latitude: Array
    longitude: Array
    heading_deg: Array
    over_sea: Mask
    depth_hpa: Array
    radius_km: float
    tilt: Array
    a1: Array
    a2: Array
    b: Array
    vtl: Array
    vtu: Array
    msl_hpa: Array
    rule: Mask
    medicane: Mask
    family: vortex.Family = "reed_jablonowski"
    start: int = 0
    name: str = ""

    @property
    def hours(self) -> int:
        """Length of its life, h."""
        return self.latitude.size

    def spells(self) -> list[tuple[int, int]]:
        """First and last hour of each spell as a medicane, hours of the storm's life."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], self.medicane, [False]])))
        return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@dataclass(frozen=True)
class _Surface:
    latitude: Array
    longitude: Array
    heading_deg: Array
    over_sea: Mask
    depth_hpa: Array
    radius_km: float
    window: tuple[float, float]


def draw_storm(
    rng: np.random.Generator,
    kind: str,
    *,
    is_land: IsLand,
    definition: config.Label,
    family: vortex.Family = "reed_jablonowski",
) -> Storm:
    """Draw storms of a kind until one obeys the laws of its kind; its start is left at hour 0.

    A medicane's rule holds in spells that all last, even on 6-hourly maps; the rule of any other
    kind never lasts; that of an excursion holds now and then.

    Raises
    ------
    InputError
        If the label definition leaves no room for the kind.
    """
    for _ in range(200):
        heat = kind == "heat_low"
        surface = (
            _heat_low_surface(rng, is_land) if heat else _sea_surface(rng, is_land, definition)
        )
        storm = _with_core(rng, kind, surface, definition, family)
        lasting = [b - a for a, b in storm.spells()]
        if kind == MEDICANE:
            least = max(LEAST_MEDICANE_HOURS, definition.min_hours + 6)
            good = (
                bool(lasting)
                and min(lasting) >= least
                and bool((storm.rule == storm.medicane).all())
            )
        else:
            good = not lasting and (kind != "excursion" or bool(storm.rule.sum() >= 2))
        if good:
            return storm
    law = f"the idealised sea must be able to make storms of kind {kind} under this definition"
    raise InputError("label", law, found=definition.model_dump_json())


def _sea_surface(rng: np.random.Generator, is_land: IsLand, definition: config.Label) -> _Surface:
    """Track, life cycle and window of a storm over sea: the same law for every kind."""
    for _ in range(MOST_TRIES):
        life = int(np.clip(84 * np.exp(0.3 * rng.standard_normal()), 48, 144))
        hour = np.arange(life + 1.0)
        rise, fall = rng.uniform(6, 16), rng.uniform(6, 18)
        depth = rng.uniform(13, 20)
        radius = rng.uniform(60, 110)
        length = max(20.0, rng.uniform(0.45, 0.75) * life)
        first = rng.uniform(0.8 * rise, max(0.8 * rise, life - length - 0.8 * fall))
        window = (first, first + length)
        basin = BASINS[rng.choice(len(BASINS), p=BASINS[:, 2] / BASINS[:, 2].sum())]
        latitude, longitude, heading = _track(
            rng,
            hour,
            origin=(basin[1] + 1.2 * rng.standard_normal(), basin[0] + 2.0 * rng.standard_normal()),
            speed=4.5 * np.exp(0.4 * rng.standard_normal()),
            heading=90 + 55 * rng.standard_normal(),
        )
        inside = (hour >= window[0] - 2) & (hour <= window[1] + 2)
        if not (31 <= latitude.min() <= latitude.max() <= 45.5):
            continue
        if not (-6 <= longitude.min() <= longitude.max() <= 38):
            continue
        over_sea = ~is_land(latitude, longitude)
        if not over_sea[inside].all():
            continue
        cycle = np.sin(np.pi / 2 * np.clip(hour / rise, 0, 1)) ** 2
        cycle *= np.sin(np.pi / 2 * np.clip((life - hour) / fall, 0, 1)) ** 2
        # A slow breath, so that neither depth nor its tendency tells the age.
        cycle *= (
            1 - 0.08 * (1 + np.sin(2 * np.pi * (hour / rng.uniform(24, 60) + rng.random()))) / 2
        )
        cycle *= np.exp(-np.cumsum(np.logical_not(over_sea)) / LANDFALL_HOURS)
        deep = (
            vortex.SEA_PRESSURE - depth * cycle
            < min(definition.msl_max_hpa, vortex.SEA_PRESSURE - 1) - 0.3
        )
        if deep[inside].all():
            return _Surface(latitude, longitude, heading, over_sea, depth * cycle, radius, window)
    law = "storms of the idealised sea must be able to fall below it (they reach 995 hPa)"
    raise InputError("label.msl_max_hpa", law, found=definition.msl_max_hpa)


def _heat_low_surface(rng: np.random.Generator, is_land: IsLand) -> _Surface:
    """A broad, almost standing low over North Africa, deepest in the afternoon."""
    while True:
        life = int(rng.uniform(48, 144))
        hour = np.arange(life + 1.0)
        latitude, longitude, heading = _track(
            rng,
            hour,
            origin=(rng.uniform(29, 34), rng.uniform(-6, 34)),
            speed=rng.uniform(0.3, 1.2),
            heading=rng.uniform(0, 360),
        )
        over_sea = ~is_land(latitude, longitude)
        if over_sea.any() or not 28.5 <= latitude.min() <= latitude.max() <= 36:
            continue
        day = 0.7 + 0.3 * np.cos(2 * np.pi * (hour - 15) / 24)
        cycle = np.clip(np.minimum(hour, life - hour) / 12, 0, 1) * day
        depth = rng.uniform(9, 15)
        return _Surface(
            latitude, longitude, heading, over_sea, depth * cycle, rng.uniform(120, 200), (0, life)
        )


def _track(
    rng: np.random.Generator,
    hour: Array,
    *,
    origin: tuple[float, float],
    speed: float,
    heading: float,
) -> tuple[Array, Array, Array]:
    """Latitude, longitude and heading at each hour: a steady course that meanders."""
    swing = rng.uniform(10, 45) * np.sin(2 * np.pi * (hour / rng.uniform(36, 96) + rng.random()))
    course = heading + swing
    step = speed * 3.6 / 111.195
    latitude = origin[0] + np.cumsum(step * np.cos(np.deg2rad(course)))
    eastward = step * np.sin(np.deg2rad(course)) / np.cos(np.deg2rad(latitude))
    return latitude, origin[1] + np.cumsum(eastward), course % 360


def _with_core(
    rng: np.random.Generator,
    kind: str,
    surface: _Surface,
    definition: config.Label,
    family: vortex.Family,
) -> Storm:
    """Give a surface the core of a kind: w(t), c(t), a(t), asymmetry; then its phase space."""
    hour = np.arange(surface.latitude.size, dtype=float)
    first, last = surface.window
    if kind == "excursion":
        inside = _pulses(rng, hour, first, last, definition.min_hours)
    else:
        inside = _logistic((hour - first) / rng.uniform(1.0, 3.0))
        inside *= _logistic((last - hour) / rng.uniform(1.0, 3.0))
    cold = rng.uniform(0.2, 1.2)
    warm, slope, curvature = np.zeros_like(hour), np.full_like(hour, cold), np.zeros_like(hour)
    depth_km = rng.uniform(6.3, 9.0)
    # Asymmetry as a share of the threshold: a front at birth, less of it in a symmetric core.
    front, core = rng.uniform(0.5, 1.4), rng.uniform(0.0, 0.5)
    share = front + (core - front) * inside
    if kind in (MEDICANE, "excursion"):
        warm = inside * rng.uniform(0.9, 1.0)
    elif kind == "hybrid":
        warm = inside * rng.uniform(0.9, 1.0)
        share = np.full_like(hour, rng.uniform(1.3, 2.2))
    elif kind == "baroclinic":
        warm = inside * rng.uniform(0.0, 0.5)
        share = np.full_like(hour, front)
    elif kind == "seclusion":
        slope = cold * (1 - inside)
        curvature = -rng.uniform(0.15, 0.4) * inside
    elif kind == "lee":
        slope = 0.5 * slope
        curvature = np.full_like(hour, rng.uniform(0.1, 0.35))
    elif kind == "heat_low":
        warm, depth_km = np.ones_like(hour), rng.uniform(2.5, 4.0)
        share = np.full_like(hour, core)
    else:
        raise ValueError(f"kind must be {MEDICANE} or one of {sorted(NEGATIVES)}; found {kind!r}")
    profile = vortex.Profile(warm, depth_km, slope, curvature)
    a1, a2 = vortex.height_coefficients(surface.depth_hpa, LEVELS, profile=profile)
    tilt = vortex.gradient_of_asymmetry(share * definition.b_max_m, radius_km=definition.radius_km)
    b, vtl, vtu = clean_phase_space(
        a1,
        a2,
        tilt=tilt,
        vortex_radius_km=surface.radius_km,
        radius_km=definition.radius_km,
        family=family,
    )
    msl = vortex.SEA_PRESSURE - surface.depth_hpa
    rule = satisfies(b, vtl, vtu, msl, definition=definition) & surface.over_sea
    times = np.datetime64("2000-01-01T00") + hour.astype("timedelta64[h]")
    return Storm(
        kind=kind,
        latitude=surface.latitude,
        longitude=surface.longitude,
        heading_deg=surface.heading_deg,
        over_sea=surface.over_sea,
        depth_hpa=surface.depth_hpa,
        radius_km=surface.radius_km,
        tilt=tilt,
        a1=a1,
        a2=a2,
        b=b,
        vtl=vtl,
        vtu=vtu,
        msl_hpa=msl,
        rule=rule,
        medicane=hold(rule, times, min_hours=definition.min_hours, step_hours=1),
        family=family,
    )


def _pulses(
    rng: np.random.Generator, hour: Array, first: float, last: float, min_hours: float
) -> Array:
    """Spells too short to count, one after the other: only their order in time tells them."""
    inside = np.zeros_like(hour)
    short = max(1.0, min_hours - rng.uniform(0.2, 1.5))
    # More than two spells apart, so that no two are one in the maps.
    period = max(2.2 * short, rng.uniform(2.0, 2.5) * min_hours)
    for begin in np.arange(first, max(first + 1, last - short), period):
        inside += _logistic((hour - begin) / 0.5) * _logistic((begin + short - hour) / 0.5)
    return inside


def _logistic(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


def clean_phase_space(
    a1: Array,
    a2: Array,
    *,
    tilt: Array,
    vortex_radius_km: float,
    radius_km: float,
    family: vortex.Family = "reed_jablonowski",
) -> tuple[Array, Array, Array]:
    """B, −VTL and −VTU (m), each of shape (hour,), of a storm without any weather around it."""
    rings = np.linspace(0, radius_km, RINGS)
    azimuth = (np.arange(AZIMUTHS) + 0.5) * 360 / AZIMUTHS
    heights = vortex.disc_heights(
        (a1, a2),
        levels_hpa=LEVELS,
        vortex_radius_km=vortex_radius_km,
        r_km=rings,
        azimuth_deg=azimuth,
        thickness_gradient=tilt,
        family=family,
    )
    space = polar_phase_space(
        heights,
        levels=LEVELS,
        radius=rings,
        azimuth_deg=azimuth,
        max_radius=radius_km,
        heading_deg=np.zeros(len(heights)),
    )
    return np.asarray(space.b), np.asarray(space.vtl), np.asarray(space.vtu)
