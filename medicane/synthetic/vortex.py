"""Axisymmetric vortices in gradient-wind and hydrostatic balance: the storms of the idealised sea.

The family is that of Reed and Jablonowski (2011, MWR 139, 689) with a free vertical profile g(z):

    p(r, z) = [p0 − Δp exp(−(r/r_p)^1.5) g(z)] [(T0 − Γz)/T0]^(g0/(R_d Γ)),   g(0) = 1

Surface pressure and surface wind do not know g: whether a core is warm, cold or shallow is written
in the heights of the pressure levels alone.

The second family has the radial form of Holland (1980), p(r) = p_c + Δp exp(−(R_m/r)^b), and the
same profiles: a flat centre, a steep wall and a long foot, cut where its surroundings begin.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medicane import names

#: Gas constant of dry air, J kg-1 K-1.
GAS_CONSTANT = 287.04
#: Angular velocity of the Earth, s-1.
OMEGA = 7.292e-5
#: Mean sea level pressure (hPa) and density (kg m-3) of the undisturbed sea.
SEA_PRESSURE, SEA_DENSITY = 1014.0, 1.2
#: Exponent of the radial pressure profile.
RADIAL_EXPONENT = 1.5
#: Holland's b; his radius of maximum wind R_m is r_p, where the strongest wind of a
#: Reed–Jablonowski vortex without rotation stands too.
HOLLAND_B = 1.5
#: Where the surroundings of a storm begin (km): what belongs to it ends as exp(−(r/500 km)⁴).
SURROUNDINGS_KM = 500.0
#: The radial forms: of Reed and Jablonowski (2011), of Holland (1980).
Family = Literal["reed_jablonowski", "holland"]
#: Height (km) where the curved profiles of shallow cores turn.
TURNING_HEIGHT_KM = 4.5

Array = NDArray[np.float64]


class Environment(NamedTuple):
    """The air around a vortex: surface pressure (hPa) and temperature (K), lapse rate (K/km)."""

    pressure_hpa: float = 1015.0
    temperature: float = 295.0
    lapse_rate: float = 7.0

    @property
    def exponent(self) -> float:
        """g0 / (R_d Γ), the exponent of the hydrostatic background."""
        return names.G0 / (GAS_CONSTANT * self.lapse_rate * 1e-3)

    def height_km(self, pressure_hpa: ArrayLike) -> Array:
        """Height (km) of a pressure (hPa) where there is no vortex."""
        ratio = np.asarray(pressure_hpa, dtype=float) / self.pressure_hpa
        return self.temperature / self.lapse_rate * (1 - ratio ** (1 / self.exponent))

    def sigma(self, z_km: ArrayLike) -> Array:
        """Pressure over surface pressure at a height (km) where there is no vortex."""
        z = np.asarray(z_km, dtype=float)
        return (1 - self.lapse_rate * z / self.temperature) ** self.exponent


ENVIRONMENT = Environment()


class Profile(NamedTuple):
    """The vertical profile g(z) = (1−w) [1 + c z/10 km + a q(z)] + w exp(−(z/z_p)²).

    q(z) = 1 − ((z − 4.5 km)/4.5 km)². All members broadcast with one another, so that one profile
    can hold a whole life: ``warm`` is w(t) of a transition.

    Parameters
    ----------
    warm
        w, from 0 (the base profile) to 1 (a deep warm core).
    warm_depth_km
        z_p, km.
    cold_slope
        c: positive where the low grows with height (cold core).
    curvature
        a: negative makes a shallow seclusion (warm below 4.5 km, cold above), positive the mirror
        image (a lee low: cold below, decaying aloft).
    """

    warm: ArrayLike = 0.0
    warm_depth_km: ArrayLike = 7.0
    cold_slope: ArrayLike = 0.0
    curvature: ArrayLike = 0.0

    def __call__(self, z_km: ArrayLike) -> Array:
        """g at heights (km), broadcast with the members."""
        w, depth, c, a = (np.asarray(v, dtype=float) for v in self)
        z = np.asarray(z_km, dtype=float)
        q = 1 - ((z - TURNING_HEIGHT_KM) / TURNING_HEIGHT_KM) ** 2
        return (1 - w) * (1 + c * z / 10 + a * q) + w * np.exp(-((z / depth) ** 2))

    def slope(self, z_km: ArrayLike) -> Array:
        """dg/dz (per km) at heights (km)."""
        w, depth, c, a = (np.asarray(v, dtype=float) for v in self)
        z = np.asarray(z_km, dtype=float)
        base = c / 10 - 2 * a * (z - TURNING_HEIGHT_KM) / TURNING_HEIGHT_KM**2
        return (1 - w) * base - w * 2 * z / depth**2 * np.exp(-((z / depth) ** 2))

    def column(self) -> Profile:
        """The same profile with one more, trailing axis on every member: one value per column."""
        return Profile(*(np.asarray(v, dtype=float)[..., None] for v in self))


def coriolis(latitude: ArrayLike) -> Array:
    """Coriolis parameter (s-1) at a latitude (degrees)."""
    return 2 * OMEGA * np.sin(np.deg2rad(np.asarray(latitude, dtype=float)))


def radial_shape(
    r_km: ArrayLike, radius_km: ArrayLike, *, family: Family = "reed_jablonowski"
) -> Array:
    """s(r): 1 in the centre, 0 far away.

    exp(−(r/r_p)^1.5), or Holland's 1 − exp(−(R_m/r)^b) times `ends`.
    """
    r = np.asarray(r_km) / np.asarray(radius_km)
    if family == "holland":
        return -np.expm1(-(np.maximum(r, 1e-6) ** -HOLLAND_B)) * ends(r_km)
    return np.exp(-(r**RADIAL_EXPONENT))


def pressure(
    r_km: ArrayLike,
    z_km: ArrayLike,
    *,
    depth_hpa: ArrayLike,
    radius_km: ArrayLike,
    profile: Profile,
    environment: Environment = ENVIRONMENT,
) -> Array:
    """Pressure (hPa) of a Reed–Jablonowski vortex at radius r and height z (km), broadcast."""
    anomaly = np.asarray(depth_hpa) * radial_shape(r_km, radius_km) * profile(z_km)
    return (environment.pressure_hpa - anomaly) * environment.sigma(z_km)


def temperature(
    r_km: ArrayLike,
    z_km: ArrayLike,
    *,
    depth_hpa: ArrayLike,
    radius_km: ArrayLike,
    profile: Profile,
    environment: Environment = ENVIRONMENT,
) -> Array:
    """Temperature (K) in hydrostatic balance with `pressure`: warm where g falls with height."""
    z = np.asarray(z_km, dtype=float)
    x = np.asarray(depth_hpa) * radial_shape(r_km, radius_km)
    background = environment.temperature - environment.lapse_rate * z
    bend = x * profile.slope(z) * 1e-3 / (environment.pressure_hpa - x * profile(z))
    return 1 / (1 / background + GAS_CONSTANT / names.G0 * bend)


def height_on_levels(
    anomaly_hpa: ArrayLike,
    levels_hpa: ArrayLike,
    *,
    profile: Profile,
    environment: Environment = ENVIRONMENT,
) -> Array:
    """Heights (m) of pressure levels where the surface pressure is lowered by an anomaly.

    Parameters
    ----------
    anomaly_hpa
        Δp exp(−(r/r_p)^1.5), hPa, shape (...).
    levels_hpa
        Pressure levels, shape (level,).
    profile
        Members of shape (...), or scalars.

    Returns
    -------
    array of shape (..., level).
    """
    levels = np.asarray(levels_hpa, dtype=float)
    x = np.asarray(anomaly_hpa, dtype=float)[..., None]
    column = profile.column()
    z = environment.height_km(levels)
    # A fixed point that contracts by about Δp/p0 (1–2 %) a turn: four turns reach a micrometre.
    for _ in range(4):
        z = environment.height_km(levels / (1 - x * column(z) / environment.pressure_hpa))
    return (
        np.broadcast_to(z, (*np.broadcast_shapes(x.shape[:-1], column(z).shape[:-1]), levels.size))
        * 1e3
    )


def height_coefficients(
    depth_hpa: ArrayLike,
    levels_hpa: ArrayLike,
    *,
    profile: Profile,
    environment: Environment = ENVIRONMENT,
) -> tuple[Array, Array]:
    """Height anomaly as a parabola in s = exp(−(r/r_p)^1.5): Z′(s) = a₁ s + a₂ s² (m).

    Z′ is almost linear in s; the parabola through s = 0, ½ and 1 is exact to a centimetre or two
    and turns the inversion of p(r, z) into two multiplications a grid point.

    Returns
    -------
    two arrays of shape (..., level), for a depth and profile of shape (...).
    """
    depth = np.asarray(depth_hpa, dtype=float)
    rest = environment.height_km(levels_hpa) * 1e3
    whole = height_on_levels(depth, levels_hpa, profile=profile, environment=environment) - rest
    half = height_on_levels(depth / 2, levels_hpa, profile=profile, environment=environment) - rest
    return 4 * half - whole, 2 * whole - 4 * half


def pressure_gradient(
    r_km: ArrayLike,
    *,
    depth_hpa: ArrayLike,
    radius_km: ArrayLike,
    family: Family = "reed_jablonowski",
) -> Array:
    """∂p/∂r at the surface, −Δp ds/dr of `radial_shape`, Pa m-1."""
    r = np.asarray(r_km, dtype=float) / np.asarray(radius_km)
    if family == "holland":
        r = np.maximum(r, 1e-6)
        ratio = r**-HOLLAND_B
        wall = HOLLAND_B * ratio / r * np.exp(-ratio)
        end = 4 * (r * radius_km / SURROUNDINGS_KM) ** 4 / r
        steepness = (wall - np.expm1(-ratio) * end) * ends(r_km)
    else:
        steepness = RADIAL_EXPONENT * np.sqrt(r) * np.exp(-(r**RADIAL_EXPONENT))
    return np.asarray(depth_hpa) * 100 * steepness / (np.asarray(radius_km) * 1e3)


def gradient_wind(
    r_km: ArrayLike, gradient: ArrayLike, *, density: ArrayLike, f: ArrayLike
) -> Array:
    """Gradient wind V = −fr/2 + √((fr/2)² + (r/ρ) ∂p/∂r), m s-1, cyclonic positive.

    Parameters
    ----------
    r_km
        Radius, km.
    gradient
        ∂p/∂r, Pa m-1 (positive around a low).
    density
        Air density, kg m-3.
    f
        Coriolis parameter, s-1.
    """
    r = np.asarray(r_km, dtype=float) * 1e3
    half = np.asarray(f) * r / 2
    return -half + np.sqrt(half**2 + r / np.asarray(density) * np.asarray(gradient))


def disc_heights(
    coefficients: tuple[ArrayLike, ArrayLike],
    *,
    levels_hpa: ArrayLike,
    vortex_radius_km: float,
    r_km: ArrayLike,
    azimuth_deg: ArrayLike,
    thickness_gradient: ArrayLike = 0.0,
    family: Family = "reed_jablonowski",
) -> Array:
    """Height anomalies (m) of a noise-free vortex on storm-centred rings.

    Parameters
    ----------
    coefficients
        a₁ and a₂ of `height_coefficients`, each of shape (time, level).
    levels_hpa
        Pressure levels, shape (level,).
    vortex_radius_km
        r_p, km.
    r_km, azimuth_deg
        Radii (km), shape (radius,), and azimuths clockwise from the motion, shape (azimuth,).
    thickness_gradient
        Gradient of the 900–600 hPa thickness to the right of the motion, m km-1, shape (time,).

    Returns
    -------
    array of shape (time, level, radius, azimuth).
    """
    a1, a2 = (np.asarray(a, dtype=float)[..., None, None] for a in coefficients)
    r = np.asarray(r_km, dtype=float)[:, None]
    right = r * np.sin(np.deg2rad(np.asarray(azimuth_deg, dtype=float)))
    s = radial_shape(r, vortex_radius_km, family=family)
    tilt = np.asarray(thickness_gradient, dtype=float).reshape(-1, 1, 1, 1)
    grown = shear_shape(levels_hpa)[:, None, None]
    return np.asarray(a1 * s + a2 * s**2 + tilt * grown * right * ends(r))


def asymmetry_of_shear(shear: ArrayLike, *, latitude: ArrayLike, radius_km: float) -> Array:
    """Hart's B (m) of a 900–600 hPa shear (m s-1) along the motion: (8R/3π)(f/g0)|ΔV|."""
    return np.asarray(
        8 * radius_km * 1e3 / (3 * np.pi) * coriolis(latitude) / names.G0 * np.abs(shear)
    )


def gradient_of_asymmetry(b_m: ArrayLike, *, radius_km: float) -> Array:
    """The thickness gradient (m km-1) that gives Hart's B (m) within a radius: 3πB/(8R)."""
    return np.asarray(3 * np.pi * np.asarray(b_m, dtype=float) / (8 * radius_km))


def shear_shape(levels_hpa: ArrayLike) -> Array:
    """Growth of a thickness gradient with height: 0 at 900 hPa and below, 1 at 600 and above."""
    levels = np.asarray(levels_hpa, dtype=float)
    return np.clip(np.log(900 / levels) / np.log(900 / 600), 0, 1)


def ends(r_km: ArrayLike) -> Array:
    """exp(−(r/500 km)⁴): what is a storm's own ends where its surroundings begin."""
    return np.exp(-((np.asarray(r_km, dtype=float) / SURROUNDINGS_KM) ** 4))
